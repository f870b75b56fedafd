"""What became of optimizer steps, the same on all ranks; the clips that they saw; the metrics of several, and outbursts."""

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsevid.data.clips import NO_VIDEO
from sparsevid.data.tree.manifest import Video
from sparsevid.system.distributed import gather_objects, is_main
from sparsevid.system.logging import get_logger
from sparsevid.training.objective import Draw

logger = get_logger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of an optimizer step.

    Attributes:
        applied: False if it was skipped, because a loss or gradient was not finite.
        loss: mean over ranks and slots.
        stage_losses: stage → mean over the slots that drew it; of stages that were drawn.
        grad_norm: before clipping.
        redraws: samples in whose place others were drawn.
        stop: whether a signal asked any rank to stop.
    """

    applied: bool
    loss: float
    stage_losses: dict[int, float]
    grad_norm: float
    redraws: int
    stop: bool

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Outcome":
        """Take back what `dataclasses.asdict` gave, also by way of JSON, whose keys are strings."""
        losses = {int(stage): loss for stage, loss in values["stage_losses"].items()}
        return cls(**{**values, "stage_losses": losses})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Unread:
    """An optimizer step's outcome whose losses are still on the device, so that nobody waits for them at each step.

    Attributes:
        sums: (2·stages,) sums of losses by stage, and numbers of the slots that drew them, over ranks and slots.
        applied, grad_norm, redraws, stop: see `Outcome`.
    """

    sums: Tensor
    applied: bool
    grad_norm: float
    redraws: int
    stop: bool


def read(steps: Sequence[Unread]) -> list[Outcome]:
    """Bring the losses of steps from the device, all at one time."""
    if not steps:
        return []
    rows = torch.stack([step.sums for step in steps]).cpu()
    return [_outcome(step, *row.chunk(2)) for step, row in zip(steps, rows, strict=True)]


def _outcome(step: Unread, losses: Tensor, counts: Tensor) -> Outcome:
    return Outcome(
        applied=step.applied,
        loss=(losses.sum() / counts.sum()).item(),
        stage_losses={stage: (losses[stage] / counts[stage]).item() for stage in range(len(counts)) if counts[stage]},
        grad_norm=step.grad_norm,
        redraws=step.redraws,
        stop=step.stop,
    )


def metrics_of(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """`skipped`, their number; and of the applied steps the mean `loss`, also by stage, and the last gradient norm."""
    good = [outcome for outcome in outcomes if outcome.applied]
    values: dict[str, float] = {"skipped": len(outcomes) - len(good)}
    if good:
        values |= {"loss": mean(each.loss for each in good), "grad_norm": good[-1].grad_norm}
    for stage in sorted({stage for each in good for stage in each.stage_losses}):
        values[f"loss_stage_{stage}"] = mean(each.stage_losses[stage] for each in good if stage in each.stage_losses)
    return values


class SeenClip(NamedTuple):
    """A clip of a batch.

    Attributes:
        video: its index in the dataset.
        start: its first frame.
        failed: the last video that could not be decoded before it was drawn, `NO_VIDEO` if none.
        u: the time at which its loss was computed.
    """

    video: int
    start: int
    failed: int
    u: float


def seen_clips(batch: dict[str, Tensor], draw: Draw) -> list[SeenClip]:
    """The clips of a loader's batch, whose tensors may then go."""
    columns = [batch[name].tolist() for name in ("video", "start", "failed")]
    return list(map(SeenClip, *columns, draw.u.tolist()))


def log_failed(seen: Sequence[SeenClip], videos: Sequence[Video], known: set[int]) -> None:
    """Name videos that could not be decoded, each once. All ranks call it together.

    Args:
        seen: of this rank.
        videos: of the dataset.
        known: those that were named before; it grows.
    """
    failed = {number for each in gather_objects([clip.failed for clip in seen]) for number in each}
    for index in sorted(failed - {NO_VIDEO} - known):
        known.add(index)
        logger.warning("%s cannot be decoded; other clips are drawn in its place", videos[index].path)


def log_skipped(seen: Sequence[SeenClip], videos: Sequence[Video], step: int, outcome: Outcome) -> None:
    """Say that a step is skipped, and of which clips it was. All ranks call it together.

    Args:
        seen: of this rank.
        videos: of the dataset.
        step: counted from 0.
        outcome: of the step.
    """
    mine = [f"{videos[clip.video].path} from {clip.start} at u = {clip.u:.4f}" for clip in seen]
    lines = [f"  rank {number}: {'; '.join(samples)}" for number, samples in enumerate(gather_objects(mine))]
    logger.warning(
        "step %d is skipped on all ranks: loss %g, gradient norm %g\n%s",
        step, outcome.loss, outcome.grad_norm, "\n".join(lines),
    )  # fmt: skip


class GradientNorms:
    """Warns of outbursts, by which a run is thrown back though each step is finite and none is skipped.

    A single high norm, and norms that rise slowly, are seen in good runs too. What is usual is the median of the steps before
    the recent ones; it is learned anew by each process, and after a warning.
    """

    RECENT, HIGH, TIMES = 20, 4, 10.0  # an outburst: of so many steps at least so many are over so many times what is usual
    BEFORE, LEAST = 200, 50  # steps before these: the most that are kept, and the fewest that make anything usual

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=self.BEFORE + self.RECENT)

    def add(self, norm: float, step: int) -> None:
        """Take the norm of a step; the main rank warns.

        Args:
            norm: of the gradient before clipping; finite.
            step: that was applied, counted from 0.
        """
        self._norms.append(norm)
        before = len(self._norms) - self.RECENT
        if before < self.LEAST:
            return
        usual, recent = median(islice(self._norms, before)), list(islice(self._norms, before, None))
        high = sum(each > self.TIMES * usual for each in recent)
        if high < self.HIGH:
            return
        self._norms.clear()
        if is_main():
            logger.warning(
                "step %d: gradient norms of %d of the last %d steps are over %g times the median of the %d before them: "
                "up to %.3g, against %.3g. If the loss has risen too, try a lower train.lr, train.lr_schedule=cosine or a "
                "longer train.warmup",
                step, high, self.RECENT, self.TIMES, before, max(recent), usual,
            )  # fmt: skip
