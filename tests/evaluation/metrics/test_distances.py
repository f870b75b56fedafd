"""Properties of the Fréchet distance. Errors are relative to tr Σ_r + tr Σ_f unless stated."""

import inspect

import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from sparsevid.evaluation.metrics import distances
from sparsevid.evaluation.metrics.distances import frechet_by_square_root, frechet_distance


def draw(count: int, dim: int, seed: int) -> Tensor:
    """Features with a mean and correlated dimensions, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    mean = torch.randn(dim, generator=generator, dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mixing + mean


def traces(real: Tensor, fake: Tensor) -> float:
    return (real.var(dim=0).sum() + fake.var(dim=0).sum()).item()


def whitened(count: int, dim: int, seed: int) -> Tensor:
    """Features whose sample mean is 0 and whose sample covariance is the identity, to rounding."""
    x = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(x - x.mean(dim=0)).Q * (count - 1) ** 0.5


@pytest.mark.parametrize(("n", "m", "dim"), [(300, 300, 24), (200, 77, 24), (25, 400, 24)])
def test_equals_the_matrix_square_root_when_covariances_have_full_rank(n, m, dim):
    real, fake = draw(n, dim, 0), draw(m, dim, 1)
    for unbiased in (True, False):
        error = frechet_distance(real, fake, unbiased=unbiased) - frechet_by_square_root(real, fake, unbiased=unbiased)
        assert abs(error) <= 1e-10 * traces(real, fake)


@pytest.mark.parametrize(("n", "m", "dim"), [(12, 12, 40), (9, 30, 40), (100, 12, 40)])
def test_is_near_the_matrix_square_root_when_covariances_are_singular(n, m, dim):
    real, fake = draw(n, dim, 0), draw(m, dim, 1)
    assert abs(frechet_distance(real, fake) - frechet_by_square_root(real, fake)) <= 1e-6 * traces(real, fake)


def degenerate(count: int, seed: int) -> Tensor:
    """Dimensions of very different scales, one that is constant, one that is the sum of two others, and one near it."""
    x = draw(count, 8, seed) * torch.logspace(0, -6, 8, dtype=torch.float64)
    repeated = x[:, 0] + x[:, 1]
    return torch.cat([x, torch.full((count, 1), 5.0), repeated[:, None], (repeated + 1e-9 * x[:, 2])[:, None]], dim=1)


def test_dimensions_that_are_constant_or_repeat_others_cost_no_digits():
    real, fake = degenerate(100, 30), degenerate(80, 31) + 0.1
    turn = torch.linalg.qr(draw(11, 11, 32)).Q
    base = frechet_distance(real, fake)
    assert abs(frechet_distance(real @ turn, fake @ turn) - base) <= 1e-13 * traces(real, fake)
    assert frechet_distance(real, real.flip(0)) <= 1e-13 * traces(real, real)
    doubled = [torch.cat([x, x], dim=1) for x in (real, fake)]  # all squared distances are doubled
    assert frechet_distance(*doubled) == pytest.approx(2 * base, rel=1e-11)


def test_the_root_of_a_long_set_is_the_same_by_either_way(monkeypatch):
    real, fake = draw(200, 20, 33), draw(150, 20, 34)
    by_cholesky = frechet_distance(real, fake)
    monkeypatch.setattr(distances, "CHOLESKY_PIVOT", 2.0)
    assert abs(frechet_distance(real, fake) - by_cholesky) <= 1e-13 * traces(real, fake)


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


def test_analytic_distance_where_covariances_do_not_commute():
    dim = 12
    mixing = draw(dim, dim, 20)
    move = mixing.T @ mixing / dim  # symmetric and positive: the optimal map from N(0, Σ) to N(shift, move Σ move)
    spread = draw(dim, dim, 21)
    shift = torch.linspace(-1.0, 1.0, dim, dtype=torch.float64)
    real, fake = whitened(60, dim, 22) @ spread, whitened(90, dim, 23) @ spread @ move + shift
    left = spread @ (torch.eye(dim, dtype=torch.float64) - move)  # tr (1 − move) Σ (1 − move) = ‖spread (1 − move)‖²
    exact = (shift.square().sum() + left.square().sum()).item()
    assert abs(frechet_distance(real, fake) - exact) <= 1e-10 * traces(real, fake)


@pytest.mark.slow
def test_zero_from_itself_at_the_size_of_a_real_evaluation():
    x = draw(512, 1408, 24)
    assert frechet_distance(x, x) <= 1e-13 * traces(x, x)


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("n", "m", "dim", "tolerance"), [(300, 200, 24, 1e-10), (12, 15, 40, 1e-6)])
def test_biased_distance_is_that_of_cd_fvd(n, m, dim, tolerance):
    public = pytest.importorskip("cdfvd.fvd", reason="needs cd-fvd (extra `test`)")
    if "disp" not in inspect.signature(sqrtm).parameters:
        pytest.skip("cd-fvd calls SciPy's sqrtm with an argument that this SciPy no longer has")
    real, fake = draw(n, dim, 25).float(), draw(m, dim, 26).float()
    stats = []
    for features in (real, fake):
        stats.append(public.FeatureStats(capture_mean_cov=True))
        for batch in features.split(7):
            stats[-1].append_torch(batch, rank=0, num_gpus=1)
    evaluator = object.__new__(public.cdfvd)  # without its network
    found = evaluator.compute_fvd_from_stats(fake_stats=stats[1], real_stats=stats[0])
    assert abs(frechet_distance(real, fake, unbiased=False) - found) <= tolerance * traces(real, fake)


def test_unbiased_distance_is_that_of_videogpt_in_float64():
    public = pytest.importorskip("cdfvd.third_party.i3d.utils", reason="needs cd-fvd (extra `test`)")
    real, fake = draw(300, 24, 27), draw(200, 24, 28)
    error = frechet_distance(real, fake) - public.frechet_distance(real, fake).item()
    assert abs(error) <= 1e-10 * traces(real, fake)


@pytest.mark.parametrize(("n", "m", "dim"), [(120, 90, 20), (15, 18, 40)])
def test_symmetry_rotation_common_shift_and_scale(n, m, dim):
    real, fake = draw(n, dim, 5), draw(m, dim, 6)
    base, tolerance = frechet_distance(real, fake), 1e-12 * traces(real, fake)
    rotation = torch.linalg.qr(draw(dim, dim, 7)).Q
    assert abs(frechet_distance(fake, real) - base) <= tolerance
    assert abs(frechet_distance(real @ rotation, fake @ rotation) - base) <= tolerance
    assert abs(frechet_distance(real + 3.5, fake + 3.5) - base) <= tolerance
    assert abs(frechet_distance(3 * real, 3 * fake) - 9 * base) <= 9 * tolerance


@pytest.mark.parametrize(("n", "dim"), [(500, 20), (20, 60)])
def test_a_constant_offset_of_1000_costs_no_digits_that_float64_has(n, dim):
    real, fake = draw(n, dim, 8), draw(n, dim, 9)
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
