"""Intervals of means: what clips share drops out, seeds count, and intervals hold what they say."""

import math
import statistics

import pytest
import torch
from scipy.stats import binom, ttest_1samp

from sparsevid.study.intervals import (
    LEVEL,
    Interval,
    error_of_interval,
    interval_of,
    of_errors,
    of_paired_clips,
    of_paired_halves,
    of_seeds,
    of_shares,
    of_variance,
)

Losses = list[list[float]]  # by seed and clip


def drawn(seed: int, seeds: int, clips: int, effect: float, of_seeds: float) -> tuple[Losses, Losses]:
    """Losses of row and control on the same clips, of which some are harder: an effect, one of each seed, and noise."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.rand(clips, generator=generator, dtype=torch.float64)
    own = of_seeds * torch.randn(seeds, 1, generator=generator, dtype=torch.float64)
    clip = 0.02 * torch.randn(clips, generator=generator, dtype=torch.float64)  # a clip's own, the same for all seeds
    control = hard + 0.01 * torch.randn(seeds, clips, generator=generator, dtype=torch.float64)
    row = hard + effect + own + clip + 0.01 * torch.randn(seeds, clips, generator=generator, dtype=torch.float64)
    return row.tolist(), control.tolist()


def paired(rows: Losses, controls: Losses) -> Interval:
    by_seed = [statistics.fmean(row) - statistics.fmean(control) for row, control in zip(rows, controls, strict=True)]
    return interval_of(statistics.fmean(by_seed), [of_paired_clips(rows, controls), *of_seeds(by_seed)])


def test_what_clips_have_in_common_drops_out():
    rows, controls = drawn(0, 1, 200, 0.02, 0.0)
    low, high = paired(rows, controls)
    assert 0 < low < 0.02 < high
    unpaired = 2 * (2 * statistics.variance(rows[0]) / 200) ** 0.5  # half of the interval of two sets of clips
    assert high - low < 0.02 < unpaired


@pytest.mark.parametrize(
    ("seeds", "of_seeds"), [(1, 0.0), (2, 0.0), (2, 0.004), (2, 0.02), (3, 0.0), (3, 0.004), (3, 0.02), (3, 0.05), (5, 0.01)]
)
def test_intervals_hold_the_effect_as_often_as_they_say(seeds, of_seeds):
    trials = 1000
    found = [paired(*drawn(number, seeds, 60, 0.01, of_seeds)) for number in range(trials)]
    share = sum(low <= 0.01 <= high for low, high in found) / trials
    assert share >= LEVEL - 2 * math.sqrt(LEVEL * (1 - LEVEL) / trials)  # too wide is allowed, too narrow is not


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("clips", [1e-9, 1e-4, 1e-2])
def test_clips_never_make_an_interval_narrower_than_seeds_alone(seeds, clips):
    values = torch.randn(seeds, generator=torch.Generator().manual_seed(seeds), dtype=torch.float64).mul(0.01).tolist()
    alone, both = (interval_of(0.0, [*parts, *of_seeds(values)]) for parts in ([], [of_variance(clips, 239)]))
    reference = ttest_1samp(values, 0).confidence_interval()
    assert alone.high - alone.low == pytest.approx(reference.high - reference.low)
    assert both.low < alone.low and both.high > alone.high


def test_seeds_that_differ_widen_an_interval():
    clips = of_variance(1e-4, 199)
    narrow, wide = (interval_of(1.0, [clips, *of_seeds(values)]) for values in ([1.0, 1.01, 0.99], [1.5, 0.5, 1.0]))
    assert narrow.low > 0 > wide.low
    assert narrow.high < 2 < wide.high
    assert interval_of(0.5, [of_variance(0.0, 9)]) == (0.5, 0.5)
    assert of_seeds([1.0]) == [] and interval_of(0.5, []) is None


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e140])
def test_intervals_keep_their_form_at_any_size(scale):
    parts = [(0.5, 63), (0.2, 2)]
    one, other = (interval_of(3.0 * factor, [of_variance(variance * factor**2, freedom) for variance, freedom in parts])
                  for factor in (1.0, scale))  # fmt: skip
    assert [end / scale for end in other] == pytest.approx(one)


def test_other_clips_are_refused():
    for rows, controls in (([[1.0]], [[1.0, 2.0]]), ([], []), ([[]], [[]]), ([[1.0]], [[1.0]]), ([[1.0, 2.0]], [])):
        with pytest.raises(ValueError, match="same clips"):
            of_paired_clips(rows, controls)


def test_errors_of_row_and_control_add_up():
    assert of_errors([[3.0, 4.0], [0.0, 1.0]], 64) == of_variance(13.0, 63)
    few, many = (of_paired_halves([[1.0, 3.0] * n], [[0.0, 0.0] * n], 512) for n in (1, 100))
    assert few.above > 6 * many.above  # of two halves nobody knows how they scatter


def test_an_interval_s_error():
    assert error_of_interval([8.04, 11.96]) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("samples", [40, pytest.param(512, marks=pytest.mark.slow)])
def test_shares_hold_their_difference_as_often_as_they_say(samples):
    """Where nearly all are right, too: exactly, over all that two shares can be."""
    for one, other in ((0.75, 0.7), (0.99, 0.995), (0.995, 0.995)):
        held = 0.0
        probable = [[(right, weight) for right in range(samples + 1) if (weight := binom.pmf(right, samples, share)) > 1e-5]
                    for share in (one, other)]  # fmt: skip
        for own, weight in probable[0]:
            for theirs, of_other in probable[1]:
                pair = [(own / samples, samples), (theirs / samples, samples)]
                low, high = interval_of(pair[0][0] - pair[1][0], [of_shares([pair])])
                held += weight * of_other * (low <= one - other <= high)
        assert held >= LEVEL - 0.015
    none = of_shares([[(1.0, samples), (1.0, samples)]])
    assert none == pytest.approx((1 - 0.025 ** (1 / samples),) * 2, rel=0.1)  # the exact limit of all of N
