"""What a run's folder says: its configuration, losses by step, token schedule, checkpoints, and the newest sheet of samples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from sparsevid.runs.checkpoints import list_checkpoints, step_of
from sparsevid.sparsity.cost import parameter_count
from sparsevid.study.measurements import TokenStep
from sparsevid.study.page.numbers import with_prefix
from sparsevid.study.results import is_finite
from sparsevid.system.errors import EXPECTED_ERRORS, told
from sparsevid.system.logging import read_metrics

CONFIG, METRICS = "config.yaml", "metrics.jsonl"


@dataclass
class Run:
    """A run.

    Attributes:
        name: on the page.
        folder: of the run.
        config: its YAML; empty if there is none.
        metrics: values by name, each (step, value) by rising step; of a step that was made again, the last.
        facts: what is to be said of it, by what it is.
        schedule: sparse tokens over time; empty of a dense model, or if it is not known.
        sheet: picture of its newest samples.
    """

    name: str
    folder: Path
    config: str = ""
    metrics: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    schedule: tuple[TokenStep, ...] = ()
    sheet: Path | None = None


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return path.is_dir() and ((path / CONFIG).is_file() or (path / METRICS).is_file())


def read_run(folder: Path, problems: list[str]) -> Run:
    """Read a run's folder; what cannot be read of it is said in `problems`."""
    folder = folder.resolve() if folder.name in ("", "..") else folder
    run = Run(folder.name, folder, metrics=_metrics(folder))
    checkpoints = list_checkpoints(folder)
    if (folder / CONFIG).is_file():
        run.config = (folder / CONFIG).read_text(encoding="utf-8", errors="replace")
    else:
        problems.append(f"{folder} has no {CONFIG}: what was run is not known")
    steps = max((step for values in run.metrics.values() for step, _ in values), default=None)
    run.facts["folder"] = str(folder)
    run.facts["steps"] = "" if steps is None else str(steps)
    run.facts["checkpoints"] = ", ".join(str(step_of(path)) for path in checkpoints)
    sheets = sorted((folder / "samples").glob("step-*.png"))
    run.sheet = sheets[-1] if sheets else None
    if run.config:
        whole = [path for path in checkpoints if (path / CONFIG).is_file()]
        _read_settings(run, whole[-1] if whole else folder, problems)
    if (folder / METRICS).is_file():
        newest = datetime.fromtimestamp((folder / METRICS).stat().st_mtime, tz=timezone.utc)
        run.facts["last written"] = f"{newest:%Y-%m-%d %H:%M} UTC"
    return run


def _metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, dict[int, float]] = {}
    for row in read_metrics(folder):
        step = row.get("step") if isinstance(row, dict) else None
        if isinstance(step, bool) or not isinstance(step, int):
            continue
        for name, value in row.items():
            if name != "step" and is_finite(value):
                found.setdefault(name, {})[step] = float(value)
    return {name: sorted(values.items()) for name, values in found.items()}


def _read_settings(run: Run, source: Path, problems: list[str]) -> None:
    """Model, schedule and training, from a configuration that may be of before or of elsewhere."""
    from sparsevid.benchmark.candidates import open_run  # a page of results alone does not wait for it

    try:
        found = open_run(source)
    except EXPECTED_ERRORS as error:
        problems.append(f"{source / CONFIG} is shown as it is, but not understood: {told(error)}")
        return
    config = found.run_config
    train = config.train
    grid = "" if found.schedule is None else f", schedule {config.schedule.kind}"
    frames, height, width = found.spec.input_size
    run.facts |= {
        "model": f"{found.spec.layout}, {found.spec.hidden_size} channels{grid}",
        "parameters": with_prefix(parameter_count(found.spec)),
        "data": config.data.card + (f", {config.record.fingerprint[:12]}" if config.record.fingerprint else ""),
        "latents": f"{frames}×{height}×{width}, autoencoder {config.autoencoder.kind}",
        "objective": config.objective.kind,
        "optimizer": f"{train.optimizer}, rate {train.lr:g}, {train.global_batch} clips a step, {train.steps} steps",
        "starts from": train.init_from or "",
        "teacher": config.distill.teacher or "",
        "seed": str(config.seed),
        "versions": ", ".join(f"{name} {version}" for name, version in config.record.versions.items()),
    }
    if found.schedule is not None:
        run.schedule = tuple(TokenStep(low, high, float(math.prod(grid))) for low, high, grid in found.schedule.stages)
