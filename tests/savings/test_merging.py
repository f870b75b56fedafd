"""Merging: which tokens become one, and what of a model it touches."""

from dataclasses import replace

import pytest
import torch
from parity import disturbed
from torch import Tensor

from sparsevid.diffusion.samplers import euler
from sparsevid.diffusion.wrappers import with_guidance
from sparsevid.models.saving import Part, Place
from sparsevid.savings import parse_saving, saved
from sparsevid.savings.base import Call
from sparsevid.savings.merging import Merging, match_tokens, split_tokens
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.seeding import Purpose, keyed_generator

SPARSE = ModelSpec("1M2S1R2D", 24, 2, (4, 8, 8), sparse_grid=(2, 2, 4), learn_sigma=False, num_classes=5)
X, LABELS = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 4])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def tokens(grid: Grid, clips: int = 2, channels: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(clips * grid.t, grid.h * grid.w, channels, generator=generator)


def in_order(x: Tensor) -> Tensor:
    """Tokens (F, K, D) by their first channel."""
    return x.gather(1, x[..., :1].argsort(1).expand_as(x))


def planted(grid: Grid, ratio: float, number: int = 0) -> Merging:
    """The policy at a call of a dense model with these tokens."""
    policy = Merging(ratio=ratio).fresh("conditional")
    policy.begin(Call(number, 1.0, None, SPARSE.dense(), grid, None, seed=3))
    return policy


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.74])
@pytest.mark.parametrize("size", [(3, 8, 8), (2, 4, 6), (2, 2, 2), (2, 5, 8), (2, 3, 3), (1, 2, 7)])
def test_merging_is_tomesd_s(size, ratio):
    """Also where cells do not fill the grid; the same bits. Its sort is not stable: the order of merged tokens is open."""
    public = pytest.importorskip("tomesd.merge", reason="needs tomesd (extra `test`)")
    grid = Grid(*size)
    x, source = tokens(grid), grid.h * grid.w - (grid.h // 2) * (grid.w // 2)
    count = min(max(int(grid.h * grid.w * ratio), 1), source)
    generator = torch.Generator().manual_seed(5)
    merge, unmerge = public.bipartite_soft_matching_random2d(x, grid.w, grid.h, 2, 2, count, generator=generator)
    ours = match_tokens(x, *split_tokens(grid, torch.Generator().manual_seed(5)), count)
    assert torch.equal(in_order(ours.merge(x)), in_order(merge(x)))
    assert torch.equal(ours.unmerge(ours.merge(x)), unmerge(merge(x)))


@pytest.mark.parametrize("ratio", [0.3, 0.7])
def test_the_policy_is_tomesd_around_an_attention(ratio):
    """With the draw of the call, on the tokens that the attention is given."""
    public = pytest.importorskip("tomesd.merge", reason="needs tomesd (extra `test`)")
    grid = Grid(4, 4, 4)
    layer = disturbed(SPARSE.dense()).blocks[0]
    x = tokens(grid).unflatten(0, (2, 4))
    policy = planted(grid, ratio, number=7)
    found = policy.changed(layer.place._replace(point="attention"), Part(layer.attn, lambda: (x,)))()
    frames, generator = x.flatten(0, 1), keyed_generator(Purpose.MERGING, 3, 7)
    merge, unmerge = public.bipartite_soft_matching_random2d(frames, 4, 4, 2, 2, int(16 * ratio), generator=generator)
    torch.testing.assert_close(found.flatten(0, 1), unmerge(layer.attn(merge(frames)[:, None])[:, 0]))


def test_equal_tokens_are_merged_without_loss():
    """Where a frame holds as many different tokens as stay, attention's queries are all there."""
    grid = Grid(2, 4, 4)
    source, target = split_tokens(grid, torch.Generator().manual_seed(0))
    x = tokens(grid)
    x[:, source] = x[:, target.repeat(3)]
    match = match_tokens(x, source, target, 12)
    assert torch.allclose(match.unmerge(match.merge(x)), x, atol=1e-6)
    assert match.merge(x).shape == (4, 4, 24)


def test_a_frame_is_merged_as_it_is_alone():
    grid = Grid(4, 4, 4)
    x, split = tokens(grid), split_tokens(grid, torch.Generator().manual_seed(0))
    together = match_tokens(x, *split, 8).merge(x)
    assert torch.equal(together, torch.cat([match_tokens(each, *split, 8).merge(each) for each in x.split(1)]))


@pytest.mark.parametrize(
    "kind, axis, touched",
    [("D", "space", True), ("S", "space", True), ("D", "time", False), ("S", "time", False), ("P", "space", False)]
    + [(kind, "window", False) for kind in "MR"],
)
def test_only_attention_among_the_tokens_of_a_frame_is_touched(kind, axis, touched):
    policy = Merging().fresh("conditional")
    policy.begin(Call(0, 1.0, None, SPARSE, SPARSE.dense_grid(), Grid(2, 2, 4)))
    part = Part(lambda x: x, lambda: (tokens(Grid(4, 4, 4)).unflatten(0, (2, 4)),))
    assert (policy.changed(Place("attention", 0, kind, axis), part) is not part) == touched


@pytest.mark.parametrize("grid", [Grid(4, 1, 16), Grid(4, 16, 1), Grid(4, 1, 1)], ids=str)
def test_one_row_or_column_is_left_as_it_is(grid):
    part, place = Part(lambda x: x, lambda: (tokens(grid),)), Place("attention", 0, "D", "space")
    policy = planted(grid, 0.5)
    assert policy.changed(place, part) is part
    assert policy.macs(place, Call(0, 1.0, None, SPARSE.dense(), grid, None), 123) == 123


def test_a_draw_belongs_to_seed_and_call_alone():
    """Each grid's is the same whichever grid was asked for before."""

    def drawn(seed: int, number: int, *grids: Grid) -> list[Tensor]:
        policy = Merging().fresh("null")
        policy.begin(Call(number, 1.0, None, SPARSE, SPARSE.dense_grid(), None, seed))
        return [policy._split(grid, torch.device("cpu"))[1] for grid in grids][-1].tolist()

    large, small = Grid(4, 16, 16), Grid(2, 8, 8)
    assert drawn(0, 1, large) == drawn(0, 1, small, large)
    assert len({tuple(drawn(*key, large)) for key in ((0, 1), (0, 2), (1, 1))}) == 3


def test_a_seed_decides_what_a_sampling_draws():
    model = disturbed(SPARSE)

    def run(seed: int) -> Tensor:
        guided = with_guidance(saved(model, parse_saving("merging:ratio=0.6"), seed=seed), 2.0, 5)
        return euler(guided, X, 3, labels=LABELS)

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_both_halves_of_guidance_are_merged_alike():
    """The same label in both: one is the other, so guidance changes nothing."""
    model = disturbed(SPARSE)
    merging = parse_saving("merging:ratio=0.6")
    same = torch.full_like(LABELS, 5)
    guided, plain = (
        euler(with_guidance(saved(model, merging), 3.0, 5), X, 3, labels=same),
        euler(saved(model, merging), X, 3, labels=same),
    )
    torch.testing.assert_close(guided, plain)


def test_the_error_grows_with_the_ratio():
    model = disturbed(replace(SPARSE, layout="4D", sparse_grid=None))
    outs = [euler(saved(model, parse_saving(f"merging:ratio={ratio}")), X, 3, labels=LABELS) for ratio in (0, 0.2, 0.7)]
    errors = [(out - outs[0]).square().mean().item() for out in outs]
    assert errors[0] == 0 < errors[1] < errors[2]


@pytest.mark.parametrize("text", ["merging:ratio=0.75", "merging:ratio=1", "merging:ratio=-0.1"])
def test_a_ratio_that_cannot_be_is_refused(text):
    with pytest.raises(ValueError, match=r"saving merging: ratio = .* (below 0.75|at least 0)"):
        parse_saving(text)
