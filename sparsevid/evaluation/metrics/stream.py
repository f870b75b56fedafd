"""STREAM-T (Kim et al., arXiv 2403.09669): how alike two sets move, feature by feature.

Dimensions: N real clips, M fake clips, D features.
"""

import torch
from torch import Tensor

from sparsevid.evaluation.metrics.distances import check_pair

BINS = 50


def temporal_likeness(real: Tensor, fake: Tensor) -> float:
    """The squared correlation of two histograms of skewness, mean over the features; between 0 and 1, 1 of the same set.

    Both histograms of a feature have 50 bins over the whole numbers around all values of both sets, as the public code has it.

    Args:
        real: skewness (N, D) of each feature's spectrum, see `detectors.stream`.
        fake: the same (M, D).

    Raises:
        ValueError: see `check_pair`.
    """
    check_pair(real, fake, minimum=1)
    found = []
    for one, other in zip(real.cpu().float().T, fake.cpu().float().T, strict=True):
        both = torch.cat([one, other])
        ends = float(int(both.min()) - 1), float(int(both.max()) + 1)
        histograms = [torch.histogram(side, bins=BINS, range=ends).hist.double() / len(side) for side in (one, other)]
        a, b = (each - each.mean() for each in histograms)
        found.append((a @ b / (a.norm() * b.norm() + 1e-12)).square())
    return torch.stack(found).mean().item()
