"""Distances between two sets of features: pure functions of tensors.

Dimensions: N real clips, M fake clips, D feature dimensions.
"""

import torch
from torch import Tensor


def frechet_distance(real: Tensor, fake: Tensor, *, unbiased: bool = True) -> float:
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
        real: features (N, D) of real clips, N ≥ 2, any real dtype.
        fake: features (M, D) of generated clips, M ≥ 2; M may differ from N.
        unbiased: divide covariances by N − 1 (True) or by N (False).

    Returns:
        d² ≥ 0, in squared units of the features. What rounding leaves below zero is returned as 0.

    Raises:
        ValueError: a set is not (clips, dimensions), has fewer than two clips or a value that is not finite, or the two
            have different dimensions.
    """
    _check_features("real", real)
    _check_features("fake", fake)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"real and fake features need the same dimension D, got {tuple(real.shape)} and {tuple(fake.shape)}")
    real_mean, real_root = _mean_and_root(real, unbiased)
    fake_mean, fake_root = _mean_and_root(fake, unbiased)
    traces = real_root.square().sum() + fake_root.square().sum()
    cross = torch.linalg.svdvals(real_root @ fake_root.T).sum()
    distance = (real_mean - fake_mean).square().sum() + traces - 2 * cross
    return max(0.0, distance.item())


def _mean_and_root(features: Tensor, unbiased: bool) -> tuple[Tensor, Tensor]:
    """The mean (D,) and a root R (min(N, D), D) of the covariance: RᵀR = Σ."""
    count, dim = features.shape
    features = features.to(torch.float64)
    mean = features.mean(dim=0)
    root = features - mean  # centred before any product: raw moments lose digits when the mean is large
    if count > dim:
        root = torch.linalg.qr(root, mode="r").R
    divisor = count - 1 if unbiased else count
    return mean, root / divisor**0.5


def _check_features(name: str, features: Tensor) -> None:
    if features.ndim != 2:
        raise ValueError(f"{name} features must be (clips, dimensions), got shape {tuple(features.shape)}")
    if features.shape[0] < 2:
        raise ValueError(f"{name} features: a covariance needs at least 2 clips, got {features.shape[0]}")
    if not torch.isfinite(features).all():
        bad = int((~torch.isfinite(features)).any(dim=1).sum())
        raise ValueError(f"{name} features: {bad} of {features.shape[0]} clips hold values that are not finite")
