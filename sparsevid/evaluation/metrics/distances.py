"""The Fréchet distance between two sets of features, and what every set of features has to fulfil: pure functions of tensors.

Dimensions: N real clips, M fake clips, D feature dimensions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import Tensor

CHOLESKY_PIVOT = 1e-3  # least ratio of pivots; its square is 10 digits above float64's ε


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features that are not there any more, as reference files publish them.

    Attributes:
        mean: float64 (D,).
        covariance: float64 (D, D), symmetric and positive semidefinite, by the divisor of whoever wrote it.

    Raises:
        ValueError: other shapes, or values that are not finite.
    """

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.mean.shape), tuple(self.covariance.shape)
        if self.mean.ndim != 1 or shapes[1] != shapes[0] * 2:
            raise ValueError(f"statistics are a mean (D,) and a covariance (D, D), got shapes {shapes[0]} and {shapes[1]}")
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.covariance).all()):
            raise ValueError("statistics hold values that are not finite")

    @classmethod
    def of(cls, features: Tensor, *, unbiased: bool = True) -> "Moments":
        """The moments of features (N, D), N ≥ 2, by the divisor N − 1 or N.

        Raises:
            ValueError: see `check_features`.
        """
        check_features("all", features)
        centred = features.to(torch.float64) - features.to(torch.float64).mean(dim=0)
        divisor = len(features) - 1 if unbiased else len(features)
        return cls(features.to(torch.float64).mean(dim=0), centred.T @ centred / divisor)


def frechet_distance(real: Tensor | Moments, fake: Tensor, *, unbiased: bool = True) -> float:
    r"""Fréchet distance between the Gaussians fitted to two feature sets.

    With means μ and covariances Σ (Dowson and Landau 1982; Heusel et al. 2017, Equation 6),

        d² = ‖μ_r − μ_f‖² + tr Σ_r + tr Σ_f − 2 tr (Σ_r Σ_f)^½ .

    No covariance is formed. Let A (N×D) and B (M×D) be the centred features, and n_r, n_f the divisors of the
    covariances (N − 1 and M − 1, or N and M). Then Σ_r = AᵀA / n_r, Σ_f = BᵀB / n_f, and the non-zero eigenvalues of
    Σ_r Σ_f are those of (A Bᵀ)(A Bᵀ)ᵀ / (n_r n_f), so

        tr (Σ_r Σ_f)^½ = ‖A Bᵀ‖_* / √(n_r n_f)

    with the nuclear norm ‖·‖_*, the sum of singular values. A set with more rows than columns is first replaced by the
    R of its QR decomposition: RᵀR = AᵀA, and the singular values stay what they are. Unlike a matrix square root of
    Σ_r Σ_f this is exact for singular covariances (N ≤ D) too. All is done in float64, on the features' device.

    Args:
        real: features (N, D) of real clips, N ≥ 2, any real dtype; or their moments, which are taken as they are.
        fake: features (M, D) of generated clips, M ≥ 2; M may differ from N.
        unbiased: divide covariances by N − 1 (True) or by N (False).

    Returns:
        d² ≥ 0, in squared units of the features. What rounding leaves below zero is returned as 0.

    Raises:
        ValueError: see `check_pair`.
    """
    if isinstance(real, Moments):
        check_features("fake", fake)
        if len(real.mean) != fake.shape[1]:
            raise ValueError(
                f"the statistics of real clips have {len(real.mean)} dimensions, the features of generated ones "
                f"{fake.shape[1]}: they are of another detector, or of another of its layers"
            )
        real_mean, real_root = real.mean.to(fake.device), _symmetric_root(real.covariance.to(fake.device))
    else:
        check_pair(real, fake)
        real_mean, real_root = _mean_and_root(real, unbiased)
    fake_mean, fake_root = _mean_and_root(fake, unbiased)
    traces = real_root.square().sum() + fake_root.square().sum()
    cross = torch.linalg.svdvals(real_root @ fake_root.T).sum()
    distance = (real_mean - fake_mean).square().sum() + traces - 2 * cross
    return max(0.0, distance.item())


def frechet_with_ridge(real: Tensor, fake: Tensor, ridge: float) -> float:
    """The Fréchet distance with unbiased covariances to which ridge · I is added under the root, as FVMD's code has it.

    It differs from `frechet_distance` where covariances are singular, and is -2 · ridge · D between a set and itself. Where the
    sets have fewer clips together than dimensions, all is computed in the space that they span: outside of it each of the other
    dimensions adds the ridge to the trace of the root, and nothing else.

    Args:
        real: features (N, D), N ≥ 2.
        fake: features (M, D), M ≥ 2.
        ridge: added to every variance, ≥ 0.

    Raises:
        ValueError: see `check_pair`.
    """
    check_pair(real, fake)
    both, dim = torch.cat([real, fake]).to(torch.float64), real.shape[1]
    if len(both) < dim:
        both = torch.linalg.qr(both.T, mode="r").R.T  # (N + M, N + M): coordinates in an orthonormal basis
    sides = [Moments.of(each) for each in both.split([len(real), len(fake)])]
    roots = [_symmetric_root(each.covariance + ridge * torch.eye(len(each.mean)).to(each.covariance)) for each in sides]
    gap, traces = sides[0].mean - sides[1].mean, sides[0].covariance.trace() + sides[1].covariance.trace()
    root_trace = torch.linalg.svdvals(roots[0] @ roots[1].T).sum() + ridge * (dim - both.shape[1])
    return (gap @ gap + traces - 2 * root_trace).item()


def frechet_by_square_root(real: Tensor, fake: Tensor, *, unbiased: bool = True) -> float:
    """The same distance as public code computes it: covariances by NumPy, and SciPy's square root of their product.

    It is what `frechet_distance` is checked and timed against. It takes longer, and where covariances are singular
    (N ≤ D) rounding under the root leaves an error of 1e-8 to 1e-6 of the traces.

    Args:
        real: features (N, D), N ≥ 2.
        fake: features (M, D), M ≥ 2.
        unbiased: divide covariances by N − 1 (True) or by N (False).

    Raises:
        ValueError: see `check_pair`.
    """
    check_pair(real, fake)
    a, b = (features.to("cpu", torch.float64).numpy() for features in (real, fake))
    cov_a, cov_b = (np.cov(features, rowvar=False, ddof=int(unbiased)) for features in (a, b))
    root = sqrtm(cov_a @ cov_b).real  # rounding leaves an imaginary part
    return float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def _mean_and_root(features: Tensor, unbiased: bool) -> tuple[Tensor, Tensor]:
    """The mean (D,) and a root R (min(N, D), D) of the covariance: RᵀR = Σ."""
    count, dim = features.shape
    features = features.to(torch.float64)
    mean = features.mean(dim=0)
    root = features - mean  # centred before any product: raw moments lose digits when the mean is large
    if count > dim:
        root = _triangular_root(root)
    divisor = count - 1 if unbiased else count
    return mean, root / divisor**0.5


def _symmetric_root(covariance: Tensor) -> Tensor:
    """A root R (D, D) of a covariance: RᵀR = Σ. Eigenvalues that rounding left below 0 count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()).T


def _triangular_root(centred: Tensor) -> Tensor:
    """The R (D, D) of the QR decomposition of A (N, D), N > D, up to signs: RᵀR = AᵀA."""
    # The Cholesky factor of AᵀA is that R at half the cost. AᵀA carries rounding of ε‖A‖², which is harmless while every
    # squared pivot stays far above it; with dimensions that are constant or repeat others some do not.
    root, failed = torch.linalg.cholesky_ex(centred.T @ centred, upper=True)
    pivots = root.diagonal()
    if failed or pivots.min() < CHOLESKY_PIVOT * pivots.max():
        root = torch.linalg.qr(centred, mode="r").R
    return root


def check_pair(real: Tensor, fake: Tensor, minimum: int = 2) -> None:
    """Refuse two feature sets that cannot be compared.

    Args:
        real: features (N, D).
        fake: features (M, D).
        minimum: the fewest clips of a set.

    Raises:
        ValueError: see `check_features`; or the two have different dimensions.
    """
    check_features("real", real, minimum)
    check_features("fake", fake, minimum)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"real and fake features need the same dimension D, got {tuple(real.shape)} and {tuple(fake.shape)}")


def check_features(name: str, features: Tensor, minimum: int = 2) -> None:
    """Refuse a feature set that no number can be computed from.

    Args:
        name: which set it is, for the message.
        features: to be finite (clips, dimensions).
        minimum: the fewest clips.

    Raises:
        ValueError: it has another shape, fewer clips, or a value that is not finite.
    """
    if features.ndim != 2:
        raise ValueError(f"{name} features must be (clips, dimensions), got shape {tuple(features.shape)}")
    if features.shape[0] < minimum:
        raise ValueError(f"{name} features: at least {minimum} clips, got {features.shape[0]}")
    # One pass over the values: NaN shows in both extremes, an infinity in one.
    if features.numel() and not torch.isfinite(torch.stack(features.aminmax())).all():
        bad = int((~torch.isfinite(features)).any(dim=1).sum())
        raise ValueError(f"{name} features: {bad} of {features.shape[0]} clips hold values that are not finite")
