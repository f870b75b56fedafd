"""What became of optimizer steps, the same on all ranks, and the metrics of several."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor


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
