"""Properties of the Fréchet distance. Errors are relative to tr Σ_r + tr Σ_f unless stated."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from sparsevid.evaluation.distances import frechet_distance


def draw(count: int, dim: int, seed: int) -> Tensor:
    """Features with a mean and correlated dimensions, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    mean = torch.randn(dim, generator=generator, dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mixing + mean


def traces(real: Tensor, fake: Tensor) -> float:
    return (real.var(dim=0).sum() + fake.var(dim=0).sum()).item()


def by_square_root(real: Tensor, fake: Tensor, ddof: int = 1) -> float:
    """The textbook formula: covariances and scipy's matrix square root."""
    a, b = real.numpy(), fake.numpy()
    cov_a, cov_b = np.cov(a, rowvar=False, ddof=ddof), np.cov(b, rowvar=False, ddof=ddof)
    root = sqrtm(cov_a @ cov_b).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def whitened(count: int, dim: int, seed: int) -> Tensor:
    """Features whose sample mean is 0 and whose sample covariance is the identity, to rounding."""
    x = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(x - x.mean(dim=0)).Q * (count - 1) ** 0.5


@pytest.mark.parametrize(("n", "m", "dim"), [(300, 300, 24), (200, 77, 24), (25, 400, 24)])
def test_equals_the_matrix_square_root_when_covariances_have_full_rank(n, m, dim):
    real, fake = draw(n, dim, 0), draw(m, dim, 1)
    for unbiased in (True, False):
        error = frechet_distance(real, fake, unbiased=unbiased) - by_square_root(real, fake, ddof=int(unbiased))
        assert abs(error) <= 1e-10 * traces(real, fake)


@pytest.mark.parametrize(("n", "m", "dim"), [(12, 12, 40), (9, 30, 40), (100, 12, 40)])
def test_is_near_the_matrix_square_root_when_covariances_are_singular(n, m, dim):
    real, fake = draw(n, dim, 0), draw(m, dim, 1)
    assert abs(frechet_distance(real, fake) - by_square_root(real, fake)) <= 1e-6 * traces(real, fake)


@pytest.mark.parametrize(("n", "dim"), [(200, 30), (30, 30), (31, 30), (20, 500), (2, 7)])
def test_a_set_is_at_distance_zero_from_itself_and_its_permutation(n, dim):
    x = draw(n, dim, 2)
    assert frechet_distance(x, x) <= 1e-13 * traces(x, x)
    assert frechet_distance(x, x.flip(0)) <= 1e-13 * traces(x, x)


def test_analytic_distance_of_gaussians_with_exact_moments():
    dim = 16
    scale = torch.linspace(0.5, 3.0, dim, dtype=torch.float64)
    shift = torch.linspace(-1.0, 1.0, dim, dtype=torch.float64)
    real, fake = whitened(100, dim, 3), whitened(250, dim, 4) * scale + shift
    exact = (shift.square().sum() + (1 - scale).square().sum()).item()  # commuting covariances: Σ (σ_r − σ_f)²
    assert abs(frechet_distance(real, fake) - exact) <= 1e-10 * traces(real, fake)


@pytest.mark.parametrize(("n", "m", "dim"), [(120, 90, 20), (15, 18, 40)])
def test_symmetry_rotation_common_shift_and_scale(n, m, dim):
    real, fake = draw(n, dim, 5), draw(m, dim, 6)
    base, tolerance = frechet_distance(real, fake), 1e-12 * traces(real, fake)
    rotation = torch.linalg.qr(draw(dim, dim, 7)).Q
    assert abs(frechet_distance(fake, real) - base) <= tolerance
    assert abs(frechet_distance(real @ rotation, fake @ rotation) - base) <= tolerance
    assert abs(frechet_distance(real + 3.5, fake + 3.5) - base) <= tolerance
    assert abs(frechet_distance(3 * real, 3 * fake) - 9 * base) <= 9 * tolerance


def test_a_constant_offset_of_1000_costs_no_digits_that_float64_has():
    real, fake = draw(500, 20, 8), draw(500, 20, 9)
    offset_error = abs(frechet_distance(real + 1000, fake + 1000) - frechet_distance(real, fake))
    assert offset_error <= 1e-10 * traces(real, fake)


def test_shifting_one_set_adds_the_squared_shift():
    x = draw(60, 10, 10)
    shift = torch.linspace(0, 2, 10, dtype=torch.float64)
    assert frechet_distance(x, x + shift) == pytest.approx(shift.square().sum().item(), rel=1e-12)


@pytest.mark.parametrize(("n", "dim"), [(80, 12), (10, 12)])
def test_biased_and_unbiased_differ_by_the_known_factor(n, dim):
    real, fake = draw(n, dim, 11), draw(n, dim, 12)
    mean_term = (real.mean(dim=0) - fake.mean(dim=0)).square().sum().item()
    expected = mean_term + (n - 1) / n * (frechet_distance(real, fake) - mean_term)
    assert frechet_distance(real, fake, unbiased=False) == pytest.approx(expected, rel=1e-11)


def test_the_same_distribution_scores_lower_with_more_clips():
    x = draw(600, 20, 13)
    assert frechet_distance(x[:30], x[30:60]) > 3 * frechet_distance(x[:300], x[300:]) > 0


def test_float32_features_are_computed_in_float64():
    real, fake = draw(100, 20, 14).float(), draw(100, 20, 15).float()
    assert frechet_distance(real, fake) == frechet_distance(real.double(), fake.double())


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3), "real features.*at least 2 clips, got 1"),
        (torch.zeros(5, 3), torch.zeros(0, 3), "fake features.*at least 2 clips, got 0"),
        (torch.zeros(5, 3), torch.tensor([[0.0] * 3, [0.0, float("nan"), 0.0]]), "fake features: 1 of 2 clips"),
        (torch.full((4, 3), float("inf")), torch.zeros(5, 3), "real features: 4 of 4 clips"),
        (torch.zeros(5, 3), torch.zeros(5, 4), r"same dimension D, got \(5, 3\) and \(5, 4\)"),
        (torch.zeros(5), torch.zeros(5, 4), r"real features must be \(clips, dimensions\), got shape \(5,\)"),
    ],
)
def test_unusable_features_are_refused_by_name(real, fake, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(real, fake)
