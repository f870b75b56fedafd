"""What wraps a model while sampling: model → model. They compose: guidance outside, then token schedule, then step reuse.

Guidance in an interval and the token schedule decide by the time of a call. Samplers tell it as a number (`TimedModel`); a
call by hand, `model(x, t, **cond)`, reads it from `t`.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from sparsevid.diffusion.samplers import Model, TimedModel, call_at
from sparsevid.models.transformer import SparseTokens
from sparsevid.sparsity.schedule import TIME_ERROR, TokenSchedule, stage_at
from sparsevid.sparsity.times import LAST_TIMESTEP

Choice = TypeVar("Choice", bool, int)


def guidance_acts(interval: tuple[float, float] | None, u: float) -> bool:
    """Whether guidance acts at diffusion time `u`: within its interval, bounds included, or always if there is none."""
    return interval is None or interval[0] - TIME_ERROR <= u <= interval[1] + TIME_ERROR


def in_float32(model: Model, dtype: torch.dtype) -> Model:
    """A model of weights of another type, for samplers that compute in float32."""

    def called(x: Tensor, t: Tensor, **cond) -> Tensor:
        return model(x.to(dtype), t, **cond).float()

    return called


def with_token_schedule(model: Model, schedule: TokenSchedule) -> TimedModel:
    """Call `model` with the sparse grid that the schedule has at the time of the call.

    The wrapped model raises ValueError if the times of a batch lie in different stages: one call has one grid.
    """

    def scheduled(x: Tensor, t: Tensor, u: float | None, **cond) -> Tensor:
        stage = _decide(lambda time: stage_at(schedule, time), t, u, "in different stages of the token schedule")
        return model(x, t, grid=schedule.stages[stage].grid, **cond)

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

    def acts(t: Tensor, u: float | None) -> bool:
        sides = f"on both sides of the guidance interval {interval}"
        return interval is None or _decide(lambda time: guidance_acts(interval, time), t, u, sides)

    def guided(x: Tensor, t: Tensor, u: float | None, *, labels: Tensor, **cond) -> Tensor:
        if scale == 1.0 or not acts(t, u):
            return call_at(model, x, u, t, labels=labels, **cond)
        both = torch.cat([labels, torch.full_like(labels, null_label)])
        output = call_at(model, torch.cat([x, x]), u, torch.cat([t, t]), labels=both, **cond)
        conditional, unconditional = output.chunk(2)
        count = x.shape[1] if channels is None else channels
        mixed = torch.lerp(unconditional[:, :count], conditional[:, :count], scale)
        return torch.cat([mixed, conditional[:, count:]], dim=1)

    return TimedModel(guided)


def with_step_reuse(model: Model, every: int) -> Model:
    """Compute the sparse layers at every `every`-th call only, and reuse what they changed in between.

    The early, sparse part of a model changes slowly over neighbouring sampling steps. So layers M and S run at a refresh and
    are passed over at the calls that follow; pooling, R and the dense layers run always. A refresh also comes wherever the
    sparse grid or the shape of x changes: at a new stage of the token schedule, or where guidance begins or ends.

    The wrapped model remembers its calls: make one for each batch, and call it in the order of sampling.

    Args:
        model: a DiffusionTransformer, or a function that takes its `grid` and `reuse`. Later calls of it leave the tensors
            that it returned alone.
        every: calls from one refresh to the next; 1 is no reuse.

    Returns:
        A model that raises ValueError at its first call if the model has no sparse layers.

    Raises:
        ValueError: `every` below 1.
    """
    if every < 1:
        raise ValueError(f"sparse layers are computed at every n-th call, n at least 1, got {every}")
    if every == 1:
        return model
    kept: tuple[SparseTokens, ...] = ()
    used, belongs = 0, None

    def reusing(x: Tensor, t: Tensor, *, grid: Sequence[int] | None = None, **cond) -> Tensor:
        nonlocal kept, used, belongs
        now = (x.shape, grid if grid is None else tuple(grid))
        if used % every == 0 or now != belongs:
            output, fresh = model(x, t, grid=grid, reuse=(), **cond)
            kept, used, belongs = tuple(fresh), 1, now
            return output
        used += 1
        return model(x, t, grid=grid, reuse=kept, **cond)[0]

    return reusing


def _decide(choose: Callable[[float], Choice], t: Tensor, u: float | None, apart: str) -> Choice:
    """What `choose` makes of the diffusion time of a call: `u`, or what is read from `t` (B,), which has to give one answer.

    Raises:
        ValueError: the times in `t` give different answers, that is, they lie `apart`.
    """
    if u is not None:
        return choose(u)
    low, high = (value / LAST_TIMESTEP for value in torch.stack([t.min(), t.max()]).tolist())
    choice = choose(low)
    if choice != choose(high):
        raise ValueError(f"diffusion times from {low:.4f} to {high:.4f} lie {apart}")
    return choice
