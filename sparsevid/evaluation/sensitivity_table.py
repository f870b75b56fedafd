"""Every metric of every detector on the same damaged clips: which of them sees what, and from how many clips on.

Dimensions: N clips.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from sparsevid.evaluation.clips.clips import ClipSource, ProtocolClips, choose_clips
from sparsevid.evaluation.detectors import Detector
from sparsevid.evaluation.distortions import DISTORTIONS, SET_DISTORTIONS, TIME
from sparsevid.evaluation.evaluate import check_detector, files_stamp, one_split
from sparsevid.evaluation.features import ClipSet, compute_features
from sparsevid.evaluation.metrics.table import METRICS, Metric
from sparsevid.evaluation.protocols import Protocol
from sparsevid.evaluation.sensitivity import DistortedClips
from sparsevid.system.logging import get_logger, progress
from sparsevid.system.seeding import Purpose, keyed_generator

STRENGTHS = (0.25, 0.5, 1.0)
SIZES = 4  # halvings of the number of clips, at most, to find from which on the order is stable
HELD = 2**30
STABLE = 0.95  # rank correlation of an order with that of all clips
HALVES = 20  # draws of two halves of the clips
TOLD = 0.95  # share of these in which damage is to be told
ALL = (*DISTORTIONS, *SET_DISTORTIONS)

logger = get_logger(__name__)


class HeldClips:
    """The clips of another set, read once if they take no more than `HELD` bytes: they are wanted for each damage again."""

    def __init__(self, clips: ClipSet) -> None:
        self.clips, self.ids, self.origin, self.fingerprint = clips, clips.ids, clips.origin, clips.fingerprint
        ((_, first),) = clips.read(0, 1)
        self._held = list(clips.read(0, len(clips))) if first.numel() * len(clips) <= HELD else None

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, first: int, last: int) -> Iterator[tuple[str, Tensor]]:
        return self.clips.read(first, last) if self._held is None else iter(self._held[first:last])


@dataclass(frozen=True)
class Answer:
    """What a metric says of a distortion.

    Attributes:
        scores: at each strength, of all clips against themselves undamaged.
        monotone: whether it grows worse at each step, from the undamaged set on.
        told: at each strength, the share of `HALVES` drawn halves of the clips that are worse against the other half when they
            are damaged than when they are not: generated clips are never the real ones.
    """

    scores: tuple[float, ...]
    monotone: bool
    told: tuple[float, ...]

    def told_from(self, strengths: Sequence[float]) -> float | None:
        """Least strength from which on nearly all halves tell; None where not even the strongest damage is told."""
        found = None
        for strength, share in zip(reversed(strengths), reversed(self.told), strict=True):
            if share < TOLD:
                break
            found = strength
        return found


@dataclass(frozen=True)
class MetricRow:
    """A metric of a detector.

    Attributes:
        detector, metric, value: their names; `value` as records have it.
        higher: more is better.
        clips: N.
        itself: the score of the undamaged set against itself.
        halves: mean score of an undamaged half against the other: what clips are to each other by chance, at N/2.
        answers: by distortion; none for damage that the clips cannot have.
        stable_from: least number of clips at which, and at all larger ones that were tried, the order of all damaged sets is
            nearly that of all clips; None where it is not at half of them.
    """

    detector: str
    metric: str
    value: str
    higher: bool
    clips: int
    itself: float
    halves: float
    answers: dict[str, Answer]
    stable_from: int | None


def measure_table(
    source: ClipSource,
    instruments: Sequence[tuple[Detector, Protocol]],
    *,
    limit: int,
    split: str | None = None,
    distortions: Sequence[str] = ALL,
    strengths: Sequence[float] = STRENGTHS,
    batch_size: int = 16,
    keep: Path | None = None,
) -> list[MetricRow]:
    """Score real clips in each distortion and strength against the same clips undamaged, by all that can be computed.

    All ranks call it together. Features of each damaged set are computed once for all metrics of a detector. Values of a metric
    beside its first one, such as recall, have rows of their own.

    Args:
        source: of real clips, see `choose_clips`.
        instruments: detectors with the protocols by which clips are taken.
        limit: clips.
        split: of the real data; needed where a protocol reports several.
        distortions: names of `DISTORTIONS` and `SET_DISTORTIONS`.
        strengths: increasing, above 0 and up to 1.
        batch_size: clips of a forward pass.
        keep: folder for the feature file of each damaged set; what is finished there is taken up. None keeps nothing.

    Raises:
        ValueError: an unknown distortion, or see `choose_clips` and `compute_features`.
    """
    if unknown := [name for name in distortions if name not in ALL]:
        raise ValueError(f"unknown distortions {', '.join(unknown)}; accepted: {', '.join(ALL)}")
    rows: list[MetricRow] = []
    for detector, protocol in instruments:
        check_detector(detector, protocol)
        rules = replace(protocol, split=split or one_split(protocol, "real"))
        clips = choose_clips(source, "real", rules, limit=limit)
        fitting = [name for name in distortions if protocol.frames > 1 or name not in TIME]
        sets = _damaged(clips, detector, fitting, strengths, protocol.seed, batch_size, keep)
        rows += _rows(detector, protocol, sets, fitting, strengths)
    return rows


def _damaged(
    clips: ProtocolClips,
    detector: Detector,
    names: Sequence[str],
    strengths: Sequence[float],
    seed: int,
    batch_size: int,
    keep: Path | None,
) -> dict[tuple[str, float], Tensor]:
    """Features of each damaged set by distortion and strength; ("", 0) is undamaged. All in one drawn order."""
    stamp = "" if keep is None else files_stamp(clips)
    held = HeldClips(clips)
    order = torch.randperm(len(held), generator=keyed_generator(Purpose.HALVES, seed))
    wanted = [("", 0.0), *((name, strength) for name in names for strength in strengths)]
    sets = {}
    for name, strength in progress(wanted, desc=detector.name, unit="set", delay=2):
        damaged = DistortedClips(held, name, strength, seed) if name else held
        out = None if keep is None else keep / f"{detector.name}-{damaged.fingerprint[:12]}.safetensors"
        file = compute_features(damaged, detector, batch_size=batch_size, out=out, stamp=stamp)
        sets[name, strength] = file.features[order]
    return sets


def _rows(
    detector: Detector,
    protocol: Protocol,
    sets: dict[tuple[str, float], Tensor],
    names: Sequence[str],
    strengths: Sequence[float],
) -> Iterator[MetricRow]:
    options, outputs = protocol.as_dict(), detector.outputs()
    clean, count = sets["", 0.0], len(sets["", 0.0])
    fitting = [
        each for each in METRICS.values() if not each.prompted and each.needs in outputs and count >= 2 * max(each.least)
    ]
    for metric in progress(fitting, desc=f"{detector.name}: metrics", unit="metric", delay=2):

        def values(real: Tensor, fake: Tensor, metric: Metric = metric) -> dict[str, float]:
            columns = outputs[metric.needs]
            found = metric.compute(real[:, columns], fake[:, columns], options)
            return {name: value for name, value in found.items() if not name.endswith("_std")}

        scored = {key: values(clean, features) for key, features in sets.items()}
        halves = _by_halves(values, sets, protocol.seed)
        smaller = _by_size(values, sets, max(metric.least))
        for value in scored["", 0.0]:
            sign, itself = -1 if metric.higher else 1, scored["", 0.0][value]
            answers = {}
            for name in names:
                scores = tuple(scored[name, strength][value] for strength in strengths)
                rising = all(a < b for a, b in pairwise(sign * each for each in (itself, *scores)))
                told = tuple(fmean(sign * half[name, strength][value] > sign * half["", 0.0][value] for half in halves)
                             for strength in strengths)  # fmt: skip
                answers[name] = Answer(scores, rising, told)
            stable = _stable_from({size: [each[key][value] for key in sets] for size, each in smaller.items()},
                                  [scored[key][value] for key in sets], count)  # fmt: skip
            chance = fmean(half["", 0.0][value] for half in halves)
            yield MetricRow(detector.name, metric.name, value, metric.higher, count, itself, chance, answers, stable)


Scores = dict[tuple[str, float], dict[str, float]]  # (distortion, strength) → value → score


def _by_halves(
    values: Callable[[Tensor, Tensor], dict[str, float]], sets: dict[tuple[str, float], Tensor], seed: int
) -> list[Scores]:
    """Scores of one half of the clips, in each damage, against the other half undamaged, for each draw of halves."""
    clean, found = sets["", 0.0], []
    size = len(clean) // 2
    for draw in range(HALVES):
        order = torch.randperm(len(clean), generator=keyed_generator(Purpose.HALVES, seed, draw))
        real, fake = order[:size], order[size : 2 * size]
        found.append({key: values(clean[real], features[fake]) for key, features in sets.items()})
    return found


def _by_size(
    values: Callable[[Tensor, Tensor], dict[str, float]], sets: dict[tuple[str, float], Tensor], least: int
) -> dict[int, Scores]:
    """The same scores of the first half of the clips, the first quarter, …, as far as the metric takes so few."""
    clean, found = sets["", 0.0], {}
    for halving in range(1, SIZES + 1):
        size = len(clean) >> halving
        if size < max(least, 4):
            break
        found[size] = {key: values(clean[:size], features[:size]) for key, features in sets.items()}
    return found


def _stable_from(smaller: dict[int, list[float]], whole: list[float], count: int) -> int | None:
    """The least size from which on all orders are nearly the whole's; None where not even half of the clips' is."""
    stable = None
    for size, scores in sorted(smaller.items(), reverse=True):
        correlation = spearmanr(scores, whole).statistic if len(set(scores)) > 1 < len(set(whole)) else 0.0
        if not correlation >= STABLE:
            break
        stable = size
    return stable


def as_tables(rows: Sequence[MetricRow], strengths: Sequence[float]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and cells of a table for each detector, a row for each damage.

    A cell is the score at the strongest damage, `+` if it grows worse at each step, and the strength from which on it is told;
    in brackets where not even the strongest is.
    """
    tables = []
    for detector, group in groupby(rows, lambda row: row.detector):
        own = list(group)
        names = list(dict.fromkeys(name for row in own for name in row.answers))
        cells = [["itself", *(f"{row.itself:.3g}" for row in own)], ["halves", *(f"{row.halves:.3g}" for row in own)]]
        cells += [[name, *(_cell(row.answers[name], strengths) for row in own)] for name in names]
        cells.append(["stable from", *("more" if row.stable_from is None else str(row.stable_from) for row in own)])
        columns = ["damage", *(f"{row.value} {'↑' if row.higher else '↓'}" for row in own)]
        tables.append((f"{detector}, {own[0].clips} clips", columns, cells))
    return tables


def _cell(answer: Answer, strengths: Sequence[float]) -> str:
    score, told = f"{answer.scores[-1]:.3g}{'+' if answer.monotone else ''}", answer.told_from(strengths)
    return f"({score})" if told is None else f"{score} {told:g}"


def as_json(rows: Sequence[MetricRow], strengths: Sequence[float]) -> dict[str, Any]:
    """All of the rows as plain values."""
    return {"strengths": list(strengths), "rows": [asdict(row) for row in rows]}
