"""Policies at the stack that are led through scripted calls, and fits that are made up."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsevid.models.saving import STACK, Stack, Tokens
from sparsevid.savings.base import Call, Policy
from sparsevid.savings.fits import Fit, plain
from sparsevid.sparsity.spec import ModelSpec

DENSE = ModelSpec("3D", 16, 2, (1, 4, 4), learn_sigma=False)


class Scripted(NamedTuple):
    """A call: input of the stack, its first layer's modulated input, and what all layers add, each (B, 1, N, D)."""

    x: Tensor
    modulated: Tensor
    added: Tensor


def script(count: int, seed: int = 0, step: float = 0.3, clips: int = 2) -> list[Scripted]:
    """Calls whose tensors wander, in steps of different length."""
    draw = torch.Generator().manual_seed(seed)
    now = torch.randn(3, clips, 1, 5, 4, generator=draw)
    calls = []
    for _ in range(count):
        calls.append(Scripted(*now))
        now = now + step * torch.rand((), generator=draw) * torch.randn(now.shape, generator=draw)
    return calls


def led_through(
    policy: Policy, calls: Sequence[Scripted], half: str = "conditional", numbers: Sequence[int] | None = None, count: int = 0
) -> tuple[list[int], list[Tensor]]:
    """Which of the calls the policy computes, and the stack's output at each.

    Args:
        numbers: of the calls in their sampling of `count`, if not all.
    """
    own, computed, outputs = policy.fresh(half), [], []
    for index, number in enumerate(range(len(calls)) if numbers is None else numbers):
        x, modulated, added = calls[index]
        part = Stack(lambda x: Tokens(x), lambda t, a=added: t.x + a, lambda _, m=modulated: m, lambda x=x: (x,))
        own.begin(Call(number, 1.0, count or len(calls), DENSE, DENSE.dense_grid(), None))
        output = own.reuse(STACK, part)
        if output is None:
            output = part()
            own.keep(STACK, part, output)
            computed.append(number)
        outputs.append(output)
    return computed, outputs


def made_up(saving: str, spec: ModelSpec = DENSE, **values: list[float]) -> Fit:
    """A fit of these values."""
    return Fit(saving, values, {"points": 0, "r2": 0.0, "correlation": 0.0}, [], plain(spec.to_dict()), None, {})
