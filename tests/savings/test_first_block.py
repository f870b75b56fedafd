"""FirstBlockCache: all layers but the first are left out where that one's residual hardly changed."""

from dataclasses import replace

import pytest
import torch
from every import LABELS, LATTE, latents, network
from led import ask, script
from torch import Tensor

from sparsevid.models.saving import STACK, Stack, Tokens
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.savings import parse_saving, saved

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


def test_a_first_layer_that_adds_nothing_tells_nothing():
    spec = replace(LATTE, layout="1P 3D")
    model = DiffusionTransformer(spec)
    model.load_state_dict(network(spec).state_dict())
    with torch.inference_mode():
        model.blocks[0].adaLN_modulation[1].weight.zero_()
        model.blocks[0].adaLN_modulation[1].bias.zero_()
        model, called = model.eval(), saved(model, parse_saving("first_block:threshold=0.1"))
        for u in (1.0, 0.8, 0.6):
            given = latents(spec) + 1 / u, torch.full((2,), 999 * u)
            assert torch.equal(called(*given, labels=LABELS), model(*given, labels=LABELS))
