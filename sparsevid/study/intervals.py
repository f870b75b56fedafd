"""What can be told from some seeds and some clips: means, and differences to the control with their intervals.

Dimensions: S seeds, N clips.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

LEVEL = 0.95
NORMAL = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)


@dataclass(frozen=True)
class Difference:
    """A difference to the control, with its interval of `LEVEL`.

    Attributes:
        mean: over seeds.
        low, high: ends of the interval.
        seeds: S; of one seed the interval is for other clips alone, not for another training.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def told(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def difference(by_seed: Sequence[float], clip_variance: float, clips: int) -> Difference:
    """The mean of differences over seeds, each to the control of the same seed.

    Its variance is taken as the sum of two parts: that of the mean over seeds, s² / S, with S − 1 degrees of freedom, and that
    of the clips, on which all seeds are measured alike and which more seeds do not reduce. The first holds some of the second,
    so that the interval is rather too wide. Degrees of freedom of the sum are those of Welch and Satterthwaite.

    Args:
        by_seed: S differences.
        clip_variance: squared standard error of a difference by its clips.
        clips: N.

    Raises:
        ValueError: no difference.
    """
    if not by_seed:
        raise ValueError("a difference takes one seed or more that row and control share")
    parts = [(clip_variance, max(1, clips - 1))]
    if len(by_seed) > 1:
        parts.append((statistics.variance(by_seed) / len(by_seed), len(by_seed) - 1))
    variance, mean = sum(part for part, _ in parts), statistics.fmean(by_seed)
    if not variance:
        return Difference(mean, mean, mean, len(by_seed))
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Difference(mean, mean - half, mean + half, len(by_seed))


def paired_difference(rows: Sequence[Sequence[float]], controls: Sequence[Sequence[float]]) -> Difference:
    """The difference of means of values that were measured on the same clips: what clips have in common drops out.

    Args:
        rows: S lists of N values, by seed and clip.
        controls: the same of the control.

    Raises:
        ValueError: other clips, or none.
    """
    pairs = list(zip(rows, controls, strict=True))
    if not pairs or any(len(row) != len(control) or not row for row, control in pairs):
        raise ValueError("paired differences take values of the same clips of row and control")
    by_clip = [[a - b for a, b in zip(row, control, strict=True)] for row, control in pairs]
    means = [statistics.fmean(values) for values in zip(*by_clip, strict=True)]  # over seeds, of each clip
    variance = statistics.variance(means) / len(means) if len(means) > 1 else 0.0
    return difference([statistics.fmean(values) for values in by_clip], variance, len(means))


def error_of_interval(interval: Sequence[float]) -> float:
    """The standard error that an interval of `LEVEL` stands for."""
    low, high = interval
    return (high - low) / (2 * NORMAL)


def error_of_share(share: float, clips: int) -> float:
    """The standard error of a share of clips; of none and of all that of half a clip less."""
    share = min(max(share, 0.5 / clips), 1 - 0.5 / clips)
    return math.sqrt(share * (1 - share) / clips)


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation over seeds; None of one."""
    return statistics.stdev(values) if len(values) > 1 else None
