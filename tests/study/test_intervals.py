"""Intervals of means: what clips share drops out, seeds count, and intervals hold what they say."""

import math
import statistics

import pytest
import torch

from sparsevid.study.intervals import (
    LEVEL,
    Interval,
    Part,
    error_of_interval,
    error_of_share,
    interval_of,
    of_errors,
    of_paired_clips,
    of_seeds,
    spread,
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


@pytest.mark.parametrize(("seeds", "of_seeds"), [(1, 0.0), (3, 0.0), (3, 0.004), (3, 0.02)])
def test_intervals_hold_the_effect_as_often_as_they_say(seeds, of_seeds):
    trials = 600
    found = [paired(*drawn(number, seeds, 60, 0.01, of_seeds)) for number in range(trials)]
    share = sum(low <= 0.01 <= high for low, high in found) / trials
    assert share >= LEVEL - 2 * math.sqrt(LEVEL * (1 - LEVEL) / trials)  # too wide is allowed, too narrow is not


def test_seeds_that_differ_widen_an_interval():
    clips = Part(1e-4, 199)
    narrow, wide = (interval_of(1.0, [clips, *of_seeds(values)]) for values in ([1.0, 1.01, 0.99], [1.5, 0.5, 1.0]))
    assert narrow.low > 0 > wide.low
    assert narrow.high < 2 < wide.high
    assert interval_of(0.5, [Part(0.0, 9)]) == (0.5, 0.5)
    assert of_seeds([1.0]) == [] and interval_of(0.5, []) is None


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e140])
def test_intervals_keep_their_form_at_any_size(scale):
    one, other = (interval_of(3.0 * factor, [Part(0.5 * factor**2, 63), Part(0.2 * factor**2, 2)]) for factor in (1.0, scale))
    assert [end / scale for end in other] == pytest.approx(one)


def test_other_clips_are_refused():
    for rows, controls in (([[1.0]], [[1.0, 2.0]]), ([], []), ([[]], [[]]), ([[1.0]], [[1.0]]), ([[1.0, 2.0]], [])):
        with pytest.raises(ValueError, match="same clips"):
            of_paired_clips(rows, controls)


def test_errors_of_row_and_control_add_up():
    assert of_errors([[3.0, 4.0], [0.0, 1.0]], 64) == (13.0, 63)


def test_errors_and_spreads():
    assert error_of_interval([8.04, 11.96]) == pytest.approx(1.0, abs=1e-3)
    assert error_of_share(0.5, 100) == pytest.approx(0.05)
    assert error_of_share(0.0, 100) == pytest.approx(error_of_share(1.0, 100))
    assert error_of_share(0.0, 100) > 0  # none of a hundred is not none of all
    assert spread([1.0]) is None and spread([1.0, 3.0]) == pytest.approx(2**0.5)
