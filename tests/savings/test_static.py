"""FORA: attentions and MLPs at every n-th call, reused before their gates."""

import pytest
import torch
from every import FAMILIES, network
from led import SPACE, TIME, computed, lead

from sparsevid.models.saving import Place
from sparsevid.savings import parse_saving, saved

PLACES = (SPACE, TIME, Place("mlp", 0, "D", "space"))


@pytest.mark.parametrize("every", [2, 3, 5])
def test_at_every_nth_call(every):
    calls, _ = lead(f"static:every={every}", [1 - n / 12 for n in range(12)], lambda place, n: torch.tensor([n]), PLACES)
    for place in PLACES:
        assert computed(calls, place) == list(range(0, 12, every))
        assert [steps[place].output.item() for steps in calls] == [n // every * every for n in range(12)]


@torch.no_grad()
def test_gates_are_those_of_the_call():
    """A reuse is the whole model at the call's own time, with attentions and MLPs giving what they gave before."""
    model = network(FAMILIES["dense Latte"])
    called = saved(model, parse_saving("static:every=2"))
    x, labels = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([2])
    modules, given = [getattr(block, name) for block in model.blocks for name in ("attn", "mlp")], {}
    handles = [module.register_forward_hook(lambda module, _, output: given.update({module: output})) for module in modules]
    first = called(x, torch.tensor([900.0]), labels=labels)
    handles += [module.register_forward_hook(lambda module, *_, then=dict(given): then[module]) for module in modules]
    expected = model(x, torch.tensor([100.0]), labels)
    for handle in handles:
        handle.remove()
    second = called(x, torch.tensor([100.0]), labels=labels)
    assert torch.equal(second, expected) and not torch.allclose(first, second, atol=1e-4)
