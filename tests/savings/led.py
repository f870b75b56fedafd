"""Policies that are led by hand through the calls of a sampling: at parts with planted outputs, or at a scripted stack."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from every import DENSE, LATTE
from torch import Tensor

from sparsevid.models.saving import STACK, Part, Place, Stack, Tokens
from sparsevid.savings import parse_saving
from sparsevid.savings.base import Call, Policy

SPACE, TIME, WINDOW, TEXT = (
    Place("attention", index, "D", axis) for index, axis in enumerate(("space", "time", "window", "text"))
)
SAMPLINGS = [("euler", 12), ("heun", 8), ("ddim", 12)]  # samplers and steps


class Step(NamedTuple):
    """What stood for a part at a call, and whether it was computed."""

    computed: bool
    output: Tensor


def lead(
    text: str,
    times: Sequence[float],
    outputs: Callable[[Place, int], Tensor],
    places: Sequence[Place],
    half: str = "conditional",
) -> tuple[list[dict[Place, Step]], Policy]:
    """Lead a saving through calls at these times, in each of which every place has its planted output.

    Returns:
        What stood for each place at each call, and the policy at the end.
    """
    policy, calls = parse_saving(text).fresh(half), []
    for number, u in enumerate(times):
        policy.begin(Call(number, u, len(times), LATTE, LATTE.dense_grid(), None))
        calls.append({place: ask_planted(policy, place, outputs(place, number)) for place in places})
    return calls, policy


def ask_planted(policy: Policy, place: Place, planted: Tensor) -> Step:
    """One place at a call that has begun, where it would compute `planted`."""
    return ask(policy, place, Part(lambda: planted, tuple))


def ask(policy: Policy, place: Place, part: Part) -> Step:
    """What stands for a part at a call that has begun: what the policy reuses, or what is computed and told to it."""
    output = policy.reuse(place, part)
    if output is not None:
        return Step(False, output)
    output = part()
    policy.keep(place, part, output)
    return Step(True, output)


def computed(calls: Sequence[dict[Place, Step]], place: Place) -> list[int]:
    """Numbers of the calls that computed it."""
    return [number for number, steps in enumerate(calls) if steps[place].computed]


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


def lead_stack(
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
        step = ask(own, STACK, part)
        computed += [number] if step.computed else []
        outputs.append(step.output)
    return computed, outputs
