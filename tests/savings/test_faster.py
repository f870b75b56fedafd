"""FasterCache: extrapolated attentions, and the half without a class estimated by frequencies."""

from dataclasses import replace
from math import ceil

import pytest
import torch
from every import CASES, FAMILIES, LATTE, alone, counted, network, sample
from led import SAMPLINGS, SPACE, TIME, computed, lead
from torch import Tensor

from sparsevid.diffusion.samplers import euler, sampler_times
from sparsevid.diffusion.wrappers import with_guidance
from sparsevid.savings import parse_saving, saved
from sparsevid.savings.base import Call, SavingError
from sparsevid.savings.faster import by_frequency

GENERATOR = torch.Generator().manual_seed(0)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


@pytest.mark.parametrize("sampler, steps", [*SAMPLINGS, ("ddim", 50), ("euler", 2)])
@pytest.mark.parametrize("every, start", [(2, 1 / 3), (3, 0.5), (2, 0.0), (4, 0.1)])
def test_attentions_are_extrapolated_with_a_rising_weight(sampler, steps, every, start):
    times = sampler_times(sampler, steps)
    planted = noise(len(times), 2, 2, 3)
    calls, policy = lead(f"faster:every={every},start={start}", times, lambda place, n: planted[n, place.index], (SPACE, TIME))
    first, cache = ceil(start * len(times)), []
    for number in range(len(times)):
        since = number - first
        extrapolates = since > 0 and since % every != 0 and len(cache) >= 2
        for place in (SPACE, TIME):
            step = calls[number][place]
            assert step.computed != extrapolates
            if extrapolates:
                before, last = (planted[n, place.index].double() for n in cache[-2:])
                expected = last + (last - before) * since / (len(times) - 1 - first)
                torch.testing.assert_close(step.output.double(), expected, rtol=1e-5, atol=1e-5)
        cache += [] if extrapolates else [number]
    assert all(len(outputs) <= 2 for outputs in policy.kept.values())


def test_a_half_without_a_class_that_is_mostly_left_out_computes_and_keeps_no_attentions():
    times = sampler_times("ddim", 12)
    calls, policy = lead("faster", times, lambda place, n: noise(2, 3), (SPACE,), half="null")
    assert computed(calls, SPACE) == list(range(12)) and not policy.kept
    calls, _ = lead("faster:null_every=1", times, lambda place, n: noise(2, 3), (SPACE,), half="null")
    assert computed(calls, SPACE) == [0, 1, 2, 3, 4, 6, 8, 10]


def test_what_is_kept_holds_no_memory_of_the_other_half():
    both = noise(4, 2, 3)
    _, policy = lead("faster", [1.0, 0.5, 0.2], lambda place, n: both[:2], (SPACE,))
    assert [each.untyped_storage().nbytes() for each in policy.kept[SPACE]] == [each.nbytes for each in policy.kept[SPACE]]


def test_low_and_high_frequencies():
    images = noise(2, 3, 4, 10, 12)
    low, high = by_frequency(images)
    torch.testing.assert_close(low + high, images)
    # The published way: shifted, within a circle about the middle.
    shifted = torch.fft.fftshift(torch.fft.fft2(images), dim=(-2, -1))
    y, x = torch.meshgrid(torch.arange(10) - 5, torch.arange(12) - 6, indexing="ij")
    kept = shifted * (x**2 + y**2 <= (10 // 5) ** 2)
    torch.testing.assert_close(low, torch.fft.ifft2(torch.fft.ifftshift(kept, dim=(-2, -1))).real)
    flat, board = torch.full((1, 8, 8), 3.0), (torch.arange(8)[:, None] + torch.arange(8)).remainder(2)[None] * 2.0 - 1
    for image, whole in ((flat, 0), (board, 1)):
        torch.testing.assert_close(by_frequency(image)[whole], image)


@pytest.mark.parametrize("sampler, steps, null_every", [("ddim", 12, 5), ("heun", 9, 4), ("ddim", 50, 5)])
def test_the_half_without_a_class_is_the_other_plus_weighted_differences(sampler, steps, null_every):
    times = sampler_times(sampler, steps)
    policy = parse_saving(f"faster:null_every={null_every}").fresh("null")
    first, deltas, found = ceil(len(times) / 3), None, []
    for number, u in enumerate(times):
        call = Call(number, u, len(times), LATTE, LATTE.dense_grid(), None)
        conditional, null = noise(2, 8, 4, 8, 8), noise(2, 8, 4, 8, 8)
        computes = policy.computes_null(call)
        output = policy.null_output(call, conditional, null if computes else None)
        found += [number] if computes else []
        if computes:
            assert torch.equal(output, null)
            deltas = [part.double() for part in by_frequency(null - conditional)]
        else:
            t = 999 * u
            deltas = [deltas[0] * (1.1 if 99 < t < 901 else 1), deltas[1] * (1.1 if t < 301 else 1)]
            torch.testing.assert_close(output.double(), conditional.double() + sum(deltas), rtol=1e-4, atol=1e-5)
    assert found == [n for n in range(len(times)) if n < first or (n - first) % null_every == 0]


def test_bfloat16_differences_are_in_float32():
    policy = parse_saving("faster:start=0").fresh("null")
    call = Call(0, 1.0, 10, LATTE, LATTE.dense_grid(), None)
    conditional = noise(1, 4, 1, 8, 8)
    null = conditional + 1e-3 * noise(1, 4, 1, 8, 8)
    policy.null_output(call, *(each.bfloat16() for each in (conditional, null)))
    output = policy.null_output(call._replace(number=1, u=0.95), conditional, None)
    assert output.dtype == torch.float32
    assert policy.null_output(call._replace(number=2, u=0.95), conditional.bfloat16(), None).dtype == torch.bfloat16


def null_calls(times: list[float], text: str, interval: tuple[float, float] | None) -> list[int]:
    """At which calls of an Euler sampling the half without a class reaches the model."""
    spec, seen = replace(LATTE, learn_sigma=False), []
    model = network(spec)
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["labels"].tolist()), with_kwargs=True)
    with torch.inference_mode():
        guided = with_guidance(saved(model, parse_saving(text), times), 2.0, 5, interval=interval)
        euler(guided, noise(1, 4, 4, 8, 8), len(times), labels=torch.tensor([1]))
    hook.remove()
    return [number for number, labels in enumerate(seen) if 5 in labels]


def test_in_an_interval_of_guidance_the_half_is_computed_where_it_begins():
    times = sampler_times("euler", 15)
    assert null_calls(times, "faster", None) == [0, 1, 2, 3, 4, 5, 10]
    assert null_calls(times, "faster", (0.1, 0.5)) == [8, 10]
    assert null_calls(times, "faster:null_every=1", (0.1, 0.5)) == [8, 9, 10, 11, 12, 13]


@pytest.mark.parametrize("name, sampler", CASES)
def test_a_batch_of_two_gives_each_clip_what_it_gets_alone(name, sampler):
    spec = FAMILIES[name]
    both, tally = counted(spec, ["faster"], sampler, steps=7, interval=(0.1, 0.9))
    each = alone(spec, ["faster"], sampler, steps=7, interval=(0.1, 0.9))
    torch.testing.assert_close(both, each, rtol=1e-4, atol=1e-4)
    assert 0.4 < tally.share < 0.95


def test_without_guidance_attentions_alone_are_saved():
    both, tally = counted(LATTE, ["faster"], steps=9, guided=False)
    attentions = sample(LATTE, ["faster:null_every=1"], steps=9, guided=False)
    assert torch.equal(both, attentions) and tally.asked - tally.computed == 2 * 4 * 3  # clips, layers, calls


def test_what_does_not_go_together_is_refused():
    model = network(LATTE)
    with pytest.raises(
        SavingError, match="faster and guidance do not go together: each decides when the half without a class is"
    ):
        saved(model, [parse_saving("faster"), parse_saving("guidance:every=2")], [1.0, 0.5])
    with pytest.raises(SavingError, match="faster and pab do not go together: each decides what is kept from call to call"):
        saved(model, [parse_saving("faster"), parse_saving("pab")], [1.0, 0.5])
    with pytest.raises(SavingError, match="saving faster must know which call is the last: pass `times`"):
        saved(model, parse_saving("faster"))
    with pytest.raises(SavingError, match="saving faster: start = 2.0; it is a share of the sampling, 0 to 1"):
        parse_saving("faster:start=2")
    assert parse_saving("faster:every=1,null_every=1").changes_nothing
