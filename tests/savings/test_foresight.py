"""Foresight: layers computed by their own change and a threshold of their own."""

import pytest
import torch
from every import CASES, FAMILIES, LATTE, counted
from led import SAMPLINGS, ask_planted, computed, lead

from sparsevid.diffusion.samplers import sampler_times
from sparsevid.models.saving import Place
from sparsevid.savings import parse_saving
from sparsevid.savings.base import Call, SavingError

LAYERS = [Place("layer", index, "D", "space" if index % 2 == 0 else "time") for index in range(6)]


def wandering(count: int, seed: int = 0):
    """Layers' outputs that change by steps of different sizes, all in all by less and less."""
    draw = torch.Generator().manual_seed(seed)
    steps = torch.rand(count, len(LAYERS), generator=draw) * torch.linspace(1, 0.4, count)[:, None]
    walk = torch.cumsum(steps[..., None, None] * torch.randn(count, len(LAYERS), 2, 7, generator=draw), 0)
    return lambda place, number: walk[number, place.index]


def straight(outputs, times: list[float], threshold: float, warmup: float, every: int, index: int) -> list[int]:
    """Which calls compute a layer, as the paper has it: thresholds λ, the metric δ, and a cache for each layer."""
    place, cache, changes, delta, since, numbers = LAYERS[index], None, [], None, 0, []
    for number, u in enumerate(times):
        warm = u > times[0] - warmup + 1e-6 or not changes
        since = 0 if warm else since + 1
        bound = threshold * sum(change / 10**k for k, change in enumerate(changes[:-4:-1]))
        if warm or since % every == 0 or delta >= bound:
            x = outputs(place, number).double()
            if cache is not None:
                delta = (x - cache).square().mean().item()
                changes += [delta] if warm else []
            cache = x
            numbers.append(number)
    return numbers


@pytest.mark.parametrize("sampler, steps", [*SAMPLINGS, ("ddim", 30), ("euler", 3)])
@pytest.mark.parametrize("threshold, warmup, every", [(0.5, 0.15, 2), (1.0, 0.3, 4), (2.0, 0.15, 3), (0.8, 0.0, 10)])
def test_decisions_are_those_of_a_straight_writing(sampler, steps, threshold, warmup, every):
    times = sampler_times(sampler, steps)
    outputs = wandering(len(times))
    calls, _ = lead(f"foresight:threshold={threshold},warmup={warmup},every={every}", times, outputs, LAYERS)
    found = [computed(calls, place) for place in LAYERS]
    assert found == [straight(outputs, times, threshold, warmup, every, index) for index in range(len(LAYERS))]
    for place, numbers in zip(LAYERS, found, strict=True):
        for number, steps_ in enumerate(calls):
            newest = max(each for each in numbers if each <= number)
            assert torch.equal(steps_[place].output, outputs(place, newest))
    if len(times) == 30 and threshold >= 1:
        assert len({tuple(each) for each in found}) > 1 and all(len(each) < 30 for each in found)


def test_a_threshold_is_the_weighted_sum_of_the_last_three_changes_of_the_warm_up():
    """Levels whose squares of differences are 100, 16, 4, 1, 9 in the warm-up: λ = 9 + 1/10 + 4/100; then a change of 4.6."""
    levels = [0.0, 10.0, 14.0, 16.0, 17.0, 20.0, 20 + 4.6**0.5, 0.0]
    times = [1 - 0.1 * number for number in range(8)]
    for threshold, reuses in ((4.59 / 9.14, False), (4.61 / 9.14, True)):
        calls, _ = lead(
            f"foresight:threshold={threshold},warmup=0.55,every=100",
            times,
            lambda place, n: torch.full((2, 3), levels[n]),
            LAYERS[:1],
        )
        assert computed(calls, LAYERS[0]) == ([0, 1, 2, 3, 4, 5, 6] if reuses else list(range(8)))


def test_each_layer_is_compared_with_itself_alone():
    """Layers far from each other, of which one has come to rest: it alone is reused."""

    def outputs(place: Place, number: int) -> torch.Tensor:
        rests = place.index == 3
        return torch.full((2, 4), 1000.0 * place.index + (min(number, 3) if rests else number))

    calls, _ = lead("foresight:threshold=0.5,warmup=0.35,every=5", [1 - 0.1 * n for n in range(10)], outputs, LAYERS)
    assert [len(computed(calls, place)) for place in LAYERS] == [10, 10, 10, 6, 10, 10]


def test_sparse_layers_are_computed_where_their_grid_changes_and_keep_their_threshold():
    policy, places = (
        parse_saving("foresight:threshold=9,warmup=0.25,every=100").fresh("null"),
        [Place("layer", index, kind, "space") for index, kind in enumerate("PMSRD")],
    )
    found = []
    for number in range(8):
        policy.begin(Call(number, 1 - 0.1 * number, None, LATTE, LATTE.dense_grid(), None))
        tokens = 4
        if number >= 5:
            tokens = 6
            if number == 5:
                policy.forget("MS")
        shapes = {place: (1, tokens) if place.kind in "MS" else (1, 8) for place in places}
        steps = {place.kind: ask_planted(policy, place, torch.full(shapes[place], float(number))) for place in places}
        assert all(steps[place.kind].output.shape == shapes[place] for place in places)
        found.append("".join(kind for kind, step in steps.items() if step.computed))
    assert found == ["PMSRD"] * 3 + ["", "", "MS", "", ""]


def test_the_clips_of_a_half_share_the_decision():
    """One clip that moves more and more has one that has come to rest computed too."""
    rest, moving = [0, 1, 2, *[2] * 7], [1.5**number for number in range(10)]
    times = [1 - 0.1 * number for number in range(10)]
    for clips, expected in (((rest, rest), [0, 1, 2, 3]), ((rest, moving), list(range(10)))):
        outputs = torch.tensor(clips).float().T[..., None]
        calls, _ = lead("foresight:warmup=0.25,every=100", times, lambda place, n, made=outputs: made[n], LAYERS[:1])
        assert computed(calls, LAYERS[0]) == expected


@pytest.mark.parametrize("name, sampler", CASES)
def test_a_tiny_threshold_gives_the_same_bits_and_a_large_one_reuses_all_between(name, sampler):
    spec = FAMILIES[name]
    plain, whole = counted(spec, [], sampler, steps=6, interval=(0.3, 0.85))
    tiny, tally = counted(spec, ["foresight:threshold=1e-30"], sampler, steps=6, interval=(0.3, 0.85))
    assert torch.equal(tiny, plain) and tally == whole
    large, tally = counted(spec, ["foresight:threshold=1e9"], sampler, steps=6, interval=(0.3, 0.85))
    assert large.isfinite().all() and not torch.equal(large, plain) and tally.share < 0.9 and tally.macs < whole.macs


def test_what_is_no_share_is_refused():
    with pytest.raises(SavingError, match="saving foresight: warmup = 5.0; it is a share of the sampling, at most 1"):
        parse_saving("foresight:warmup=5")
    assert all(parse_saving(f"foresight:{text}").changes_nothing for text in ("threshold=0", "every=1"))
