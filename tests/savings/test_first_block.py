"""FirstBlockCache: all layers but the first are left out where that one's residual hardly changed."""

import pytest
import torch
from led import ask, script
from torch import Tensor

from sparsevid.models.saving import STACK, Stack, Tokens
from sparsevid.savings import parse_saving

CALLS = script(40)


def led(threshold: float) -> tuple[list[int], list[Tensor]]:
    """Calls that computed all, and what the stack gave; the first layer adds the script's `modulated`, the others `added`."""
    policy, computed, outputs = parse_saving(f"first_block:threshold={threshold}").fresh("conditional"), [], []
    for number, (x, first, added) in enumerate(CALLS):
        part = Stack(
            lambda x, f=first: Tokens(x + f),
            lambda tokens, a=added: tokens.x + a,
            lambda *_: pytest.fail("nobody asked for the modulated input"),
            lambda x=x: (x,),
        )
        step = ask(policy, STACK, part)
        computed += [number] if step.computed else []
        outputs.append(step.output)
    return computed, outputs


@pytest.mark.parametrize("threshold", [1e-30, 0.05, 0.2, 0.5, 1e9])
def test_decisions_are_those_of_a_straight_writing(threshold):
    computed, outputs = led(threshold)
    expected, then = [], None
    for number, (x, first, added) in enumerate(CALLS):
        first = x + first - x  # as it is known from the first layer's output
        if then is None or (first - then[0]).abs().mean() / then[0].abs().mean() >= threshold:
            then = (first, added)
            expected.append(number)
        torch.testing.assert_close(outputs[number], x + first + then[1])
    assert computed == expected


def test_a_larger_threshold_computes_less_often():
    counts = [len(led(threshold)[0]) for threshold in (1e-30, 0.1, 0.2, 0.5, 1e9)]
    assert counts == sorted(counts, reverse=True) and counts[0] == len(CALLS) and counts[-1] == 1
