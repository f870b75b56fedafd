"""What measurements show: means over seeds, paired differences to the control with intervals, and what may be said of them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sparsevid.study.intervals import (
    Interval,
    Part,
    error_of_interval,
    interval_of,
    of_errors,
    of_paired_clips,
    of_paired_halves,
    of_seeds,
    of_shares,
)
from sparsevid.study.measurements import ALIKE, Measurement, StudyResults

MANY = 1e6  # samples, where a line does not say how many
QUALITIES = {"loss": True, "distance": True, "accuracy": False}  # whether less of it is better
TIMES = ("seconds", "training_seconds")  # figures that compare on the same hardware alone
BETTER, WORSE, OPEN = "better", "worse", "cannot be told"
Pairs = Sequence[tuple[Measurement, Measurement]]  # of a row and its control, by seed


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
        interval: None where nothing says how far it may be off; of one seed it is for other clips alone, not for another
            training.
        seeds: that both rows have.
        clips: what the interval is over beside seeds, such as `64 clips`; empty: nothing.
        less_is_better: of the figure.
    """

    mean: float
    interval: Interval | None
    seeds: int
    clips: str
    less_is_better: bool

    @property
    def told(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high

    @property
    def verdict(self) -> str:
        """`better` or `worse` only where the interval excludes zero."""
        if not self.told:
            return OPEN
        return BETTER if (self.mean < 0) == self.less_is_better else WORSE

    @property
    def of(self) -> str:
        """What the interval is over."""
        named = [self.clips] if self.clips else []
        return " of ".join([*named, "one seed"]) if self.seeds == 1 else " and ".join([*named, f"{self.seeds} seeds"])


def estimate(measurements: Sequence[Measurement], figure: str) -> Estimate | None:
    """Mean, spread and interval of a figure; None if no seed has it."""
    found = [each for each in measurements if figure in each.figures]
    if not found:
        return None
    values = tuple(each.figures[figure] for each in found)
    mean = statistics.fmean(values)
    if len(values) > 1:
        return Estimate(mean, values, statistics.stdev(values), interval_of(mean, of_seeds(values)), f"{len(values)} seeds")
    own = found[0].distance_interval if figure == "distance" else None
    interval = None if own is None else Interval(max(0.0, own[0]), own[1])  # a bootstrap's may reach below what there is
    return Estimate(mean, values, None, interval, "the samples of one seed")


def estimates(measurements: Sequence[Measurement], figure: str) -> dict[str, Estimate]:
    """A figure's estimates by hardware: of `TIMES` one for each, of other figures one under an empty name; without it none."""
    groups: dict[str, list[Measurement]] = {}
    for each in measurements:
        groups.setdefault(each.hardware if figure in TIMES else "", []).append(each)
    found = {hardware: estimate(group, figure) for hardware, group in groups.items()}
    return {hardware: each for hardware, each in found.items() if each is not None}


def differences(study: StudyResults) -> dict[str, dict[str, Difference | None]]:
    """By quality, the difference of each row that has a control to it; of a loss only of rows that have one of their own."""
    pairs = {row: control for row in study.rows if (control := study.control(row)) is not None}
    return {
        figure: {
            row: difference(study.of(row), study.of(control), figure)
            for row, control in pairs.items()
            if figure != "loss" or study.loss_of(row) is None
        }
        for figure in QUALITIES
    }


def difference(measurements: Sequence[Measurement], control: Sequence[Measurement], figure: str) -> Difference | None:
    """The paired difference of a row to its control, by seed.

    What all seeds are measured on is for a loss the clips, paired; for a distance its samples, paired by their noise where
    lines have kept what that takes, else as if they had been drawn independently; for an accuracy a share of samples. Of one
    seed that is all that is known, and nothing is known of other trainings.

    Args:
        measurements: of the row.
        control: of the control.
        figure: in `QUALITIES`.

    Returns:
        None if no seed has the figure in both, or if losses were kept of other numbers of clips.
    """
    pairs = pairs_of(measurements, control, figure)
    if not pairs or (figure == "loss" and len({len(each.losses) for pair in pairs for each in pair if each.losses}) > 1):
        return None
    by_seed = [own.figures[figure] - other.figures[figure] for own, other in pairs]
    part = {"loss": _of_losses, "distance": _of_distances, "accuracy": _of_shares}[figure](pairs)
    clips = "" if part is None else f"{len(pairs[0][0].losses)} clips" if figure == "loss" else "samples"
    mean = statistics.fmean(by_seed)
    parts = [*([] if part is None else [part]), *of_seeds(by_seed)]
    return Difference(mean, interval_of(mean, parts), len(pairs), clips, QUALITIES[figure])


def ratio(measurements: Sequence[Measurement], control: Sequence[Measurement], cost: str) -> float | None:
    """A row's cost over that of the control of the same seed, on average; of times only where the hardware is the same."""
    pairs = [(own, other) for own, other in pairs_of(measurements, control, cost) if other.figures[cost]]
    if cost in TIMES:
        pairs = [(own, other) for own, other in pairs if own.hardware == other.hardware]
    return statistics.fmean(own.figures[cost] / other.figures[cost] for own, other in pairs) if pairs else None


def pairs_of(measurements: Sequence[Measurement], control: Sequence[Measurement], figure: str) -> Pairs:
    """Row and control of the seeds of which both have the figure, and have it of the same clips by the same rule."""
    others = {each.seed: each for each in control if figure in each.figures}
    pairs = [(each, others[each.seed]) for each in measurements if figure in each.figures and each.seed in others]
    return [
        pair for pair in pairs if len({tuple(map(each.facts.get, ALIKE)) for each in pair}) == 1 and not _trained_anew(*pair)
    ]


def _trained_anew(own: Measurement, other: Measurement) -> bool:
    """Whether both are of one run, of which one was measured before it was trained again."""
    runs, weights = ({each.facts.get(key) for each in (own, other)} for key in ("run", "weights"))
    return len(runs) == 1 and len(weights) == 2 and None not in runs | weights


def _of_losses(pairs: Pairs) -> Part | None:
    """None if not all have kept losses of two clips or more."""
    if any(len(each.losses) < 2 for pair in pairs for each in pair):
        return None
    return of_paired_clips([own.losses for own, _ in pairs], [other.losses for _, other in pairs])


def _of_distances(pairs: Pairs) -> Part | None:
    """None if there is a distance without its interval. Paired where the same halves of as many samples were compared."""
    kept = {(len(each.halves), each.figures.get("clips")) for pair in pairs for each in pair}
    if len(kept) == 1 and min(kept)[0] >= 2:
        rows, controls = ([pair[side].halves for pair in pairs] for side in (0, 1))
        return of_paired_halves(rows, controls, _samples(pairs))
    intervals = [[each.distance_interval for each in pair if each.distance_interval is not None] for pair in pairs]
    if any(len(known) < len(pair) for known, pair in zip(intervals, pairs, strict=True)):
        return None
    return of_errors([list(map(error_of_interval, known)) for known in intervals], _samples(pairs))


def _of_shares(pairs: Pairs) -> Part | None:
    """None if the number of samples is not known."""
    if any(each.figures.get("clips", 0) < 2 for pair in pairs for each in pair):
        return None
    return of_shares([[_share(each) for each in pair] for pair in pairs])


def _share(each: Measurement) -> tuple[float, int]:
    """The accuracy, within 0 to 1, and the number of samples."""
    return min(1.0, max(0.0, each.figures["accuracy"])), int(min(each.figures["clips"], MANY))


def _samples(pairs: Pairs) -> float:
    return min(max(2.0, each.figures.get("clips", MANY)) for pair in pairs for each in pair)
