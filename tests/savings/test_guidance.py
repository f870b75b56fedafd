"""What the half without a class is spared: calls, sparse layers, tokens."""

from dataclasses import replace

import pytest
import torch
from every import FAMILIES, LABELS, STEPS, latents, network, sample
from torch import Tensor

from sparsevid.diffusion import NULL
from sparsevid.diffusion.samplers import euler
from sparsevid.models.saving import Part, Place
from sparsevid.savings import parse_saving
from sparsevid.sparsity.grid import Grid

SPARSE = {name: spec for name, spec in FAMILIES.items() if spec.is_sparse}
FLOW = {name: replace(spec, learn_sigma=False) for name, spec in FAMILIES.items()}


class PassedOver:
    """A `Saving` for which M and S give what they take."""

    points, differences = ("layer",), False

    def __call__(self, place: Place, part: Part) -> Tensor:
        return part.inputs()[0] if place.kind in "MS" else part()


def by_hand(spec, scale: float = 2.0, **null) -> Tensor:
    """Euler's method, with both halves called by themselves at the spec's own grid; `null` are the other half's arguments."""
    model, none = network(spec), torch.full_like(LABELS, spec.num_classes)

    def guided(x, t, *, labels, grid=None):
        conditional, unconditional = model(x, t, labels, grid=grid), model(x, t, none, **({"grid": grid} | null))
        return torch.lerp(unconditional, conditional, scale)

    return euler(guided, latents(spec), STEPS, labels=LABELS)


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("sampler", ["euler", "ddim"])
def test_the_other_halfs_own_grid_is_plain_guidance(name, sampler):
    """Equal to the bit, also where the given grid has more tokens than a stage of the schedule."""
    spec = FAMILIES[name]
    dense = "x".join(map(str, spec.dense_grid()))
    assert torch.equal(sample(spec, [f"guidance:grid={dense}"], sampler), sample(spec, None, sampler))


@pytest.mark.parametrize("name", SPARSE)
@torch.no_grad()
def test_another_grid_is_that_of_two_calls(name):
    spec = FLOW[name]
    found = sample(spec, ["guidance:grid=1x1x1"], scheduled=False)
    torch.testing.assert_close(found, by_hand(spec, grid=(1, 1, 1)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, by_hand(spec), atol=1e-4)


@pytest.mark.parametrize("name", SPARSE)
@torch.no_grad()
def test_without_sparse_layers(name):
    """The half with a class is as it was; M and S of the other run for none of its clips."""
    spec = FLOW[name]
    rows = []
    model = network(spec, torch.float32)
    handles = [
        block.register_forward_hook(lambda _, args, out: rows.append(len(out)))
        for kind, block in zip(model.kinds, model.blocks, strict=True)
        if kind in "MS"
    ]
    found = sample(spec, ["guidance:sparse=off"], scheduled=False)
    for handle in handles:
        handle.remove()
    assert rows == [len(LABELS)] * STEPS * len(handles)

    torch.testing.assert_close(found, by_hand(spec, saving=PassedOver()), rtol=1e-4, atol=1e-5)


def test_between_calls_the_last_difference_stands():
    policy = parse_saving("guidance:every=3").fresh(NULL)
    draw = torch.Generator().manual_seed(0)
    difference = None
    for number in range(8):
        conditional, null = torch.randn(2, 2, 3, generator=draw)
        if policy.computes_null(None):
            assert number % 3 == 0
            difference = conditional - null
            assert policy.null_output(None, conditional, null) is null
        else:
            assert number % 3
            torch.testing.assert_close(policy.null_output(None, conditional, None), conditional - difference)


@torch.no_grad()
def test_the_half_is_computed_at_every_nth_call():
    spec, seen = FLOW["sparse Latte"], []
    model = network(spec, torch.float32)
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    sample(spec, ["guidance:every=2"], steps=6)
    handle.remove()
    assert seen == [4, 2] * 3


def test_a_grid_counts_where_the_other_half_has_more_tokens():
    policy = parse_saving("guidance:grid=2x3x3")
    assert policy.null_grid(Grid(4, 3, 3)) == (2, 3, 3) and policy.null_grid(Grid(2, 2, 2)) == (2, 2, 2)
