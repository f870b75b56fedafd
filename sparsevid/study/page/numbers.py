"""Figures as a reader wants them: what they are called, in what unit, with how many digits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

NOT_MEASURED = "not measured"
MINUS = "−"
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Figure:
    """How a figure is written.

    Attributes:
        title: at the head of a column.
        axis: beside an axis.
        unit: behind a number: `%` of shares, `si` of counts with prefixes, `s` of times, or nothing.
    """

    title: str
    axis: str
    unit: str = ""

    @property
    def factor(self) -> float:
        """From a value to what is written of it."""
        return 100.0 if self.unit == "%" else 1.0

    def text(self, value: float) -> str:
        """A value with its unit."""
        if self.unit == "%":
            return f"{signed(self.factor * value)} %"
        if self.unit == "si":
            return with_prefix(value)
        return seconds(value) if self.unit == "s" else signed(value, 4)

    def tick(self, value: float) -> str:
        """A round value beside an axis."""
        if self.unit == "si":
            return count_tick(value)
        return f"{self.factor * value:.6g}".replace("-", MINUS) + (" %" if self.unit == "%" else "")

    def spread(self, value: float) -> str:
        """A standard deviation, to two digits."""
        return f"{signed(self.factor * value, 2)}" if self.unit in ("", "%") else self.text(value)


SHOWN = {
    "loss": Figure("loss", "held-out loss"),
    "distance": Figure("distance", "distance to held-out clips"),
    "distance_real": Figure("distance, real clips", "distance of real clips"),
    "clips": Figure("samples", "samples", "si"),
    "accuracy": Figure("accuracy", "class accuracy of samples", "%"),
    "accuracy_real": Figure("accuracy, held-out clips", "class accuracy of held-out clips", "%"),
    "accuracy_shuffled": Figure("accuracy, dealt out anew", "class accuracy of samples, classes dealt out anew", "%"),
    "macs": Figure("multiply–adds", "multiply–adds a sampled clip", "si"),
    "seconds": Figure("time a clip", "seconds a sampled clip", "s"),
    "training_seconds": Figure("training", "seconds of training", "s"),
    "training_macs": Figure("training, multiply–adds", "multiply–adds of training", "si"),
    "total_training_macs": Figure("training in all, multiply–adds", "multiply–adds of training, with those of its start", "si"),
    "parameters": Figure("parameters", "parameters", "si"),
    "steps": Figure("steps", "training steps", "si"),
    "total_steps": Figure("steps in all", "training steps, with those of its start", "si"),
}


def signed(value: float, digits: int = 3) -> str:
    """A number to so many digits, with a true minus, without exponents where it can be."""
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return (f"{value:.{places}f}" if places < 9 else f"{value:.{digits - 1}e}").replace("-", MINUS)


def with_prefix(value: float) -> str:
    """A count with k, M, G, T or P, to three digits."""
    factor, prefix = _prefix(value)
    if not prefix:
        return signed(value) if value % 1 else f"{value:.0f}".replace("-", MINUS)
    return f"{signed(value / factor)} {prefix}"


def count_tick(value: float) -> str:
    """A round count beside an axis."""
    factor, prefix = _prefix(value)
    return f"{value / factor:.6g} {prefix}".rstrip().replace("-", MINUS)


def seconds(value: float) -> str:
    """A time in ms, s, min or h."""
    for least, unit, factor in ((7200.0, "h", 3600.0), (120.0, "min", 60.0), (0.1, "s", 1.0)):
        if abs(value) >= least:
            return f"{signed(value / factor)} {unit}"
    return "0 s" if value == 0 else f"{signed(value * 1000)} ms"


def change(figure: str, value: float, interval: Sequence[float] | None) -> str:
    """A difference with its sign and its interval, all to as many places; of shares in percentage points."""
    factor, unit = SHOWN[figure].factor, " pp" if SHOWN[figure].unit == "%" else ""
    largest = max(abs(each * factor) for each in (value, *(interval or ())))
    places = 0 if largest == 0 else max(0, 2 - math.floor(math.log10(largest)))

    def text(number: float) -> str:
        written = f"{number * factor:+.{places}f}"
        return written.replace("-", MINUS) if float(written) else f"{0:.{places}f}"

    bounds = "" if interval is None else f" [{', '.join(map(text, interval))}]"
    return f"{text(value)}{unit}{bounds}"


def _prefix(value: float) -> tuple[float, str]:
    return next(((factor, prefix) for factor, prefix in _PREFIXES if abs(value) >= factor), (1.0, ""))
