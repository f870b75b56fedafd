"""What wraps a model while sampling: model → model. They compose: guidance outside, then token schedule, then savings.

Guidance in an interval, the token schedule and savings decide by the time of a call. Samplers tell it as a number
(`TimedModel`); a call by hand, `model(x, t, **cond)`, reads it from `t`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparsevid.diffusion import BOTH_HALVES
from sparsevid.diffusion.null_text import NullText, Prompts
from sparsevid.diffusion.samplers import Model, TimedModel, Told, call_at
from sparsevid.sparsity.schedule import LAST_TIMESTEP, TIME_ERROR, TokenSchedule, stage_at

Choice = TypeVar("Choice")


def guidance_acts(interval: tuple[float, float] | None, u: float) -> bool:
    """Whether guidance acts at diffusion time `u`: within its interval, bounds included, or always if there is none."""
    return interval is None or interval[0] - TIME_ERROR <= u <= interval[1] + TIME_ERROR


def in_float32(model: Model, dtype: torch.dtype) -> TimedModel:
    """A model of weights of another type, for samplers that compute in float32."""

    def called(x: Tensor, t: Tensor, told: Told, **cond: Any) -> Tensor:
        return call_at(model, x.to(dtype), t, told, **cond).float()

    return TimedModel(called)


def with_token_schedule(model: Model, schedule: TokenSchedule) -> TimedModel:
    """Call `model` with the sparse grid that the schedule has at the time of the call.

    The wrapped model raises ValueError if the times of a batch lie in different stages: one call has one grid.
    """

    def scheduled(x: Tensor, t: Tensor, told: Told, **cond: Any) -> Tensor:
        stage = decide(lambda time: stage_at(schedule, time), t, told, "in different stages of the token schedule")
        return call_at(model, x, t, told, grid=schedule.stages[stage].grid, **cond)

    return TimedModel(scheduled)


def with_guidance(
    model: Model,
    scale: float,
    null_label: int | None = None,
    channels: int | None = None,
    interval: tuple[float, float] | None = None,
    *,
    null_text: NullText | None = None,
) -> TimedModel:
    """Classifier-free guidance (arXiv 2207.12598): unconditional + scale·(conditional − unconditional), in one batch.

    Args:
        model: takes `labels`, or `text`.
        scale: 1 is no guidance.
        null_label: the label that means "no class", of a model of classes.
        channels: guide the first `channels` output channels only, and keep the conditional values of the others. None guides
            the channels of x: all but a learned variance. (DiT's published samples guide three of four.)
        interval: (low, high), diffusion times between which guidance acts, both included; elsewhere the conditional pass runs
            alone, at half the cost (arXiv 2404.07724). None: at all times.
        null_text: what stands for "no prompt", for a model of text.

    Returns:
        A model that needs `labels` (B,), or `text` with its `text_mask` (B, L). It raises ValueError if the times of a batch
        lie on both sides of a bound.

    Raises:
        ValueError: an interval that is not 0 ≤ low ≤ high ≤ 1, no channel to guide, or not one of the two nulls.
    """
    if null_label is not None and null_text is None:
        both_halves = _both_labels(null_label)
    elif null_text is not None and null_label is None:
        both_halves = _both_texts(null_text)
    else:
        raise ValueError(
            "guidance needs what stands for nothing: null_label of a model of classes, or null_text of one of text"
        )
    if interval is not None and not 0.0 <= interval[0] <= interval[1] <= 1.0:
        raise ValueError(f"a guidance interval is (low, high) with 0 ≤ low ≤ high ≤ 1, got {tuple(interval)}")
    if channels is not None and channels < 1:
        raise ValueError(f"guidance acts on at least 1 channel, got {channels}")

    def acts(t: Tensor, told: Told) -> bool:
        sides = f"on both sides of the guidance interval {interval}"
        return interval is None or decide(lambda time: guidance_acts(interval, time), t, told, sides)

    def guided(x: Tensor, t: Tensor, told: Told, **cond: Any) -> Tensor:
        if scale == 1.0 or not acts(t, told):
            return call_at(model, x, t, told, **cond)
        told = told._replace(halves=BOTH_HALVES)
        output = call_at(model, torch.cat([x, x]), torch.cat([t, t]), told, **both_halves(**cond))
        conditional, unconditional = output.chunk(2)
        count = x.shape[1] if channels is None else channels
        mixed = torch.lerp(unconditional[:, :count], conditional[:, :count], scale)
        return torch.cat([mixed, conditional[:, count:]], dim=1)

    return TimedModel(guided)


def _both_labels(null: int) -> Callable[..., dict]:
    """What both halves are called with, of what the conditional one is: labels, then as many nulls."""

    def both(*, labels: Tensor, **cond: Any) -> dict:
        return {"labels": torch.cat([labels, torch.full_like(labels, null)]), **_twice(cond)}

    return both


def _both_texts(null: NullText) -> Callable[..., dict]:
    """The same of prompts. All steps of a sampling have the same ones: both halves are made of them once."""
    made: list = []  # prompts and mask, and what was made of them

    def both(*, text: Prompts, text_mask: Tensor | None = None, **cond: Any) -> dict:
        if not made or made[0] is not text or made[1] is not text_mask:
            made[:] = text, text_mask, null.beside(text, text_mask)
        return {"text": made[2][0], "text_mask": made[2][1], **_twice(cond)}

    return both


def _twice(cond: dict) -> dict:
    """What else is given for each clip, for both halves."""
    return {name: torch.cat([value, value]) if isinstance(value, Tensor) else value for name, value in cond.items()}


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
