"""Differences to the control: what clips share drops out, seeds count, and intervals hold what they say."""

import statistics

import pytest
import torch

from sparsevid.study.intervals import (
    LEVEL,
    difference,
    error_of_interval,
    error_of_share,
    paired_difference,
    spread,
)


def drawn(seed: int, seeds: int, clips: int, effect: float, of_seeds: float) -> tuple[list[list[float]], list[list[float]]]:
    """Losses of row and control on the same clips, of which some are harder: an effect, one of each seed, and noise."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.rand(clips, generator=generator, dtype=torch.float64)
    own = of_seeds * torch.randn(seeds, 1, generator=generator, dtype=torch.float64)
    clip = 0.02 * torch.randn(clips, generator=generator, dtype=torch.float64)  # a clip's own, the same for all seeds
    control = hard + 0.01 * torch.randn(seeds, clips, generator=generator, dtype=torch.float64)
    row = hard + effect + own + clip + 0.01 * torch.randn(seeds, clips, generator=generator, dtype=torch.float64)
    return row.tolist(), control.tolist()


def test_what_clips_have_in_common_drops_out():
    rows, controls = drawn(0, 1, 200, 0.02, 0.0)
    found = paired_difference(rows, controls)
    assert found.told and found.low < 0.02 < found.high and found.seeds == 1
    unpaired = 2 * (2 * statistics.variance(rows[0]) / 200) ** 0.5  # half of the interval of two sets of clips
    assert found.high - found.low < 0.02 < unpaired


@pytest.mark.parametrize(("seeds", "of_seeds"), [(1, 0.0), (3, 0.0), (3, 0.02)])
def test_intervals_hold_the_effect_as_often_as_they_say(seeds, of_seeds):
    found = [paired_difference(*drawn(number, seeds, 60, 0.01, of_seeds)) for number in range(400)]
    share = sum(each.low <= 0.01 <= each.high for each in found) / len(found)
    assert share >= LEVEL - 0.04  # too wide is allowed, too narrow is not


def test_seeds_that_differ_widen_an_interval():
    narrow, wide = difference([1.0, 1.01, 0.99], 1e-4, 200), difference([1.5, 0.5, 1.0], 1e-4, 200)
    assert narrow.mean == pytest.approx(1.0) and wide.mean == pytest.approx(1.0)
    assert narrow.told and not wide.told
    assert difference([0.5], 0.0, 10).low == 0.5
    with pytest.raises(ValueError, match="one seed or more"):
        difference([], 1.0, 10)


def test_other_clips_are_refused():
    for rows, controls in (([[1.0]], [[1.0, 2.0]]), ([], []), ([[]], [[]])):
        with pytest.raises(ValueError, match="same clips"):
            paired_difference(rows, controls)


def test_errors_and_spreads():
    assert error_of_interval([8.04, 11.96]) == pytest.approx(1.0, abs=1e-3)
    assert error_of_share(0.5, 100) == pytest.approx(0.05)
    assert error_of_share(0.0, 100) == pytest.approx(error_of_share(1.0, 100))
    assert error_of_share(0.0, 100) > 0  # none of a hundred is not none of all
    assert spread([1.0]) is None and spread([1.0, 3.0]) == pytest.approx(2**0.5)
