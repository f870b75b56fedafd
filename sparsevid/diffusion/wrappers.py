"""What wraps a model while sampling: model → model. They compose: guidance outside, then token schedule, then savings.

Guidance in an interval, the token schedule and savings decide by the time of a call. Samplers tell it as a number
(`TimedModel`); a call by hand, `model(x, t, **cond)`, reads it from `t`.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from sparsevid.diffusion.samplers import BOTH_HALVES, Model, TimedModel, Told, call_at
from sparsevid.sparsity.schedule import TIME_ERROR, TokenSchedule, stage_at
from sparsevid.sparsity.times import LAST_TIMESTEP

Choice = TypeVar("Choice")


def guidance_acts(interval: tuple[float, float] | None, u: float) -> bool:
    """Whether guidance acts at diffusion time `u`: within its interval, bounds included, or always if there is none."""
    return interval is None or interval[0] - TIME_ERROR <= u <= interval[1] + TIME_ERROR


def in_float32(model: Model, dtype: torch.dtype) -> TimedModel:
    """A model of weights of another type, for samplers that compute in float32."""

    def called(x: Tensor, t: Tensor, told: Told, **cond) -> Tensor:
        return call_at(model, x.to(dtype), t, told, **cond).float()

    return TimedModel(called)


def with_token_schedule(model: Model, schedule: TokenSchedule) -> TimedModel:
    """Call `model` with the sparse grid that the schedule has at the time of the call.

    The wrapped model raises ValueError if the times of a batch lie in different stages: one call has one grid.
    """

    def scheduled(x: Tensor, t: Tensor, told: Told, **cond) -> Tensor:
        stage = decide(lambda time: stage_at(schedule, time), t, told, "in different stages of the token schedule")
        return call_at(model, x, t, told, grid=schedule.stages[stage].grid, **cond)

    return TimedModel(scheduled)


def with_guidance(
    model: Model,
    scale: float,
    null_label: int,
    channels: int | None = None,
    interval: tuple[float, float] | None = None,
) -> TimedModel:
    """Classifier-free guidance (arXiv 2207.12598): unconditional + scale·(conditional − unconditional), in one batch.

    Args:
        model: takes `labels`.
        scale: 1 is no guidance.
        null_label: the label that means "no class".
        channels: guide the first `channels` output channels only, and keep the conditional values of the others. None guides
            the channels of x: all but a learned variance. (DiT's published samples guide three of four.)
        interval: (low, high), diffusion times between which guidance acts, both included; elsewhere the conditional pass runs
            alone, at half the cost (arXiv 2404.07724). None: at all times.

    Returns:
        A model that needs `labels` (B,). It raises ValueError if the times of a batch lie on both sides of a bound.

    Raises:
        ValueError: an interval that is not 0 ≤ low ≤ high ≤ 1, or no channel to guide.
    """
    if interval is not None and not 0.0 <= interval[0] <= interval[1] <= 1.0:
        raise ValueError(f"a guidance interval is (low, high) with 0 ≤ low ≤ high ≤ 1, got {tuple(interval)}")
    if channels is not None and channels < 1:
        raise ValueError(f"guidance acts on at least 1 channel, got {channels}")

    def acts(t: Tensor, told: Told) -> bool:
        sides = f"on both sides of the guidance interval {interval}"
        return interval is None or decide(lambda time: guidance_acts(interval, time), t, told, sides)

    def guided(x: Tensor, t: Tensor, told: Told, *, labels: Tensor, **cond) -> Tensor:
        if scale == 1.0 or not acts(t, told):
            return call_at(model, x, t, told, labels=labels, **cond)
        both, told = torch.cat([labels, torch.full_like(labels, null_label)]), told._replace(halves=BOTH_HALVES)
        output = call_at(model, torch.cat([x, x]), torch.cat([t, t]), told, labels=both, **cond)
        conditional, unconditional = output.chunk(2)
        count = x.shape[1] if channels is None else channels
        mixed = torch.lerp(unconditional[:, :count], conditional[:, :count], scale)
        return torch.cat([mixed, conditional[:, count:]], dim=1)

    return TimedModel(guided)


def decide(choose: Callable[[float], Choice], t: Tensor, told: Told, apart: str) -> Choice:
    """What `choose` makes of the diffusion time of a call: as told, or as read from `t` (B,), which has to give one answer.

    Raises:
        ValueError: the times in `t` give different answers, that is, they lie `apart`.
    """
    if told.u is not None:
        return choose(told.u)
    low, high = (value / LAST_TIMESTEP for value in torch.stack([t.min(), t.max()]).tolist())
    choice = choose(low)
    if choice != choose(high):
        raise ValueError(f"diffusion times from {low:.4f} to {high:.4f} lie {apart}")
    return choice
