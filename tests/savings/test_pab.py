"""Pyramid Attention Broadcast: attentions reused by their axis in the middle of sampling, and some MLPs."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from every import CASES, FAMILIES, LATTE, alone, counted, network
from led import SAMPLINGS, SPACE, TEXT, TIME, WINDOW, computed, lead

from sparsevid.diffusion.samplers import euler, sampler_times
from sparsevid.models.saving import Place
from sparsevid.savings import parse_saving, saved
from sparsevid.sparsity.schedule import LAST_TIMESTEP

ATTENTIONS = (SPACE, TIME, WINDOW, TEXT)
MLPS = [Place("mlp", index, "D", "space" if index % 2 == 0 else "time") for index in range(8)]
PUBLISHED = [k / LAST_TIMESTEP for k in range(980, -1, -20)]  # timesteps of the sampler that the marks are of


def planted(place: Place, number: int) -> torch.Tensor:
    return torch.full((2, 3), 100.0 * place.index + number)


@pytest.mark.parametrize("sampler, steps", [*SAMPLINGS, ("ddpm", 50), ("euler", 3)])
@pytest.mark.parametrize("ranges", ({"spatial": 2, "temporal": 3, "text": 6}, {"spatial": 5, "temporal": 1, "text": 2}))
def test_attentions_follow_the_rule(sampler, steps, ranges):
    times = sampler_times(sampler, steps)
    calls, _ = lead("pab:" + ",".join(f"{name}={value}" for name, value in ranges.items()), times, planted, ATTENTIONS)
    own = dict(zip(ATTENTIONS, (ranges[name] for name in ("spatial", "temporal", "spatial", "text")), strict=True))
    for place, calls_apart in own.items():
        cache = None
        for count, u in enumerate(times):
            broadcast = count % calls_apart != 0 and 100 < 999 * u < 800 and cache is not None
            cache = cache if broadcast else count
            step = calls[count][place]
            assert step.computed != broadcast and torch.equal(step.output, planted(place, cache))


def test_mlps_follow_the_rule_at_the_published_timesteps():
    calls, _ = lead("pab", PUBLISHED, planted, MLPS)
    for place in MLPS:
        reused = [round(999 * u) for number, u in enumerate(PUBLISHED) if not calls[number][place].computed]
        assert reused == ([700, 680, 620, 600, 540, 520, 460, 440, 380, 360] if place.index <= 4 else [])
        for mark in (720, 640, 560, 480, 400) if reused else ():
            at = PUBLISHED.index(mark / LAST_TIMESTEP)
            assert all(torch.equal(calls[at + i][place].output, planted(place, at)) for i in (0, 1, 2))
    assert computed(lead("pab:mlp=off", PUBLISHED, planted, MLPS)[0], MLPS[0]) == list(range(len(PUBLISHED)))


@pytest.mark.parametrize("sampler, steps", [*SAMPLINGS, ("ddim", 250), ("ddpm", 20)])
def test_with_other_steps_the_first_call_at_or_below_a_mark_counts(sampler, steps):
    times = sampler_times(sampler, steps)
    calls, _ = lead("pab", times, planted, MLPS[:1])
    marks, left = [720, 640, 560, 480, 400], 0
    for number, u in enumerate(times):
        t, at_mark = round(999 * u, 3), False
        while marks and t <= marks[0]:
            marks.pop(0)
            at_mark = True
        assert calls[number][MLPS[0]].computed == (at_mark or left == 0)
        left = 2 if at_mark else max(0, left - 1)


def attentions(spec, text: str, steps: int) -> Counter:
    """How often each layer's attention is computed in a sampling."""
    counts, model = Counter(), network(spec)
    hooks = [
        block.attn.register_forward_hook(lambda *_, place=block.place: counts.update([(place.kind, place.axis, place.index)]))
        for block in model.blocks
    ]
    with torch.inference_mode():
        sampled = saved(model, parse_saving(text))
        euler(sampled, torch.randn(1, 4, 4, 8, 8), steps, labels=torch.tensor([1]))
    for hook in hooks:
        hook.remove()
    return counts


def test_the_temporal_range_is_that_of_temporal_layers_and_of_no_others():
    """Ten calls, of which 0, 1 and 9 lie outside; counted in the modules themselves."""
    spec = replace(LATTE, learn_sigma=False)
    outside, inside = [0, 1, 9], range(2, 9)
    for spatial, temporal in ((1, 3), (2, 1), (2, 3), (4, 2)):
        counts = attentions(spec, f"pab:spatial={spatial},temporal={temporal}", 10)
        expected = {
            axis: len(outside) + sum(number % calls_apart == 0 for number in inside)
            for axis, calls_apart in (("space", spatial), ("time", temporal))
        }
        assert counts == {("D", axis, index): expected[axis] for index, axis in enumerate(("space", "time") * 2)}


def test_windows_of_sparse_modules_are_spatial():
    spec = replace(FAMILIES["sparse Latte"], learn_sigma=False)
    counts = attentions(spec, "pab:spatial=3,temporal=1", 10)
    by_kind = {(kind, axis): number for (kind, axis, _), number in counts.items()}
    assert by_kind[("M", "window")] == by_kind[("R", "window")] == by_kind[("P", "space")] == 3 + 2
    assert {number for (_, axis), number in by_kind.items() if axis == "time"} == {10}


def test_every_sets_what_is_not_given_itself():
    ranges = {text: parse_saving(f"pab:{text}") for text in ("", "every=4", "temporal=5,every=4", "every=1", "every=1,mlp=on")}
    assert [(p.spatial, p.temporal, p.text) for p in ranges.values()] == [(2, 3, 6), (4, 4, 4), (4, 5, 4), (1, 1, 1), (1, 1, 1)]
    assert [p.changes_nothing for p in ranges.values()] == [False, False, False, True, True]
    assert str(ranges["every=4"]) == "pab:spatial=4,temporal=4,text=4,mlp=on,above=100.0,below=800.0"
    assert parse_saving(str(ranges["temporal=5,every=4"])) == ranges["temporal=5,every=4"]


def test_nothing_is_kept_that_is_not_read_again():
    held = []
    for end in range(1, len(PUBLISHED) + 1):
        _, policy = lead("pab:temporal=1", PUBLISHED[:end], planted, (*ATTENTIONS, *MLPS))
        held.append({place.point: sum(each.point == place.point for each in policy.kept) for place in policy.kept})
    kept = dict(zip((round(999 * u) for u in PUBLISHED), held, strict=True))
    assert kept[980] == kept[740] == kept[660] == kept[120] == {"attention": 3}
    assert kept[720] == kept[700] == kept[680] == {"attention": 3, "mlp": 5}
    assert kept[100] == kept[0] == {}


@pytest.mark.parametrize("name, sampler", CASES)
def test_a_batch_of_two_gives_each_clip_what_it_gets_alone(name, sampler):
    interval = (0.3, 0.75) if sampler in ("heun", "ddim") else None
    both, tally = counted(FAMILIES[name], ["pab"], sampler, steps=8, interval=interval)
    each = alone(FAMILIES[name], ["pab"], sampler, steps=8, interval=interval)
    torch.testing.assert_close(both, each, rtol=1e-4, atol=1e-4)
    assert 0.5 < tally.share < 1
