"""Kernel distances between two sets of features: KID and KVD, estimates of a squared maximum mean discrepancy.

Dimensions: N real clips, M fake clips, D feature dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsevid.evaluation.metrics.distances import check_pair
from sparsevid.system.seeding import Purpose, keyed_generator

_ROWS = 1024  # of the kernel matrix that are in memory at once


@dataclass(frozen=True)
class Estimate:
    """A mean over parts of the data, and the standard deviation of the parts (divisor: their number)."""

    value: float
    std: float


def kid(real: Tensor, fake: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> Estimate:
    """Kernel inception distance (Bińkowski et al. 2018): `kvd` of random subsets, drawn without replacement.

    Args:
        real: features (N, D), N ≥ 2, any real dtype; computed in float64.
        fake: features (M, D), M ≥ 2.
        subsets: their number.
        subset_size: clips of a subset on each side; N or M if that is less. Where it is both N and M all subsets are
            the same, and the standard deviation is 0.
        seed: of the subsets.

    Returns:
        Mean and standard deviation over the subsets. The mean has no bias from the number of clips, so it may be below 0.

    Raises:
        ValueError: see `check_pair`; or a number is out of range.
    """
    check_pair(real, fake)
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"KID takes 1 subset or more, of 2 clips or more, got subsets={subsets}, subset_size={subset_size}")
    size = min(subset_size, len(real), len(fake))
    if size == len(real) == len(fake):
        return Estimate(kvd(real, fake), 0.0)
    generator, values = keyed_generator(Purpose.KID_SUBSETS, seed), []
    for _ in range(subsets):
        x = real[torch.randperm(len(real), generator=generator)[:size].to(real.device)]
        y = fake[torch.randperm(len(fake), generator=generator)[:size].to(fake.device)]
        values.append(_polynomial_mmd(x.to(torch.float64), y.to(torch.float64)))
    found = torch.tensor(values, dtype=torch.float64)
    return Estimate(found.mean().item(), found.std(correction=0).item())


def kvd(real: Tensor, fake: Tensor) -> float:
    r"""Kernel video distance (Unterthiner et al. 2018): the unbiased squared maximum mean discrepancy of all clips.

    With k(x, y) = (x·y / D + 1)³,

        KVD = Σ_{i≠j} k(r_i, r_j) / N(N−1) + Σ_{i≠j} k(f_i, f_j) / M(M−1) − 2 Σ_{i,j} k(r_i, f_j) / NM .

    Args:
        real: features (N, D), N ≥ 2, any real dtype; computed in float64. Memory grows with N and M, not with N·M.
        fake: features (M, D), M ≥ 2.

    Returns:
        The estimate; it may be below 0.

    Raises:
        ValueError: see `check_pair`.
    """
    check_pair(real, fake)
    return _polynomial_mmd(real.to(torch.float64), fake.to(torch.float64))


def jedi(real: Tensor, fake: Tensor) -> float:
    r"""JEDi's distance (Luo et al. 2024): 100 times the squared maximum mean discrepancy with k(x, y) = (x·y / D)².

    Pairs of a clip with itself are among the means, as in the public code.

    With the kernel's own features, the products of two dimensions, it is ‖XᵀX/N − YᵀY/M‖² / D²: no kernel matrix is formed, but
    where dimensions are more than clips.

    Args:
        real: features (N, D), any real dtype; computed in float64.
        fake: features (M, D).

    Returns:
        At least 0; it is biased upwards by few clips.

    Raises:
        ValueError: see `check_pair`.
    """
    check_pair(real, fake, minimum=1)
    real, fake, dim = real.to(torch.float64), fake.to(torch.float64), real.shape[1]
    if len(real) + len(fake) < dim:
        mean = lambda x, y: (x @ y.T / dim).square().mean().item()  # noqa: E731 (of the kernel over all pairs)
        return 100 * max(0.0, mean(real, real) + mean(fake, fake) - 2 * mean(real, fake))
    products = [each.T @ each / len(each) for each in (real, fake)]
    return 100 * (products[0] - products[1]).square().sum().item() / dim**2


def _polynomial_mmd(x: Tensor, y: Tensor) -> float:
    within = sum(_kernel_sum(z, z, off_diagonal=True) / (len(z) * (len(z) - 1)) for z in (x, y))
    return within - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def _kernel_sum(x: Tensor, y: Tensor, *, off_diagonal: bool = False) -> float:
    """Sum of k over all pairs; of one set with itself, over the pairs of different clips."""
    total = 0.0
    for first in range(0, len(x), _ROWS):
        kernel = (x[first : first + _ROWS] @ y.T / x.shape[1] + 1) ** 3  # (rows, M)
        if off_diagonal:
            kernel.diagonal(first).zero_()
        total += kernel.sum().item()
    return total
