"""TaylorSeer: attentions and MLPs extrapolated in time between calls that compute them."""

import pytest
import torch
from every import CASES, FAMILIES, LATTE, alone, counted, sample
from led import SAMPLINGS, SPACE, TIME, ask_planted, computed, lead

from sparsevid.diffusion.samplers import sampler_times
from sparsevid.models.saving import Place
from sparsevid.savings import parse_saving
from sparsevid.savings.base import Call, SavingError

MLP = SPACE._replace(point="mlp")
GENERATOR = torch.Generator().manual_seed(0)
UNEVEN = torch.rand(14, generator=GENERATOR, dtype=torch.float64).sort(descending=True).values.tolist()
TIMES = {"uneven": UNEVEN} | {f"{sampler} {steps}": sampler_times(sampler, steps) for sampler, steps in SAMPLINGS}


def polynomial(degree: int, places: tuple[Place, ...], times: list[float], dtype: torch.dtype = torch.float32):
    """Features that are polynomials of the diffusion time, others at each place."""
    factors = {place: torch.randn(degree + 1, 2, 3, 4, 5, generator=GENERATOR) for place in places}
    return lambda place, number: sum(factor * times[number] ** k for k, factor in enumerate(factors[place])).to(dtype)


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("every", (2, 3, 5))
def test_order_1_is_exact_on_features_linear_in_time(times, every):
    places = (SPACE, TIME, MLP)
    outputs = polynomial(1, places, times)
    calls, _ = lead(f"taylor:every={every}", times, outputs, places)
    for place in places:
        assert computed(calls, place) == [0, *range(1, len(times), every)]
        for number, steps in enumerate(calls):
            torch.testing.assert_close(steps[place].output, outputs(place, number), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", (0, 1, 2, 3))
@pytest.mark.parametrize("sampler", ("euler", "ddim"))
def test_any_order_is_exact_on_polynomials_of_that_degree_and_not_on_others(order, sampler):
    times = sampler_times(sampler, 16)
    errors = {}
    for degree in (order, order + 1):
        outputs = polynomial(degree, (SPACE,), times)
        calls, _ = lead(f"taylor:every=3,order={order}", times, outputs, (SPACE,))
        errors[degree] = max((steps[SPACE].output - outputs(SPACE, n)).abs().max().item() for n, steps in enumerate(calls))
    assert errors[order] < 2e-4 < 1e-3 < errors[order + 1]


@pytest.mark.parametrize("order", (1, 2, 3))
def test_calls_at_one_time_divide_by_nothing(order):
    """Heun's second call at a time, and a sampling that stands still: the newer value counts, and slopes stay finite."""
    times = [1.0, 0.8, 0.8, 0.8, 0.6, 0.6, 0.4, 0.4, 0.4]
    for every in (2, 3):
        calls, _ = lead(f"taylor:every={every},order={order}", times, lambda place, n: torch.full((1, 4), float(n)), (SPACE,))
        assert all(steps[SPACE].output.isfinite().all() for steps in calls)
    calls, _ = lead(f"taylor:every=2,order={order}", [0.5] * 9, lambda place, n: torch.full((1, 4), float(n)), (SPACE,))
    newest = [max(c for c in computed(calls, SPACE) if c <= n) for n in range(9)]
    assert [steps[SPACE].output[0, 0].item() for steps in calls] == newest


def test_differences_are_in_float32():
    times = sampler_times("euler", 50)
    outputs = polynomial(1, (SPACE,), times, torch.bfloat16)
    calls, policy = lead("taylor:every=2", times, outputs, (SPACE,))
    value, slope = policy.kept[SPACE].differences
    assert (value.dtype, slope.dtype, calls[-1][SPACE].output.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    before, last = (outputs(SPACE, number).double() for number in computed(calls, SPACE)[-2:])
    span = times[computed(calls, SPACE)[-2]] - times[computed(calls, SPACE)[-1]]
    torch.testing.assert_close(slope.double(), (before - last) / span, rtol=1e-5, atol=1e-5)


def test_of_sparse_layers_only_what_no_longer_fits_is_forgotten():
    policy, places = (
        parse_saving("taylor:every=4").fresh("null"),
        [Place("attention", i, kind, "space") for i, kind in enumerate("PMSRD")],
    )
    for number, u in enumerate((1.0, 0.9, 0.8)):
        policy.begin(Call(number, u, None, LATTE, LATTE.dense_grid(), None))
        if number == 2:
            policy.forget("MS")
        steps = {place.kind: ask_planted(policy, place, torch.full((1, 2), u)) for place in places}
    assert {kind for kind, step in steps.items() if step.computed} == {"M", "S"}
    policy.begin(Call(3, 0.7, None, LATTE, LATTE.dense_grid(), None))
    later = {place.kind: ask_planted(policy, place, torch.full((1, 2), 9.0)).output[0, 0].item() for place in places}
    assert later == pytest.approx({"P": 0.7, "M": 0.8, "S": 0.8, "R": 0.7, "D": 0.7})


@pytest.mark.parametrize("name, sampler", CASES[::2])
def test_order_0_is_static(name, sampler):
    taylor, static = (
        counted(FAMILIES[name], [text], sampler, steps=6, interval=(0.2, 0.9))
        for text in ("taylor:every=3,order=0", "static:every=3")
    )
    assert torch.equal(taylor[0], static[0]) and taylor[1] == static[1]


@pytest.mark.parametrize("name, sampler", CASES)
def test_a_batch_of_two_gives_each_clip_what_it_gets_alone(name, sampler):
    both, tally = counted(FAMILIES[name], ["taylor:every=2,order=2"], sampler, steps=7)
    each = alone(FAMILIES[name], ["taylor:every=2,order=2"], sampler, steps=7)
    torch.testing.assert_close(both, each, rtol=1e-4, atol=1e-4)
    assert 0.4 < tally.share < 0.9


def test_where_features_are_smooth_extrapolating_errs_less_than_reusing():
    exact = sample(LATTE, [], steps=48)
    errors = [(sample(LATTE, [f"taylor:every=3,order={order}"], steps=48) - exact).norm() for order in (0, 1)]
    assert errors[1] < errors[0]


def test_what_is_no_order_is_refused():
    with pytest.raises(SavingError, match="saving taylor: order = 4; it is at most 3"):
        parse_saving("taylor:order=4")
    with pytest.raises(SavingError, match="saving taylor: order = -1; it is at least 0"):
        parse_saving("taylor:order=-1")
