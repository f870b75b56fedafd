"""The Inception score of images and videos, from the logits of a classifier.

Dimensions: N samples, K classes.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from sparsevid.evaluation.metrics.distances import check_features
from sparsevid.evaluation.metrics.kernel import Estimate

SPLITS = 10  # of the published score


def inception_score(logits: Tensor, *, splits: int = SPLITS, part: int | None = None) -> Estimate:
    """exp of the mean KL divergence between a sample's classes and those of all samples (Salimans et al. 2016), by splits.

    Split i holds the samples ⌊iN/splits⌋ to ⌊(i+1)N/splits⌋, in the order given: the public code's rule. Samples that are
    sorted by class must be shuffled before.

    Args:
        logits: (N, K) before the softmax, N ≥ `splits`, any real dtype; computed in float64.
        splits: parts that are scored apart. The score grows with the samples of a part, up to K.
        part: samples of a split, in place of `splits`: the last one may have fewer (the rule of ADM's evaluator).

    Returns:
        Mean and standard deviation over the splits; each is between 1 and K.

    Raises:
        ValueError: see `check_features`; or fewer than one split, or a part of no sample.
    """
    if splits < 1 or (part is not None and part < 1):
        raise ValueError(f"the Inception score takes 1 split or more, of 1 sample or more, got {splits} and {part}")
    check_features("fake", logits, minimum=splits if part is None else 1)
    log_p = logits.to(torch.float64).log_softmax(dim=1)
    bounds = [i * len(logits) // splits for i in range(splits + 1)]
    if part is not None:
        bounds = [*range(0, len(logits), part), len(logits)]
    scores = torch.stack([_score(log_p[first:last]) for first, last in pairwise(bounds)])
    return Estimate(scores.mean().item(), scores.std(correction=0).item())


def _score(log_p: Tensor) -> Tensor:
    # The mean's logarithm without leaving log space: a class that no sample takes would give 0 · log 0.
    log_mean = log_p.logsumexp(dim=0) - math.log(len(log_p))
    return (log_p.exp() * (log_p - log_mean)).sum(dim=1).mean().exp()
