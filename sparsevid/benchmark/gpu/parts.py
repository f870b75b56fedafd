"""What a part is, what it is told, and the rows that it reports."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[3]  # of the sources; of an installed package some other folder
SKIPPED = "skipped"  # the metric of a row that says what was not measured, and why


class NotRun(Exception):
    """A part that cannot run here; the message says why."""


@dataclass(frozen=True)
class Row:
    """One thing that a part found.

    Attributes:
        case: what was looked at.
        metric: what of it.
        value: a number, a word, or None where there is none.
        unit: of the number.
        ok: whether it is as it should be; None where there is nothing that it should be.
        note: for the reader.
        part: the parent sets it.
    """

    case: str
    metric: str
    value: float | int | str | bool | None = None
    unit: str = ""
    ok: bool | None = None
    note: str = ""
    part: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.value, float | int | str | None):
            raise ValueError(f"a row's value is a number, a word or None, got {self.value!r}")
        if isinstance(self.value, float) and not math.isfinite(self.value):  # JSON has no such numbers
            object.__setattr__(self, "value", str(self.value))


@dataclass(frozen=True)
class Settings:
    """What a part is told.

    Attributes:
        command: as it was typed, for the report.
        device: `cuda` or `cpu`.
        tiny: small models and few repetitions: the same code in a minute on a CPU.
        folder: of the report, for a file beside it.
        work: an empty folder, removed in the end.
        end: when the part is to come to its end, by `time.monotonic`; it is ended a little later.
    """

    command: str
    device: str
    tiny: bool
    folder: Path
    work: Path
    end: float

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()

    def fits(self, seconds: float) -> bool:
        """Whether what takes so long ends in time."""
        return self.left >= seconds


class Part(NamedTuple):
    """A part: its name, `module:function` of what yields its rows, and its seconds among those of all."""

    name: str
    place: str
    seconds: float

    def load(self) -> Callable[[Settings], Iterator[Row]]:
        """The function, whose module may take seconds to import."""
        module, _, name = self.place.partition(":")
        return getattr(import_module(module), name)


def in_checkout(path: str) -> Path:
    """A file or folder of the sources, by its path from their root.

    Raises:
        NotRun: it is not there: the package is installed apart from its sources.
    """
    found = CHECKOUT / path
    if not found.exists():
        raise NotRun(f"needs {path} of a source checkout, and {CHECKOUT} has none")
    return found


def _own(name: str, seconds: float) -> Part:
    return Part(name, f"sparsevid.benchmark.gpu.{name}:rows", seconds)


PARTS = (
    _own("environment", 15),
    _own("parity", 35),
    _own("attention", 35),
    _own("forward", 90),
    _own("training", 90),
    _own("run", 75),
    _own("sampling", 45),
    _own("tests", 75),
    _own("compile", 40),
)
