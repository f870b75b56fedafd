"""Properties of intervals and of the extrapolation to infinitely many clips."""

import pytest
import torch
from torch import Tensor

from sparsevid.evaluation.metrics.distances import frechet_distance
from sparsevid.evaluation.metrics.kernel import kvd
from sparsevid.evaluation.metrics.uncertainty import bootstrap_interval, extrapolate


def draw(count: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def mean_difference(real: Tensor, fake: Tensor) -> float:
    return (fake.mean() - real.mean()).item()


def test_the_interval_of_a_difference_of_means_is_the_textbooks():
    real, fake = draw(120, 1, 0), 2 * draw(80, 1, 1)
    error = (real.var() / 120 + fake.var() / 80).sqrt().item()
    found = bootstrap_interval(mean_difference, real, fake, repeats=1500)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert (found.high + found.low) / 2 == pytest.approx(mean_difference(real, fake), abs=0.15 * error)


@pytest.mark.parametrize(("shift", "dim"), [(0.5, 4), (0.0, 4), (0.3, 60)])
def test_the_interval_holds_the_mean_score_of_fresh_sets(shift, dim):
    """Nominal 90 %; sets of 40 clips, also of fewer clips than dimensions."""
    pairs = [(draw(40, dim, 2 * i), draw(40, dim, 2 * i + 1, shift)) for i in range(40)]
    mean = sum(frechet_distance(*pair) for pair in pairs) / len(pairs)
    found = [bootstrap_interval(frechet_distance, *pair, repeats=40, level=0.9) for pair in pairs]
    held = sum(each.low <= mean <= each.high for each in found) / len(pairs)
    assert held >= 0.75  # 3 standard deviations of 40 draws below 90 %
    scatter = torch.tensor([frechet_distance(*pair) for pair in pairs]).std().item()
    width = sum(each.high - each.low for each in found) / len(pairs)
    assert 0.8 <= width / (2 * 1.645 * scatter) <= 2.2


@pytest.mark.parametrize("distance", [frechet_distance, kvd])
def test_the_interval_surrounds_the_score_and_grows_with_its_level(distance):
    real, fake = draw(60, 5, 2), draw(50, 5, 3, shift=0.4)
    narrow = bootstrap_interval(distance, real, fake, level=0.5)
    wide = bootstrap_interval(distance, real, fake, level=0.95)
    assert wide.low < narrow.low < distance(real, fake) < narrow.high < wide.high


def test_more_clips_give_a_narrower_interval():
    widths = []
    for count in (40, 160, 640):
        found = bootstrap_interval(frechet_distance, draw(count, 4, 4), draw(count, 4, 5, shift=0.6), repeats=100)
        widths.append(found.high - found.low)
    assert widths[0] > widths[1] > widths[2]


def test_the_seed_rules_the_draws():
    real, fake = draw(40, 3, 6), draw(40, 3, 7)
    first = bootstrap_interval(frechet_distance, real, fake, repeats=20, seed=1)
    assert bootstrap_interval(frechet_distance, real, fake, repeats=20, seed=1) == first
    assert bootstrap_interval(frechet_distance, real, fake, repeats=20, seed=2) != first
    line = extrapolate(frechet_distance, real, fake, repeats=3, seed=1)
    assert extrapolate(frechet_distance, real, fake, repeats=3, seed=1) == line
    assert extrapolate(frechet_distance, real, fake, repeats=3, seed=2) != line


def test_no_clip_is_drawn_twice():
    seen = []

    def distance(real: Tensor, fake: Tensor) -> float:
        seen.append((real[:, 0].tolist(), fake[:, 0].tolist()))
        return 0.0

    real, fake = torch.arange(21.0)[:, None], torch.arange(40.0)[:, None]
    bootstrap_interval(distance, real, fake, repeats=5)
    assert sorted((len(set(a)), len(a), len(set(b)), len(b)) for a, b in seen) == [(10, 10, 20, 20)] * 5 + [(21, 21, 40, 40)]


def test_at_each_size_disjoint_subsets_use_as_many_clips_as_fit():
    seen: dict[int, list[float]] = {}

    def distance(real: Tensor, fake: Tensor) -> float:
        assert len(real) == 2 * len(fake)
        seen.setdefault(len(fake), []).extend(fake[:, 0].tolist())
        return 0.0

    real, fake = torch.arange(48.0)[:, None], torch.arange(24.0)[:, None]
    found = extrapolate(distance, real, fake, parts=4, shuffles=1, repeats=2)
    assert found.sizes == (24, 12, 8, 6)
    assert sorted(seen[8]) == fake[:, 0].tolist()


def test_a_fit_of_fewer_clips_than_dimensions_is_not_reliable():
    found = [extrapolate(mean_difference, draw(60, dim, 1), draw(50, dim, 2), repeats=2).reliable for dim in (10, 11)]
    assert found == [True, False]  # the smallest of five sizes is 10


def test_a_distance_that_follows_the_law_is_extrapolated_exactly():
    found = extrapolate(lambda real, fake: 3 + 7 / len(fake), draw(64, 2, 8), draw(60, 2, 9), repeats=3)
    assert found.value == pytest.approx(3, abs=1e-11)
    assert found.slope == pytest.approx(7, rel=1e-10)
    assert found.error <= 0.02  # halves of 60 clips divide into 5 parts, but for the remainder
    assert found.means == pytest.approx([3 + 7 / size for size in found.sizes])


def test_one_distribution_is_at_distance_zero_in_the_limit_and_far_from_it_before():
    real, fake = draw(400, 12, 10), draw(400, 12, 11)
    found = extrapolate(frechet_distance, real, fake, repeats=10)
    finite = frechet_distance(real, fake)
    assert found.means[0] == finite
    assert abs(found.value) <= 0.25 * finite
    assert abs(found.value) <= 3 * found.error


def test_the_limit_is_the_distance_of_the_distributions_and_its_error_is_right():
    shift, dim = 0.5, 6
    found = [
        extrapolate(frechet_distance, draw(100, dim, 50 + 2 * i), draw(100, dim, 51 + 2 * i, shift), repeats=6, shuffles=1)
        for i in range(20)
    ]
    values = torch.tensor([each.value for each in found])
    assert abs(values.mean() - shift**2 * dim) <= 4 * values.std() / 20**0.5
    error = sum(each.error for each in found) / 20
    assert 0.6 <= error / values.std() <= 2


def test_an_unbiased_distance_has_no_slope():
    found = extrapolate(kvd, draw(200, 3, 12), draw(200, 3, 13, shift=1.0), repeats=4)
    assert found.value == pytest.approx(found.means[0], abs=2 * found.error)


def test_bad_input_is_refused():
    few, many = draw(3, 2, 0), draw(30, 2, 1)
    with pytest.raises(ValueError, match="fake features: at least 4 clips, got 3"):
        bootstrap_interval(frechet_distance, many, few)
    with pytest.raises(ValueError, match="got repeats=1, level=0.95"):
        bootstrap_interval(frechet_distance, many, many, repeats=1)
    with pytest.raises(ValueError, match=r"level=1\.0"):
        bootstrap_interval(frechet_distance, many, many, level=1.0)
    with pytest.raises(ValueError, match="real features: at least 20 clips, got 3"):
        extrapolate(frechet_distance, few, many)
    with pytest.raises(ValueError, match="parts=1, repeats=20, shuffles=2"):
        extrapolate(frechet_distance, many, many, parts=1)
