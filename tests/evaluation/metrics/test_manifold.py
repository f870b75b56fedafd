"""Properties of precision, recall, density and coverage, and of distances to neighbours."""

from dataclasses import astuple

import pytest
import torch
from torch import Tensor

from sparsevid.evaluation.metrics.manifold import nearest_distances, precision_recall


def draw(count: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def by_loops(real: Tensor, fake: Tensor, k: int, wide: int) -> tuple[float, float, float, float]:
    """The definitions, a pair of clips at a time."""

    def radius(points: Tensor, i: int, neighbours: int) -> float:
        return sorted(float((points[i] - points[j]).norm()) for j in range(len(points)) if j != i)[neighbours - 1]

    def inside(point: Tensor, points: Tensor, neighbours: int) -> list[bool]:
        return [float((point - points[i]).norm()) <= radius(points, i, neighbours) for i in range(len(points))]

    in_wide = [inside(f, real, wide) for f in fake]
    return (
        sum(any(inside(f, real, k)) for f in fake) / len(fake),
        sum(any(inside(r, fake, k)) for r in real) / len(real),
        sum(map(sum, in_wide)) / (wide * len(fake)),
        sum(any(column) for column in zip(*in_wide, strict=True)) / len(real),
    )


@pytest.mark.parametrize(("n", "m", "dim", "k", "wide"), [(9, 7, 2, 3, 5), (8, 12, 3, 1, 2), (12, 5, 20, 4, 3)])
def test_is_its_definition(n, m, dim, k, wide):
    real, fake = draw(n, dim, 0), draw(m, dim, 1, shift=0.4)
    found = precision_recall(real, fake, neighbours=k, density_neighbours=wide)
    assert astuple(found) == pytest.approx(by_loops(real, fake, k, wide), abs=1e-12)


def test_the_result_does_not_depend_on_how_distances_are_cut():
    real, fake = draw(40, 6, 2), draw(33, 6, 3, shift=0.3)
    whole = precision_recall(real, fake)
    assert all(precision_recall(real, fake, rows=rows) == whole for rows in (1, 7, 39))


def test_a_copy_is_perfect_and_a_far_set_worthless():
    real = draw(30, 5, 4)
    copy = precision_recall(real, real.clone())
    assert (copy.precision, copy.recall, copy.coverage) == (1, 1, 1)
    assert astuple(precision_recall(real, real + 100)) == (0, 0, 0, 0)


def test_real_clips_that_are_copies_of_each_other_still_cover_themselves():
    real = draw(1, 5, 5).expand(8, 5)
    assert precision_recall(real, real).precision == 1
    assert precision_recall(real, real + 1e-6).precision == 0


def test_swapping_the_sets_swaps_precision_and_recall():
    real, fake = draw(50, 4, 6), draw(40, 4, 7, shift=0.8)
    there, back = precision_recall(real, fake), precision_recall(fake, real)
    assert (there.precision, there.recall) == (back.recall, back.precision)


def test_rotation_shift_and_scale_change_nothing():
    real, fake = draw(50, 6, 8), draw(60, 6, 9, shift=0.5)
    rotation = torch.linalg.qr(draw(6, 6, 10)).Q
    moved = precision_recall(5 * real @ rotation + 2, 5 * fake @ rotation + 2)
    assert moved == precision_recall(real, fake)


def test_a_lost_mode_costs_recall_and_coverage_and_not_precision():
    real = torch.cat([draw(60, 3, 11), draw(60, 3, 12, shift=50)])
    found = precision_recall(real, draw(60, 3, 13))
    assert found.precision > 0.7
    assert found.recall <= 0.5
    assert found.coverage <= 0.5


def test_sets_of_one_distribution_have_the_known_expectations():
    """Naeem et al. 2020: E density = 1, E coverage = 1 − Π (N − i)/(2N − i) over i = 1 … k, for N = M."""
    n, k = 60, 5
    found = [precision_recall(draw(n, 4, 2 * i), draw(n, 4, 2 * i + 1)) for i in range(40)]
    density = torch.tensor([each.density for each in found])
    coverage = torch.tensor([each.coverage for each in found])
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (n - i) / (2 * n - i)
    assert abs(density.mean() - 1) <= 4 * density.std() / 40**0.5
    assert abs(coverage.mean() - (1 - missed)) <= 4 * coverage.std() / 40**0.5


def test_precision_and_recall_equal_torch_fidelity():
    public = pytest.importorskip("torch_fidelity.metric_prc", reason="needs torch-fidelity")
    real, fake = draw(80, 6, 14), draw(70, 6, 15, shift=0.7)
    precision, recall = public.calculate_precision_recall_full(fake, real, neighborhood=3)
    found = precision_recall(real, fake)
    assert 0.1 < found.precision < 0.99
    assert (found.precision, found.recall) == pytest.approx((precision, recall), abs=1e-6)


def test_nearest_distances():
    points, others = draw(9, 3, 16), draw(14, 3, 17)
    expected = [min(float((p - o).norm()) for o in others) for p in points]
    for rows in (None, 1, 4):
        assert nearest_distances(points, others, rows).tolist() == pytest.approx(expected, rel=1e-12)
    assert nearest_distances(others[3:5], others).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("n", "m", "options", "message"),
    [
        (3, 9, {}, "real features: at least 4 clips, got 3"),
        (5, 9, {}, "real features: at least 6 clips, got 5"),
        (9, 3, {}, "fake features: at least 4 clips, got 3"),
        (9, 9, {"neighbours": 0}, "counted from 1, got neighbours=0"),
        (9, 9, {"density_neighbours": 0}, "density_neighbours=0"),
    ],
)
def test_too_few_clips_are_refused(n, m, options, message):
    with pytest.raises(ValueError, match=message):
        precision_recall(draw(n, 2, 0), draw(m, 2, 1), **options)
