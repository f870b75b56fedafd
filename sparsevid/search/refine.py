"""Fine-tuning what the tables propose: successive halving (Jamieson and Talwalkar, arXiv 1502.07943), each rung half as many
candidates, trained for twice as long, from the dense model each time.

Before the first rung all are asked as they are converted. A rung's runs are rows of a study, so that each is trained once,
resumable, and kept by its settings.
"""

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import spearmanr
from torch import Tensor

from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.runs.config import RecordConfig, save_config
from sparsevid.search.measure import Variants, read_losses, write_losses
from sparsevid.sparsity.layout import parse_layout
from sparsevid.sparsity.schedule import TokenSchedule
from sparsevid.study.file import MeasureSettings
from sparsevid.study.heldout import clip_losses, heldout_losses
from sparsevid.study.measure import open_pipeline
from sparsevid.study.plan import Plan, Study
from sparsevid.study.results import digest
from sparsevid.study.train import Budget, train, weights_of
from sparsevid.system.atomic import write_text
from sparsevid.system.distributed import from_main, sum_over_ranks
from sparsevid.system.logging import get_logger
from sparsevid.training.validation import FixedClip

BASE = "dense.yaml"  # the dense model's run, of which rows are variants
LEAST_STEPS = 2  # of a rung
LEAST_RANKED = 4  # candidates of a correlation of ranks
logger = get_logger(__name__)


@dataclass
class Candidate:
    """A layout and a schedule that are tried.

    Attributes:
        name: for files and tables.
        layout, schedule: what it is.
        ratio: its multiply–adds over the dense model's.
        predicted: its loss against the dense model's by the tables, with standard error; None: they say nothing of it.
        losses: by steps of fine-tuning (0: as converted) the mean against the dense model, with standard error.
        plan: of its longest run; None: not fine-tuned.
    """

    name: str
    layout: str
    schedule: TokenSchedule
    ratio: float
    predicted: tuple[float, float] | None
    losses: dict[int, tuple[float, float]] = field(default_factory=dict)
    plan: Plan | None = None

    @property
    def is_sparse(self) -> bool:
        """Whether it has sparse layers, for which the schedule means anything."""
        return parse_layout(self.layout).is_sparse

    @property
    def table(self) -> list[list[Any]]:
        """The schedule as a run's configuration has it."""
        return [[stage.high, list(stage.grid)] for stage in self.schedule.stages]

    @property
    def best(self) -> float:
        """The loss after the longest training."""
        return self.losses[max(self.losses)][0]


def rungs(count: int, steps: int) -> list[tuple[int, int]]:
    """(candidates, steps) of each rung: `count` at first, half as many each time, until two are trained for `steps`."""
    if count < 1:
        return []
    number = max(1, math.ceil(math.log2(count)))
    found = [(math.ceil(count / 2**rung), steps // 2 ** (number - 1 - rung)) for rung in range(number)]
    return [(some, max(LEAST_STEPS, each)) for some, each in found]


def ask_converted(
    pipeline: VideoPipeline,
    candidates: Sequence[Candidate],
    clips: Sequence[FixedClip],
    measure: MeasureSettings,
    dense: Tensor,
    weights: Tensor,
    folder: Path,
) -> None:
    """Fill in the losses of candidates as they are converted, without training. All ranks call it together.

    Args:
        pipeline: of the dense model.
        candidates: to fill in.
        clips: this rank's share.
        measure: clips, times, their seed, and the batch.
        dense: (N, J) losses of the dense model.
        weights: (J,) of the intervals.
        folder: where the losses are kept; those that are there are not measured again.
    """
    variants = Variants(pipeline.model)

    def ask(each: Candidate) -> Tensor:
        model = variants.converted(each.layout, each.schedule.stages[0].grid)
        schedule = each.schedule if model.spec.is_sparse else None
        return sum_over_ranks(clip_losses(pipeline, clips, measure, model=model, schedule=schedule))

    for each in candidates:
        path = folder / f"{digest([each.layout, each.table])}.safetensors"
        each.losses[0] = mean_and_error(_kept(path, partial(ask, each)) - dense, weights)


@dataclass(frozen=True)
class Fine:
    """How candidates are fine-tuned.

    Attributes:
        checkpoint: of the dense model.
        count: candidates of the first rung, besides those that are compared with.
        steps: of the last rung.
        seed: of training.
        folder: for the runs.
        budget: the time that there is.
    """

    checkpoint: str
    count: int
    steps: int
    seed: int
    folder: Path
    budget: Budget


def refine(
    pipeline: VideoPipeline,
    candidates: Sequence[Candidate],
    compared: Sequence[Candidate],
    measure: MeasureSettings,
    dense: Tensor,
    weights: Tensor,
    how: Fine,
) -> None:
    """Fine-tune candidates, rung by rung, and fill in their losses. All ranks call it together; what is done stays done.

    Args:
        pipeline: of the dense model, with the configuration of the fine-tunes.
        candidates: asked as converted already; the best go on.
        compared: candidates that are in every rung.
        measure, dense, weights: as `ask_converted`.
        how: steps, seed and place.

    Raises:
        Stopped: the budget is over, or a signal came; the same call goes on.
        StudyError, ConfigError, …: as `study.train.train`.
    """
    ranked = sorted(candidates, key=lambda each: each.best)
    planned = rungs(how.count, how.steps)
    for number, (some, steps) in enumerate(planned, start=1):
        chosen = [*ranked[:some], *compared]
        path = from_main(partial(_write_study, pipeline, chosen, steps, how))
        study = Study(path, how.folder)
        for each in chosen:
            logger.info("rung %d of %d, %d steps: %s, %s", number, len(planned), steps, each.name, each.layout)
            plan = study.plan(each.name, how.seed)
            train(plan, how.budget)
            each.losses[steps] = mean_and_error(_heldout(plan, measure) - dense, weights)
            each.plan = plan
        ranked = sorted(ranked[:some], key=lambda each: each.best)


def confirm(candidate: Candidate, other: Candidate, measure: MeasureSettings, weights: Tensor) -> tuple[float, float]:
    """How much more one loses than the other, both as they were trained longest, clip by clip: mean and standard error.

    All ranks call it together.

    Args:
        candidate, other: that were fine-tuned.
        measure: of clips, times and noise that had no part in their choice.
        weights: (J,) of the intervals.

    Raises:
        ValueError: one of them was not fine-tuned.
    """
    if candidate.plan is None or other.plan is None:
        raise ValueError(f"{candidate.name} and {other.name} are compared as they were trained longest, and one was not")
    return mean_and_error(_heldout(candidate.plan, measure) - _heldout(other.plan, measure), weights)


def rank_correlations(candidates: Sequence[Candidate]) -> dict[int, tuple[float, int]]:
    """By steps of fine-tuning, how well the tables rank what was measured then: Spearman's ρ, and of how many candidates.

    Of fewer than `LEAST_RANKED` nothing is said.
    """
    found = {}
    for steps in sorted({steps for each in candidates for steps in each.losses}):
        pairs = [(each.predicted[0], each.losses[steps][0]) for each in candidates if each.predicted and steps in each.losses]
        if len(pairs) >= LEAST_RANKED:
            found[steps] = (float(spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs))
    return found


def mean_and_error(differences: Tensor, weights: Tensor) -> tuple[float, float]:
    """Of (N, J) losses, weighted over time, the mean over clips and its standard error."""
    by_clip = differences @ weights.to(differences)
    return by_clip.mean().item(), (by_clip.std() / len(by_clip) ** 0.5).item()


def overrides_of(candidate: Candidate) -> dict[str, Any]:
    """What a run's configuration says of a candidate."""
    if not candidate.is_sparse:
        return {"model": {"layout": candidate.layout}}
    schedule = {"kind": "table", "table": candidate.table}
    return {"model": {"layout": candidate.layout, "residual_upsampling": True}, "schedule": schedule}


def _write_study(pipeline: VideoPipeline, candidates: Sequence[Candidate], steps: int, how: Fine) -> Path:
    """The file of a rung's study. On rank 0."""
    how.folder.mkdir(parents=True, exist_ok=True)
    save_config(replace(pipeline.config, record=RecordConfig()), how.folder / BASE)
    training = {"train": {"steps": steps, "init_from": how.checkpoint, "checkpoint_every": steps}}
    rows = {each.name: {"measured": False, "overrides": overrides_of(each)} for each in candidates}
    study = {"study": f"rung-{steps}", "base": BASE, "seeds": [how.seed], "overrides": training, "rows": rows}
    path = how.folder / f"rung-{steps}.yaml"
    write_text(path, yaml.safe_dump(study, sort_keys=False, allow_unicode=True))
    return path


def _heldout(plan: Plan, measure: MeasureSettings) -> Tensor:
    """Losses (N, J) of a run that is trained."""
    name = from_main(lambda: digest([weights_of(plan), vars(measure)]))
    return _kept(plan.folder / f"heldout-{name}.safetensors", lambda: heldout_losses(open_pipeline(plan), measure))


def _kept(path: Path, measured: Callable[[], Tensor]) -> Tensor:
    """Losses that a file has, or that are measured and written there. All ranks call it together."""
    found = from_main(lambda: read_losses(path))
    if found is None or "losses" not in found:
        found = {"losses": measured()}
        from_main(lambda: write_losses(path, found))
        gc.collect()  # a model
    return found["losses"]
