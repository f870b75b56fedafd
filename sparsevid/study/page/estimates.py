"""What measurements show: means over seeds, paired differences to the control with intervals, and what may be said of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from sparsevid.study.page.results import Measurement, Study

LEVEL = 0.95
NORMAL = NormalDist().inv_cdf((1 + LEVEL) / 2)
MANY = 1e6  # samples, where a line does not say how many
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
        variance = float(np.var(values, ddof=1))
        interval = _interval(mean, [(variance / len(values), len(values) - 1.0)])
        return Estimate(mean, values, math.sqrt(variance), interval, f"{len(values)} seeds")
    own = found[0].distance_interval if figure == "distance" else None
    return Estimate(mean, values, None, None if own is None else Interval(*own), "the samples of one seed")


def differences(study: Study) -> dict[str, dict[str, Difference | None]]:
    """By quality, the difference of each row that has a control to it."""
    pairs = {row: control for row in study.rows if (control := study.control(row)) is not None}
    return {
        figure: {row: difference(study.of(row), study.of(control), figure) for row, control in pairs.items()}
        for figure in QUALITIES
    }


def difference(measurements: Sequence[Measurement], control: Sequence[Measurement], figure: str) -> Difference | None:
    """The paired difference of a row to its control, by seed.

    Its variance is the sum of two: that of the mean over seeds, and that of what all seeds are measured on. The latter is for a
    loss that of the clips, paired; for a distance that of its samples by its interval; for an accuracy that of a share of
    samples. So the interval is too wide by what both have in common, and never too narrow. Degrees of freedom are those of
    Welch and Satterthwaite. Of one seed the second is all that is known, and nothing is known of other trainings.

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
    by_seed = [own.figures[figure] - other.figures[figure] for own, other in pairs]
    clips = {"loss": _of_clips, "distance": _of_distances, "accuracy": _of_shares}[figure](pairs)
    mean, many = math.fsum(by_seed) / len(by_seed), len(by_seed) > 1
    parts = [] if clips is None else [(clips.variance, clips.freedom)]
    if many:
        parts.append((float(np.var(by_seed, ddof=1)) / len(by_seed), len(by_seed) - 1.0))
    named = [] if clips is None else [clips.named]
    of = " and ".join([*named, f"{len(by_seed)} seeds"]) if many else " of ".join([*named, "one seed"])
    return Difference(mean, _interval(mean, parts), len(pairs), of, QUALITIES[figure])


def ratio(measurements: Sequence[Measurement], control: Sequence[Measurement], cost: str) -> float | None:
    """A row's cost over that of the control of the same seed, on average; of times only where the hardware is the same."""
    others = {each.seed: each for each in control if each.figures.get(cost)}
    pairs = [(each, others[each.seed]) for each in measurements if cost in each.figures and each.seed in others]
    if cost == "seconds":
        pairs = [(own, other) for own, other in pairs if own.facts.get("hardware") == other.facts.get("hardware")]
    return math.fsum(own.figures[cost] / other.figures[cost] for own, other in pairs) / len(pairs) if pairs else None


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats in both coordinates, less being better, by rising first coordinate."""
    order = sorted(range(len(points)), key=lambda index: points[index])
    front: list[int] = []
    for index in order:
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


class _Clips(NamedTuple):
    """The variance of a mean difference by what its seeds are all measured on, its degrees of freedom, and what that is."""

    variance: float
    freedom: float
    named: str


Pairs = Sequence[tuple[Measurement, Measurement]]


def _of_clips(pairs: Pairs) -> _Clips | None:
    """None if not all have kept losses of as many clips, two or more."""
    lengths = {len(each.losses) for pair in pairs for each in pair}
    if len(lengths) != 1 or min(lengths) < 2:
        return None
    (count,) = lengths
    means = (np.array([own.losses for own, _ in pairs]) - np.array([other.losses for _, other in pairs])).mean(axis=0)
    return _Clips(float(np.var(means, ddof=1)) / count, count - 1.0, f"{count} clips")


def _of_distances(pairs: Pairs) -> _Clips | None:
    """As if row and control had been drawn independently; None if there is a distance without its interval."""
    ends = [[each.distance_interval for each in pair] for pair in pairs]
    if any(each is None for both in ends for each in both):
        return None
    variances = [sum(((high - low) / (2 * NORMAL)) ** 2 for low, high in both) for both in ends]
    return _Clips(math.fsum(variances) / len(pairs), _samples(pairs) - 1, "samples")


def _of_shares(pairs: Pairs) -> _Clips | None:
    """None if the number of samples is not known."""
    if any(each.figures.get("clips", 0) < 2 for pair in pairs for each in pair):
        return None
    variances = []
    for each in (each for pair in pairs for each in pair):
        count = each.figures["clips"]
        share = min(max(each.figures["accuracy"], 0.5 / count), 1 - 0.5 / count)  # of none and of all, half a clip less
        variances.append(share * (1 - share) / count)
    return _Clips(math.fsum(variances) / len(pairs), _samples(pairs) - 1, "samples")


def _samples(pairs: Pairs) -> float:
    return min(max(2.0, each.figures.get("clips", MANY)) for pair in pairs for each in pair)


def _interval(mean: float, parts: Sequence[tuple[float, float]]) -> Interval | None:
    """Of a mean whose variance is a sum of parts, each with its degrees of freedom; None of none."""
    variance = math.fsum(part for part, _ in parts)
    if not parts or variance == 0:
        return Interval(mean, mean) if parts else None
    freedom = variance**2 / math.fsum(part**2 / count for part, count in parts)
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Interval(mean - half, mean + half)
