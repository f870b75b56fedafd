"""What a benchmark prints and writes: the header of a run, the tables and the JSON of its results."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from sparsevid.benchmark.data import DataMeasurement
from sparsevid.benchmark.model import TOLERANCE, Case, Measurement, Result
from sparsevid.benchmark.training import StepTime, clips_per_second
from sparsevid.data.tree.clip_rule import ClipRule

MODEL_COLUMNS = (
    "preset",
    "layout",
    "form",
    "latents",
    "sparse grid",
    "batch",
    "dtype",
    "s/forward",
    "spread",
    "clips/s",
    "GMACs",
    "of matmul",
    "weights MB",
    "peak MB",
    "time / dense",
    "GMACs / dense",
    "peak / dense",
    "note",
)
DATA_COLUMNS = ("source", "workers", "clips/s", "spread", "of the first", "frames decoded / clip", "feeds the model")
TRAINING_COLUMNS = ("preset", "sparse grid", "share", "s/step", "spread", "speed")
RESULTS = "docs/study"  # where a measurement adds to what is kept: it changes no code
MISSING = "–"  # in a cell that has no value
# Columns set to the left.
WORDS = (
    "preset", "layout", "form", "latents", "sparse grid", "dtype", "note", "source", "sampler", "compiled", "measured",
    "decoder", "measure", "file", "result", "what", "model", "savings", "frontier", "row",
)  # fmt: skip


def describe_run(command: str, device: torch.device) -> dict[str, str | int | None]:
    """What a reader needs in order to judge and to repeat the numbers.

    Args:
        command: the command with all its options.
        device: where the models run.

    Returns:
        Command, date (UTC), commit or None, hardware, threads of a process, versions.
    """
    return {
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": find_commit(Path(__file__).parent),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "processor": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def find_commit(folder: Path) -> str | None:
    """The commit that `folder` is checked out at, with a remark if tracked files were changed since, other than results.

    Returns:
        None where there is no git, or where the files of the folder are not kept in it (an installed package).
    """

    def git(*words: str) -> str | None:
        command = ["git", "--no-optional-locks", "-C", str(folder), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if git("ls-files", ".") else None
    if commit is None:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", f":(top,exclude){RESULTS}")
    return f"{commit} with local changes" if changed else commit


def model_as_json(header: dict, measured: Measurement) -> dict:
    """Everything measured, as plain values: seconds, bytes, multiply-adds.

    Args:
        header: as `describe_run` gives it.
        measured: as `measure_cases` gives it.
    """
    return {
        "header": header,
        "matmul_macs_per_second": matmul_as_json(measured.matmul_rates),
        "results": [_result_as_json(result) for result in measured.results],
    }


def model_lines(measured: Measurement) -> list[str]:
    """What a reader of the table of models has to know, a line each."""
    return [
        *matmul_lines(measured.matmul_rates),
        "s/forward: median of the turns, spread: slowest less fastest over it; GMACs: counted multiply-adds of the batch; "
        "of matmul: their rate over the best matmul's; peak: memory beyond weights and inputs; "
        f"noted where time / dense and GMACs / dense differ by more than {TOLERANCE:.0%}",
    ]


def matmul_lines(rates: Mapping[str, Mapping[int, float]]) -> list[str]:
    """The best matmul of each dtype, a line each.

    Args:
        rates: multiply-adds a second, by dtype and side.
    """
    lines = []
    for dtype, sides in rates.items():
        best = max(sides, key=sides.__getitem__)
        lines.append(f"best {dtype} matmul of {', '.join(map(str, sides))}: {best}, {sides[best] / 1e9:.1f} GMAC/s")
    return lines


def matmul_as_json(rates: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, float]]:
    """The same rates for JSON, whose keys are text."""
    return {dtype: {str(side): rate for side, rate in sides.items()} for dtype, sides in rates.items()}


def model_rows(measured: Measurement) -> list[list[str]]:
    """The table of models: a row of `MODEL_COLUMNS` for each case."""
    return [_row(result) for result in measured.results]


def data_as_json(header: dict, measured: DataMeasurement) -> dict:
    """Everything measured, as plain values: clips a second, seconds, frames.

    Args:
        header: as `describe_run` gives it.
        measured: as `measure_data` gives it.
    """
    return {
        "header": header,
        "training_step": {
            "batch": measured.step_batch,
            "seconds_of_turns": list(measured.step_turns),
            "clips_per_second": measured.consumed_per_second,
        },
        "sources": [
            {
                "source": rate.source,
                "workers": rate.workers,
                "clips_per_second": rate.clips_per_second,
                "clips_per_second_of_turns": list(rate.turns),
                "frames_decoded_per_clip": rate.decoded,
                "feeds_the_model": measured.feeds(rate),
            }
            for rate in measured.rates
        ],
    }


def data_lines(measured: DataMeasurement, preset: str, rule: ClipRule) -> list[str]:
    """What a reader of the table of sources has to know, and what follows from it, a line each.

    Args:
        measured: as `measure_data` gives it.
        preset: name of the model that the training step is of.
        rule: of the clips that were read.
    """
    best = max(measured.rates, key=measured.feeds)
    workers = f"{best.workers} worker{'' if best.workers == 1 else 's'}"
    if measured.feeds(best) >= 1:
        verdict = f"feeds the model {measured.feeds(best):.3g}× over: the model is the bottleneck"
    else:
        verdict = f"gives {measured.feeds(best):.0%} of the clips that the model takes: loading is the bottleneck"
    return [
        f"a clip is {rule.frames} frames of a span of {rule.span}; clips/s: median of the turns, spread: fastest less slowest "
        "over it; of the first: over the first row; frames decoded: those that decord passes over cannot be counted",
        f"{preset} in training (forward, backward, AdamW, float32, latents of batch {measured.step_batch}, no autoencoder, "
        f"while nothing is read) takes {measured.consumed_per_second:.3g} clips/s",
        f"{best.source} with {workers} {verdict}",
    ]


def data_rows(measured: DataMeasurement) -> list[list[str]]:
    """The table of sources: a row of `DATA_COLUMNS` for each source and number of workers."""
    first = measured.rates[0].clips_per_second
    return [
        [
            rate.source,
            str(rate.workers),
            f"{rate.clips_per_second:.3g}",
            f"{rate.spread:.0%}",
            f"{rate.clips_per_second / first:.2f}×",
            f"{rate.decoded:.1f}",
            f"{measured.feeds(rate):.3g}×",
        ]
        for rate in measured.rates
    ]


def training_lines(measured: Sequence[StepTime]) -> list[str]:
    """What a reader of the table of training steps has to know, and each preset's rate over all stages, a line each."""
    presets = list(dict.fromkeys(time.preset for time in measured))
    rates = {preset: clips_per_second(measured, preset) for preset in presets}
    return [
        "a step: forward, backward and AdamW in float32 on random latents; share: of training's steps that draw the stage",
        *(
            f"{preset}: {rate:.3g} clips/s in training, {rate / rates[presets[0]]:.2f}× {presets[0]}"
            for preset, rate in rates.items()
        ),
    ]


def training_rows(measured: Sequence[StepTime]) -> list[list[str]]:
    """The table of training steps: a row of `TRAINING_COLUMNS` for each preset and stage."""
    return [
        [
            time.preset,
            MISSING if time.grid is None else str(time.grid),
            f"{time.share:.0%}",
            f"{time.seconds:.4g}",
            f"{time.spread:.0%}",
            f"{measured[0].seconds / time.seconds:.2f}×",
        ]
        for time in measured
    ]


def as_markdown(header: dict, lines: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The header and further lines as a list, the results as a table.

    Args:
        header: as `describe_run` gives it.
        lines: sentences for the reader.
        columns: their names; those of `WORDS` are set to the left.
        rows: a cell for each column.
    """
    marks = [":--" if column in WORDS else "--:" for column in columns]
    listed = [f"- {line}" for line in (*header_lines(header), *lines)]
    # Rich's Markdown box knows no alignment and folds wide tables, so the lines are joined here.
    cells = [[" ".join(cell.splitlines()).replace("|", "\\|") for cell in row] for row in (columns, marks, *rows)]
    return "\n".join([*listed, "", *(f"| {' | '.join(row)} |" for row in cells)])


def header_lines(header: dict) -> list[str]:
    """`name: value` for each entry of a header."""
    return [f"{name.replace('_', ' ')}: {'unknown' if value is None else value}" for name, value in header.items()]


def _row(result: Result) -> list[str]:
    case = result.case
    note = f"{abs(result.excess):.0%} {'slower' if result.excess > 0 else 'faster'} than counted" if result.differs else ""
    return [
        case.preset,
        case.spec.layout,
        _form(case),
        "×".join(map(str, case.spec.input_size)),
        MISSING if case.grid is None else str(case.grid),
        str(case.batch),
        case.dtype,
        f"{result.seconds:.4g}",
        f"{result.spread:.0%}",
        f"{case.batch / result.seconds:.3g}",
        f"{case.macs / 1e9:.4g}",
        f"{result.matmul_share:.0%}",
        f"{result.weight_bytes / 1e6:.1f}",
        MISSING if result.peak_bytes is None else f"{result.peak_bytes / 1e6:.1f}",
        f"{result.measured_ratio:.3f}",
        f"{result.counted_ratio:.3f}",
        MISSING if result.memory_ratio is None else f"{result.memory_ratio:.3f}",
        note,
    ]


def _result_as_json(result: Result) -> dict:
    case = result.case
    return {
        "preset": case.preset,
        "layout": case.spec.layout,
        "form": _form(case),
        "input_size": list(case.spec.input_size),
        "grid": None if case.grid is None else list(case.grid),
        "batch": case.batch,
        "dtype": case.dtype,
        "seconds": result.seconds,
        "seconds_of_turns": list(result.turns),
        "macs": case.macs,
        "matmul_share": result.matmul_share,
        "weight_bytes": result.weight_bytes,
        "peak_bytes": result.peak_bytes,
        "measured_ratio": result.measured_ratio,
        "counted_ratio": result.counted_ratio,
        "memory_ratio": result.memory_ratio,
        "differs": result.differs,
    }


def _form(case: Case) -> str:
    return "naive" if case.naive else "ours"


def _cpu_name() -> str:
    """The processor's model name where the kernel tells it, else what Python knows of it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
