"""How far two sets of features cover each other: precision, recall, density, coverage, and distances to neighbours.

Dimensions: N real clips, M fake clips, D feature dimensions, k neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsevid.evaluation.metrics.distances import check_features, check_pair

NEIGHBOURS = 3  # k of precision and recall, as published
DENSITY_NEIGHBOURS = 5  # k of density and coverage, as published
_PAIRS = 2**22  # distances that are in memory at once


@dataclass(frozen=True)
class PrecisionRecall:
    """All are shares of clips, between 0 and 1, but density, which may exceed 1.

    Attributes:
        precision: fakes within the balls of the reals: fidelity.
        recall: reals within the balls of the fakes: diversity.
        density: in how many real balls a fake lies, over k.
        coverage: reals whose ball holds a fake.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(
    real: Tensor,
    fake: Tensor,
    *,
    neighbours: int = NEIGHBOURS,
    density_neighbours: int = DENSITY_NEIGHBOURS,
    rows: int | None = None,
) -> PrecisionRecall:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The ball of a clip reaches to its k-th nearest other clip of the same set; its border belongs to it. All is done in
    float64.

    Args:
        real: features (N, D), N > k.
        fake: features (M, D), M > `neighbours`.
        neighbours: k of precision and recall.
        density_neighbours: k of density and coverage.
        rows: clips whose distances to all others are in memory at once; does not change the result.

    Raises:
        ValueError: see `check_pair`; too few clips for k, or k below 1.
    """
    if min(neighbours, density_neighbours) < 1:
        raise ValueError(f"neighbours are counted from 1, got neighbours={neighbours}, density_neighbours={density_neighbours}")
    check_pair(real, fake, minimum=neighbours + 1)
    check_features("real", real, minimum=density_neighbours + 1)
    real, fake = real.to(torch.float64), fake.to(torch.float64)
    narrow, wide = _radii(real, (neighbours, density_neighbours), rows)  # (N,) each
    (fake_radii,) = _radii(fake, (neighbours,), rows)  # (M,)
    inside, balls = 0, 0
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = torch.zeros_like(recalled)
    for first, distances in _distance_rows(fake, real, rows):  # (rows, N)
        inside += int((distances <= narrow).any(dim=1).sum())
        balls += int((distances <= wide).sum())
        recalled |= (distances <= fake_radii[first : first + len(distances), None]).any(dim=0)
        covered |= (distances <= wide).any(dim=0)
    return PrecisionRecall(
        precision=inside / len(fake),
        recall=recalled.double().mean().item(),
        density=balls / (density_neighbours * len(fake)),
        coverage=covered.double().mean().item(),
    )


def nearest_distances(points: Tensor, others: Tensor, rows: int | None = None) -> Tensor:
    """For each point the Euclidean distance to the nearest of `others`.

    Args:
        points: (M, D).
        others: (N, D).
        rows: points whose distances to all others are in memory at once.

    Returns:
        float64 (M,).
    """
    pieces = _distance_rows(points.to(torch.float64), others.to(torch.float64), rows)
    return torch.cat([distances.amin(dim=1) for _, distances in pieces])


def _radii(features: Tensor, neighbours: tuple[int, ...], rows: int | None) -> list[Tensor]:
    """For each k the distance of every clip to its k-th nearest other clip."""
    nearest = []
    for first, distances in _distance_rows(features, features, rows):
        distances.diagonal(first).fill_(torch.inf)  # a clip is not its own neighbour, a copy of it is
        nearest.append(distances.topk(max(neighbours), dim=1, largest=False).values)
    found = torch.cat(nearest)
    return [found[:, k - 1] for k in neighbours]


def _distance_rows(points: Tensor, others: Tensor, rows: int | None) -> Iterator[tuple[int, Tensor]]:
    """Distances (rows, N) of some points after others, with the index of the first."""
    rows = rows or max(1, _PAIRS // len(others))
    for first in range(0, len(points), rows):
        # Not by ‖x‖² + ‖y‖² − 2x·y: that loses half of the digits of small distances, and copies would not be at 0.
        yield first, torch.cdist(points[first : first + rows], others, compute_mode="donot_use_mm_for_euclid_dist")
