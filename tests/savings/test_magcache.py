"""MagCache: its decisions are its rule's, at the number of calls that was measured and at others."""

import math

import pytest
import torch
from every import made_up
from led import lead_stack, script

from sparsevid.savings import parse_saving
from sparsevid.savings.base import SavingError
from sparsevid.savings.magcache import MagCache

RATIOS = [1.02, 0.995, 1.01, 0.99, 0.98, 1.005, 0.97, 0.99, 0.96, 1.03, 0.95, 0.9, 0.985, 0.99, 0.8, 0.7, 0.6, 0.99, 0.98]


def rule(ratios: list[float], threshold: float, skips: int, start: float) -> list[int]:
    """The calls that MagCache computes, written as it is published, and the last one."""
    count = len(ratios) + 1
    computed, product, error, skipped = [], 1.0, 0.0, 0
    for number in range(count):
        if number and number >= int(count * start):
            product *= ratios[number - 1]
            skipped += 1
            error += abs(1 - product)
        if number and number >= int(count * start) and error < threshold and skipped <= skips and number < count - 1:
            continue
        computed.append(number)
        product, error, skipped = 1.0, 0.0, 0
    return computed


@pytest.mark.parametrize("threshold", [1e-30, 0.0131, 0.0613, 0.31, 1e9])
@pytest.mark.parametrize("skips", [0, 1, 3, 100])
@pytest.mark.parametrize("start", [0.0, 0.2, 0.51, 1.0])
def test_decisions_are_those_of_the_rule(threshold, skips, start):
    calls = script(len(RATIOS) + 1)
    policy = MagCache(threshold, skips=skips, start=start).with_fit(made_up("magcache", conditional=RATIOS))
    computed, outputs = lead_stack(policy, calls)
    assert computed == rule(RATIOS, threshold, skips, start)
    for number, output in enumerate(outputs):
        last = max(each for each in computed if each <= number)
        residual = (calls[last].x + calls[last].added) - calls[last].x
        assert torch.equal(output, calls[number].x + (residual if last < number else calls[number].added))


def test_ratios_at_another_number_of_calls():
    """Of sizes that are a power of the position, the ratio of any two calls is known: it is interpolated exactly."""
    constant = MagCache().with_fit(made_up("magcache", conditional=[0.9] * 12))
    for count in (4, 7, 13, 50):
        found = [constant.ratio(number - 1, number, count) for number in range(1, count)]
        assert found == pytest.approx([0.9 ** (12 / (count - 1))] * (count - 1))
    measured = MagCache().with_fit(made_up("magcache", conditional=RATIOS))
    assert [measured.ratio(number - 1, number, 20) for number in range(1, 20)] == pytest.approx(RATIOS)
    whole = math.prod(RATIOS)
    assert math.prod(measured.ratio(number - 1, number, 9) for number in range(1, 9)) == pytest.approx(whole)


def test_halves_have_their_own_ratios_and_one_that_lacks_calls_the_ratio_over_them():
    fit = made_up("magcache", conditional=[1.0] * 9, null=[0.5] * 9)
    policy, calls = MagCache(0.1, start=0.0, skips=100).with_fit(fit), script(10)
    assert lead_stack(policy, calls)[0] == [0, 9]
    assert lead_stack(policy, calls, "null")[0] == list(range(10))
    one = MagCache(0.1, start=0.0, skips=100).with_fit(made_up("magcache", conditional=[1.0] * 9))
    assert lead_stack(one, calls, "null")[0] == [0, 9]
    assert policy.fresh("null").ratio(3, 5, 10) == pytest.approx(0.25)
    assert lead_stack(one, calls[:4], "null", [3, 5, 7, 9], count=10)[0] == [3, 9]


def test_bad_options_are_refused():
    for text in ("threshold=-0.1", "skips=-1", "start=1.5", "start=-0.5"):
        with pytest.raises(SavingError, match=text.split("=")[0]):
            parse_saving(f"magcache:{text}")
    assert parse_saving("magcache:threshold=0").changes_nothing and parse_saving("magcache:skips=0").changes_nothing
    with pytest.raises(SavingError, match=r"magcache: nothing is fitted .*`sparsevid calibrate MODEL --saving magcache`"):
        _ = parse_saving("magcache").fitted
