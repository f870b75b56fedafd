"""CLIP score: how well clips show what they were to show (Hessel et al. 2021, without its factor 2.5).

Dimensions: N clips, D dimensions, G different prompts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """What clips were to show.

    Attributes:
        features: float32 (N, D), the unit vector of each clip's prompt.
        groups: int64 (N,): clips of the same number have the same prompt.
        origin: where they are from, for the record.
    """

    features: Tensor
    groups: Tensor
    origin: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CLIPScore:
    """A CLIP score, and what it is without the prompts.

    Attributes:
        value: 100 times the mean cosine of clips and their prompts, at least 0.
        error: standard error of that mean, for other prompts and other noise; of one prompt for other noise alone.
        shuffled: the same of clips and the prompts of others: the mean over all prompts but a clip's own, each as often as it
            occurs. None of one prompt.
        gain: the mean cosine minus that, times 100. None of one prompt.
        gain_error: its standard error, clip by clip. None of one prompt.
    """

    value: float
    error: float
    shuffled: float | None
    gain: float | None
    gain_error: float | None


def clip_score(clips: Tensor, prompts: Prompts) -> CLIPScore:
    """The CLIP score of clips.

    Args:
        clips: (N, D), of each clip the mean over its frames of their unit vectors.
        prompts: of the same clips.

    Raises:
        ValueError: other shapes, or fewer than two clips.
    """
    count = len(clips)
    if clips.shape != prompts.features.shape or prompts.groups.shape != (count,):
        shapes = f"{tuple(clips.shape)}, {tuple(prompts.features.shape)} and {tuple(prompts.groups.shape)}"
        raise ValueError(f"each clip has a prompt of as many dimensions: got {shapes} for clips, prompts and their numbers")
    if count < 2:
        raise ValueError(f"a CLIP score takes at least 2 clips, got {count}")
    clips, texts = clips.double(), prompts.features.double()
    _, groups, sizes = prompts.groups.unique(return_inverse=True, return_counts=True)
    own = 100 * (clips * texts).sum(dim=1)
    value, error = max(own.mean().item(), 0.0), _error(own, groups)
    if len(sizes) == 1:
        return CLIPScore(value, error, None, None, None)
    alike = sizes[groups].unsqueeze(1)  # (N, 1): as often as a clip's prompt occurs
    others = 100 * (clips * (texts.sum(dim=0) - alike * texts) / (count - alike)).sum(dim=1)
    gains = own - others
    return CLIPScore(value, error, max(others.mean().item(), 0.0), gains.mean().item(), _error(gains, groups))


def _error(values: Tensor, groups: Tensor) -> float:
    """Standard error of the mean of (N,): clips of one prompt are no independent draws, so prompts are what is resampled."""
    deviations, count = values - values.mean(), int(groups.max()) + 1
    if count == 1:
        return (deviations.square().sum() / (len(values) - 1) / len(values)).sqrt().item()
    sums = torch.zeros(count, dtype=values.dtype).index_add_(0, groups, deviations)
    return math.sqrt(count / (count - 1)) * (sums.square().sum().sqrt() / len(values)).item()
