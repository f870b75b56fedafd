"""What became of optimizer steps, the same on all ranks, and the metrics of several."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any


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


def metrics_of(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """`skipped`, their number; and of the applied steps the mean `loss`, also by stage, and the last gradient norm."""
    good = [outcome for outcome in outcomes if outcome.applied]
    values: dict[str, float] = {"skipped": len(outcomes) - len(good)}
    if good:
        values |= {"loss": mean(each.loss for each in good), "grad_norm": good[-1].grad_norm}
    for stage in sorted({stage for each in good for stage in each.stage_losses}):
        values[f"loss_stage_{stage}"] = mean(each.stage_losses[stage] for each in good if stage in each.stage_losses)
    return values
