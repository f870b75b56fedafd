"""What can be told from some seeds and some clips: intervals of means, whose variance is a sum of parts.

Of a mean difference to the control there are two parts: that of the mean over seeds, s² / S, and that of the clips or samples
on which all seeds are measured alike, which more seeds do not reduce. The first holds some of the second, so that the interval
is rather too wide.

Dimensions: S seeds, N clips.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

LEVEL = 0.95
NORMAL = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)


class Interval(NamedTuple):
    """Both ends of an interval of `LEVEL`."""

    low: float
    high: float


class Part(NamedTuple):
    """A part of the variance of a mean, and its degrees of freedom."""

    variance: float
    freedom: float


def interval_of(mean: float, parts: Sequence[Part]) -> Interval | None:
    """The interval of a mean; None without a part, for then nothing says how far it may be off.

    Degrees of freedom of a sum of parts are those of Welch and Satterthwaite.
    """
    variance = math.fsum(part.variance for part in parts)
    if not parts or variance == 0:
        return Interval(mean, mean) if parts else None
    freedom = 1 / math.fsum((part.variance / variance) ** 2 / part.freedom for part in parts)
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Interval(mean - half, mean + half)


def of_seeds(values: Sequence[float]) -> list[Part]:
    """What S values say of their mean: s² / S; one value says nothing."""
    count = len(values)
    return [Part(float(np.var(values, ddof=1)) / count, count - 1)] if count > 1 else []


def of_paired_clips(rows: Sequence[Sequence[float]], controls: Sequence[Sequence[float]]) -> Part:
    """What clips say of a mean difference of values that were measured on the same ones: what they have in common drops out.

    Args:
        rows: S lists of N values, by seed and clip.
        controls: the same of the control.

    Raises:
        ValueError: other clips, or fewer than two.
    """
    lengths = {len(values) for values in (*rows, *controls)}
    if len(rows) != len(controls) or len(lengths) != 1 or min(lengths) < 2:
        raise ValueError("paired differences take values of the same clips, two or more, of row and control")
    of_clips = (np.array(rows) - np.array(controls)).mean(axis=0)  # (N): over seeds
    return Part(float(np.var(of_clips, ddof=1)) / len(of_clips), len(of_clips) - 1)


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
    lengths = {len(values) for values in (*rows, *controls)}
    if len(rows) != len(controls) or len(lengths) != 1 or min(lengths) < 2:
        raise ValueError("paired distances take values on the same halves, two or more, of row and control")
    of_halves = (np.array(rows) - np.array(controls)).mean(axis=0)
    return Part(float(np.var(of_halves, ddof=1)), samples - 1)


def of_errors(errors: Sequence[Sequence[float]], samples: float) -> Part:
    """What samples say of a mean difference, as if row and control had been drawn independently.

    Args:
        errors: S pairs of standard errors, of row and control.
        samples: N, of the smaller one.
    """
    return Part(statistics.fmean(math.fsum(error**2 for error in pair) for pair in errors), samples - 1)


def error_of_interval(interval: Sequence[float]) -> float:
    """The standard error that an interval of `LEVEL` stands for."""
    low, high = interval
    return (high - low) / (2 * NORMAL)


def error_of_share(share: float, clips: float) -> float:
    """The standard error of a share of clips; of none and of all that of half a clip less."""
    share = min(max(share, 0.5 / clips), 1 - 0.5 / clips)
    return math.sqrt(share * (1 - share) / clips)


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation over seeds; None of one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
