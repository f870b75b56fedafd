"""What lines of a study's results say: what is missing is missing, what is damaged is named."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sparsevid.study.results import LARGEST, Line, is_finite, parsed

CONTROL = "dense"  # the row that others are compared with, where their lines name no other
REAL = "real"  # a row that has clips to show and is nobody's measurement
NUMBERS = ("loss", "distance", "distance_real", "accuracy", "accuracy_real", "accuracy_shuffled", "clips", "macs", "seconds",
           "training_seconds", "training_macs", "total_training_macs", "parameters", "steps", "total_steps")  # fmt: skip
FACTS = ("date", "commit", "hardware", "metric", "layout", "sample", "versions", "command", "settings", "data", "captions",
         "measured", "run", "weights")  # fmt: skip
Kind = tuple[str | float | None, ...]
ALIKE = ("data", "metric", "measured")  # facts without which figures mean different things


class StageLoss(NamedTuple):
    """The held-out loss over diffusion times from `low` to `high`."""

    low: float
    high: float
    loss: float


class TokenStep(NamedTuple):
    """The number of sparse tokens over diffusion times from `low` to `high`."""

    low: float
    high: float
    tokens: float


@dataclass(frozen=True)
class Measurement:
    """What was measured of a row and a seed.

    Attributes:
        study: name.
        row: name.
        seed: of training and sampling.
        figures: numbers by their names in `NUMBERS`, of those that were measured; all finite.
        losses: held-out losses clip by clip, the same clips in all rows; empty if they were not kept.
        stages: held-out loss by stage; empty if it was not measured.
        distance_interval: low and high end, of the samples of this seed.
        halves: distances on the halves that the interval is made of; empty if they were not kept.
        schedule: sparse tokens over time; empty of a dense model, or if it is not said.
        shown: file of clips to show.
        shown_real: file of real clips beside them.
        classes: names of the clips in `shown`.
        control: the row that it is compared with; None of what is compared with nothing.
        note: for the reader, with the row whose figures it has, if they were measured of another one of the same settings.
        facts: texts by their names in `FACTS`, of those that are known.
    """

    study: str
    row: str
    seed: int
    figures: Mapping[str, float] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    stages: tuple[StageLoss, ...] = ()
    distance_interval: tuple[float, float] | None = None
    halves: tuple[float, ...] = ()
    schedule: tuple[TokenStep, ...] = ()
    shown: Path | None = None
    shown_real: Path | None = None
    classes: tuple[str, ...] = ()
    control: str | None = CONTROL
    note: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """What figures are of: those of other data, metrics, rules of measuring or numbers of samples have no mean."""
        return (*map(self.facts.get, ALIKE), self.figures.get("clips"))

    @property
    def hardware(self) -> str:
        """What it was measured on; empty if that is not said. Times compare where it is the same."""
        return self.facts.get("hardware", "")


@dataclass
class StudyResults:
    """What was measured of a study's rows.

    Attributes:
        name: of the study.
        measurements: the newest of each row and seed.
        sources: files that they were read from.
    """

    name: str
    measurements: dict[tuple[str, int], Measurement] = field(default_factory=dict)
    sources: list[Path] = field(default_factory=list)

    @property
    def rows(self) -> list[str]:
        """Names of the rows that are measured, the control of most first, the others in the order of the file."""
        names = dict.fromkeys(row for row, _ in self.measurements if row != REAL)
        controls = Counter(each.control for each in self.measurements.values() if each.control in names)
        first = {name for name, _ in controls.most_common(1)}
        return [*(name for name in names if name in first), *(name for name in names if name not in first)]

    def control(self, row: str) -> str | None:
        """The row that a row is compared with; None if there is none but itself, or nothing measured of it."""
        said = [each.control for each in self.of(row)]
        found = said[-1] if said else None
        return found if found in self.rows and found != row else None

    @property
    def against(self) -> str:
        """What rows are compared with, in a word."""
        found = list(dict.fromkeys(filter(None, map(self.control, self.rows))))
        return found[0] if len(found) == 1 else "the control"

    def on_one_hardware(self) -> tuple["StudyResults", str]:
        """What was measured on the hardware that most rows were measured on, and what it is; times compare there alone."""
        rows: dict[str, set[str]] = {}
        for (row, _), each in self.measurements.items():
            if "seconds" in each.figures:
                rows.setdefault(each.hardware, set()).add(row)
        most = max(rows, key=lambda name: len(rows[name]), default="")
        kept = {key: each for key, each in self.measurements.items() if each.hardware == most}
        return StudyResults(self.name, kept, self.sources), most

    def of(self, row: str) -> list[Measurement]:
        """The measurements of a row, by seed."""
        return [self.measurements[key] for key in sorted(key for key in self.measurements if key[0] == row)]

    def loss_of(self, row: str) -> str | None:
        """The row before this one whose losses it has clip by clip, as it samples that one's run; None: they are its own."""
        own = {(each.seed, each.losses) for each in self.of(row)}
        before = self.rows[: self.rows.index(row)]
        found = (name for name in before if own <= {(each.seed, each.losses) for each in self.of(name)})
        return next(found, None) if all(losses for _, losses in own) else None


def read_studies(paths: Iterable[Path]) -> tuple[list[StudyResults], list[str]]:
    """Read files of results. Lines of one study add up to one table, from whichever file they come.

    Args:
        paths: files with a JSON object a line. Of lines of one study, row and seed the last one counts.

    Returns:
        The studies in the order in which they are met, and a sentence for everything that was left out: what cannot be read,
        and seeds of a row that were measured on other data or otherwise than its newest line.
    """
    studies: dict[str, StudyResults] = {}
    problems: list[str] = []
    newest: dict[tuple[str, str], Measurement] = {}
    for path in paths:
        for found in parsed(path, partial(_measurement, folder=path.parent, problems=problems), problems.append):
            study = studies.setdefault(found.study, StudyResults(found.study))
            study.measurements[found.row, found.seed] = newest[found.study, found.row] = found
            if path not in study.sources:
                study.sources.append(path)
    kinds = {key: each.kind for key, each in newest.items()}
    problems += [problem for study in studies.values() for problem in _leave_out_others(study, kinds)]
    return list(studies.values()), problems


def _leave_out_others(study: StudyResults, kinds: Mapping[tuple[str, str], Kind]) -> list[str]:
    """Take out seeds that have no mean with their row's newest line, whose kind is given; a sentence for each row."""
    others = [key for key, each in study.measurements.items() if each.kind != kinds[study.name, each.row]]
    for key in others:
        del study.measurements[key]
    rows = {row: [str(seed) for name, seed in others if name == row] for row, _ in others}
    return [
        f"{study.name}: {row!r}, seed {', '.join(seeds)}: measured on other data or samples, or otherwise, than its newest line"
        for row, seeds in rows.items()
    ]


def _measurement(values: Line, where: str, folder: Path, problems: list[str]) -> Measurement:
    """A line's values. What cannot be read of them is said in `problems`.

    Raises:
        ValueError: it does not say what it is of.
    """
    for key, kind in (("study", str), ("row", str), ("seed", int)):
        if not isinstance(values.get(key), kind) or isinstance(values[key], bool):
            raise ValueError(f"its key {key!r} holds no {'text' if kind is str else 'whole number'}")

    def read(key: str, parse: Any, missing: Any) -> Any:
        """A key's value; `missing`, and a word about it, if it is not as it should be."""
        if values.get(key) is None:
            return missing
        try:
            return parse(values[key])
        except (TypeError, ValueError, KeyError, OverflowError, OSError) as error:
            problems.append(f"{where}: {key} of {values['row']!r}, seed {values['seed']}, is passed over: {error}")
            return missing

    figures = {key: read(key, finite, None) for key in NUMBERS}
    shown, real = (read(key, lambda name: _found(_text(name), folder), None) for key in ("shown", "shown_real"))
    return Measurement(
        study=values["study"],
        row=values["row"],
        seed=values["seed"],
        figures={key: value for key, value in figures.items() if value is not None},
        losses=read("losses", lambda found: tuple(map(finite, _list(found))), ()),
        stages=read("stages", _stages, ()),
        distance_interval=read("distance_interval", _span, None),
        halves=read("distance_halves", lambda found: tuple(map(finite, _list(found))), ()),
        schedule=read("schedule", token_steps, ()),
        shown=shown,
        shown_real=real,
        control=read("control", _text, None) if "control" in values else CONTROL,
        classes=read("classes", lambda found: tuple(map(str, _list(found))), ()),
        note=_note(values),
        facts={key: text for key in FACTS if (text := _fact(values.get(key)))},
    )


def _note(values: Line) -> str:
    same = _fact(values.get("same_as"))
    return "; ".join(filter(None, [_fact(values.get("note")), f"figures of {same}" if same else ""]))


def finite(value: Any) -> float:
    """A number of JSON as a float; what is next to nothing is zero.

    Raises:
        ValueError: it is none, not finite, or beyond all measure.
    """
    if not is_finite(value):
        raise ValueError(f"{cut(value)} is no finite number up to {LARGEST:g}")
    return float(value) if abs(value) > 1 / LARGEST else 0.0


def cut(value: Any) -> str:
    """A value for a message, shortened where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def short_hash(text: str) -> str:
    """A text whose hashes are cut to ten letters."""
    return re.sub(r"\b([0-9a-f]{10})[0-9a-f]{10,54}\b", r"\1", text)


def token_steps(rows: Sequence[Sequence[float]]) -> tuple[TokenStep, ...]:
    """Rows (u, tokens) as steps: with rising u that begin at 0, u is from where on; else it is up to where.

    Raises:
        ValueError: times that do not rise within 0 to 1, fewer than no tokens, or a row of another form.
    """
    pairs = [(finite(u), finite(tokens)) for u, tokens in map(_list, _list(rows))]
    times = [u for u, _ in pairs]
    if not pairs or times != sorted(set(times)) or times[0] < 0 or times[-1] > 1:
        raise ValueError(f"the times {times} of a schedule do not rise within 0 to 1")
    if min(tokens for _, tokens in pairs) < 0:
        raise ValueError("a schedule of fewer than no tokens")
    starts = times[0] == 0
    lows, highs = (times, [*times[1:], 1.0]) if starts else ([0.0, *times[:-1]], [*times[:-1], 1.0])
    return tuple(TokenStep(low, high, each[1]) for low, high, each in zip(lows, highs, pairs, strict=True) if low < high)


def _stages(rows: Any) -> tuple[StageLoss, ...]:
    found = [StageLoss(*_span(row["u"]), finite(row["loss"])) for row in _list(rows)]
    return tuple(sorted(found))


def _span(value: Any) -> tuple[float, float]:
    low, high = map(finite, _list(value))
    if low > high:
        raise ValueError(f"{cut(value)} ends before it begins")
    return low, high


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{cut(value)} is no list")
    return list(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{cut(value)} is no text")
    return value


def _found(name: str, folder: Path) -> Path:
    """A path that is relative to the folder of the results, or to the working directory."""
    beside = folder / name
    return beside if beside.exists() else Path(name)


def _fact(value: Any) -> str:
    """A value of any kind as a text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {fact}" for key, each in value.items() if (fact := _fact(each)))
    if isinstance(value, list):
        return ", ".join(map(_fact, value))
    return "" if value is None else str(value)
