"""What measurements show: means over seeds, paired differences to the control with intervals, and what may be said of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from sparsevid.study.page.results import Measurement

LEVEL = 0.95
QUALITIES = {"loss": True, "distance": True, "accuracy": False}  # whether less of it is better
BETTER, WORSE, OPEN = "better", "worse", "cannot be told"


class Interval(NamedTuple):
    """Both ends."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A figure of a row.

    Attributes:
        mean: over seeds.
        values: by seed.
        spread: standard deviation over seeds; None of one seed.
        interval: of the mean: Student's t over seeds; of one seed what the line itself says, if it does.
        of: what the interval is over.
    """

    mean: float
    values: tuple[float, ...]
    spread: float | None
    interval: Interval | None
    of: str


@dataclass(frozen=True)
class Difference:
    """A row's figure minus that of the control of the same seed, on average.

    Attributes:
        mean: over seeds.
        interval: None where nothing says how far it may be off.
        seeds: that both rows have.
        of: what the interval is over.
        less_is_better: of the figure.
    """

    mean: float
    interval: Interval | None
    seeds: int
    of: str
    less_is_better: bool

    @property
    def verdict(self) -> str:
        """`better` or `worse` only where the interval excludes zero."""
        if self.interval is None or self.interval.low <= 0 <= self.interval.high:
            return OPEN
        return BETTER if (self.mean < 0) == self.less_is_better else WORSE


def estimate(measurements: Sequence[Measurement], figure: str) -> Estimate | None:
    """Mean, spread and interval of a figure; None if no seed has it."""
    found = [each for each in measurements if figure in each.figures]
    if not found:
        return None
    values = tuple(each.figures[figure] for each in found)
    mean = math.fsum(values) / len(values)
    if len(values) > 1:
        return Estimate(mean, values, float(np.std(values, ddof=1)), _over_seeds(values), f"{len(values)} seeds")
    own = found[0].distance_interval if figure == "distance" else None
    return Estimate(mean, values, None, None if own is None else Interval(*own), "the samples of one seed")


def difference(measurements: Sequence[Measurement], control: Sequence[Measurement], figure: str) -> Difference | None:
    """The paired difference of a row to the control, by seed.

    Of a loss that was kept clip by clip, clips and seeds count as drawn at random, crossed: the variance of the mean is that of
    the seeds' means plus that of the clips' means (too wide by what they share, never too narrow), with the degrees of freedom
    of Satterthwaite. Other figures: Student's t over the seeds' differences. Of one seed, a loss varies over clips and a
    distance over samples, by the intervals of both (Zou and Donner 2008), and nothing is known of other trainings.

    Args:
        measurements: of the row.
        control: of the control.
        figure: in `QUALITIES`.

    Returns:
        None if no seed has the figure in both.
    """
    others = {each.seed: each for each in control if figure in each.figures}
    pairs = [(each, others[each.seed]) for each in measurements if figure in each.figures and each.seed in others]
    if not pairs:
        return None
    values = [own.figures[figure] - other.figures[figure] for own, other in pairs]
    mean = math.fsum(values) / len(values)

    def result(interval: Interval | None, of: str) -> Difference:
        return Difference(mean, interval, len(pairs), of, QUALITIES[figure])

    clips = _by_clip(pairs) if figure == "loss" else None
    if clips is not None:
        of = f"{clips.shape[1]} clips" + (f" and {len(pairs)} seeds" if len(pairs) > 1 else " of one seed")
        return result(_crossed(mean, values, clips), of)
    if len(pairs) > 1:
        return result(_over_seeds(values), f"{len(pairs)} seeds")
    if figure == "distance":
        return result(_of_two(*pairs[0]), "the samples of one seed")
    return result(None, "one seed")


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats in both coordinates, less being better, by rising first coordinate."""
    order = sorted(range(len(points)), key=lambda index: points[index])
    front: list[int] = []
    for index in order:
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def _over_seeds(values: Sequence[float]) -> Interval:
    half = _t(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = math.fsum(values) / len(values)
    return Interval(mean - half, mean + half)


def _by_clip(pairs: Sequence[tuple[Measurement, Measurement]]) -> np.ndarray | None:
    """Differences (seeds, clips); None if not all have kept losses of as many clips, two or more."""
    lengths = {len(each.losses) for pair in pairs for each in pair}
    if len(lengths) != 1 or min(lengths) < 2:
        return None
    return np.array([own.losses for own, _ in pairs]) - np.array([other.losses for _, other in pairs])


def _crossed(mean: float, values: Sequence[float], clips: np.ndarray) -> Interval:
    """See `difference`."""
    sources = [(float(np.var(clips.mean(axis=0), ddof=1)) / clips.shape[1], clips.shape[1] - 1)]
    if len(values) > 1:
        sources.append((float(np.var(values, ddof=1)) / len(values), len(values) - 1))
    variance = sum(each for each, _ in sources)
    if variance == 0:
        return Interval(mean, mean)
    freedom = variance**2 / sum(each**2 / count for each, count in sources)
    half = _t(freedom) * math.sqrt(variance)
    return Interval(mean - half, mean + half)


def _of_two(own: Measurement, other: Measurement) -> Interval | None:
    """An interval for the difference of two distances out of that of each."""
    if own.distance_interval is None or other.distance_interval is None:
        return None
    x, y = own.figures["distance"], other.figures["distance"]
    (low, high), (other_low, other_high) = own.distance_interval, other.distance_interval
    return Interval(x - y - math.hypot(x - low, other_high - y), x - y + math.hypot(high - x, y - other_low))


def _t(freedom: float) -> float:
    return float(student.ppf((1 + LEVEL) / 2, freedom))
