"""What can be told from some seeds and some clips: intervals of means that several things make uncertain.

Of a mean difference to the control these are two: the seeds, of which there are few, and the clips or samples on which all
seeds are measured alike, which more seeds do not reduce. Each has limits of its own, and those of the mean are as far as both
in squares: the method of variance estimates recovery (Zou and Donner, Statistics in Medicine 27, 2008). So an interval is
never narrower than Student's over the seeds alone. What seeds scatter by holds some of what clips do, so that it is rather
too wide.

Dimensions: S seeds, N clips.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

from sparsevid.evaluation.comparison import LEVEL

NORMAL = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)


class Interval(NamedTuple):
    """Both ends of an interval of `LEVEL`."""

    low: float
    high: float


class Part(NamedTuple):
    """How far a mean may be off by one thing alone, at `LEVEL`: the distances to both ends of its interval."""

    below: float
    above: float


def of_variance(variance: float, freedom: float) -> Part:
    """Student's limits of a mean.

    Args:
        variance: of the mean.
        freedom: degrees of freedom of the variance.
    """
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Part(half, half)


def interval_of(mean: float, parts: Sequence[Part]) -> Interval | None:
    """The interval of a mean; None without a part, for then nothing says how far it may be off."""
    if not parts:
        return None
    return Interval(mean - math.hypot(*(part.below for part in parts)), mean + math.hypot(*(part.above for part in parts)))


def of_seeds(values: Sequence[float]) -> list[Part]:
    """What S values say of their mean: s² / S; one value says nothing."""
    count = len(values)
    return [of_variance(float(np.var(values, ddof=1)) / count, count - 1)] if count > 1 else []


def of_paired_clips(rows: Sequence[Sequence[float]], controls: Sequence[Sequence[float]]) -> Part:
    """What clips say of a mean difference of values that were measured on the same ones: what they have in common drops out.

    Args:
        rows: S lists of N values, by seed and clip.
        controls: the same of the control.

    Raises:
        ValueError: other clips, or fewer than two.
    """
    of_clips = _differences(rows, controls)
    return of_variance(float(np.var(of_clips, ddof=1)) / len(of_clips), len(of_clips) - 1)


def of_paired_halves(rows: Sequence[Sequence[float]], controls: Sequence[Sequence[float]], samples: float) -> Part:
    """What samples say of a mean difference of distances that were computed on the same halves of clips and samples.

    Sample i of row and control starts from the same noise, and both are compared with the same real clips: what these do to
    both distances drops out. Around their mean, values on halves scatter as those of fresh sets of full size.

    Args:
        rows: S lists of distances, by seed and half.
        controls: the same of the control.
        samples: N, of which a half is half.

    Raises:
        ValueError: other numbers of halves, or fewer than two.
    """
    of_halves = _differences(rows, controls)
    return of_variance(float(np.var(of_halves, ddof=1)), min(samples, len(of_halves)) - 1)


def of_errors(errors: Sequence[Sequence[float]], samples: float) -> Part:
    """What samples say of a mean difference, as if row and control had been drawn independently.

    Args:
        errors: S pairs of standard errors, of row and control.
        samples: N, of the smaller one.
    """
    return of_variance(statistics.fmean(math.fsum(error**2 for error in pair) for pair in errors), samples - 1)


def error_of_interval(interval: Sequence[float]) -> float:
    """The standard error that an interval of `LEVEL` stands for."""
    low, high = interval
    return (high - low) / (2 * NORMAL)


def of_shares(pairs: Sequence[Sequence[tuple[float, int]]]) -> Part:
    """What samples say of a mean difference of shares of them, as if row and control had been drawn independently.

    Newcombe's interval of a difference, from Wilson's of each share (Statistics in Medicine 17, 1998): of all of 512 samples
    it is not certain that it is all of all.

    Args:
        pairs: S pairs of (share, samples), of row and control.
    """
    own, other = (np.array([_limits(*pair[side]) for pair in pairs]) for side in (0, 1))  # (S,2): below, above
    below, above = np.square(own[:, 0]) + np.square(other[:, 1]), np.square(own[:, 1]) + np.square(other[:, 0])
    return Part(float(below.mean()) ** 0.5, float(above.mean()) ** 0.5)


def _differences(rows: Sequence[Sequence[float]], controls: Sequence[Sequence[float]]) -> np.ndarray:
    """Paired differences (N,) of values by seed and clip, or half, on average over seeds."""
    lengths = {len(values) for values in (*rows, *controls)}
    if len(rows) != len(controls) or len(lengths) != 1 or min(lengths) < 2:
        raise ValueError("paired differences take values of the same clips or halves, two or more, of row and control")
    return (np.array(rows) - np.array(controls)).mean(axis=0)


def _limits(share: float, samples: int) -> tuple[float, float]:
    """How far Wilson's interval of a share reaches below and above it."""
    found = binomtest(round(share * samples), samples).proportion_ci(LEVEL, method="wilson")
    return max(0.0, share - found.low), max(0.0, found.high - share)
