"""What plots share: scales with round ticks, the frame with its axes, and one picture for wide and one for narrow windows."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sparsevid.study.page.markup import Markup, element
from sparsevid.study.page.numbers import MINUS

WIDE, NARROW = 720, 340  # pixels
LETTER = 6.4  # width of a letter of a label, on average, in pixels
Box = tuple[float, float, float, float]  # left, top, right, bottom
# Places of a point's name, from the point, and which part of it stands there.
LABELS = [(10.0, 4.0, "start"), (-10.0, 4.0, "end"), (0.0, -12.0, "middle"), (0.0, 20.0, "middle")]
LABELS += [(side * 9.0, up, anchor) for up in (-9.0, 17.0, -22.0, 30.0) for side, anchor in ((1, "start"), (-1, "end"))]
SAME = 1e-9  # of a value: what differs by less is rounding
DECADES = 8.0  # a scale whose end is so many times its beginning is logarithmic


@dataclass(frozen=True)
class Scale:
    """From values to pixels.

    Attributes:
        low: value at `start`.
        high: value at `end`, above `low`; for a logarithmic scale both are positive.
        start: pixels.
        end: pixels.
        log: whether equal ratios are equal lengths.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; on a logarithmic scale one without a logarithm lies as far below `low` as `high` lies above."""
        if self.log:
            value = max(value, self.low**2 / self.high)
        low, high, value = (
            (math.log(each) for each in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, most: int) -> list[float]:
        """Round values on the scale, `most` of them or fewer, two at least."""
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


def spread_scale(values: Sequence[float], start: float, end: float, *, margin: float = 0.08, log: bool | None = None) -> Scale:
    """A scale that shows all values with some room around them.

    Args:
        values: at least one.
        start: pixels of the low end.
        end: pixels of the high end.
        margin: room on each side, as a share of the whole.
        log: None decides by the values.
    """
    low, high = min(values), max(values)
    if log is None:
        log = low > 0 and high / low >= DECADES
    if log:
        factor = max((high / low) ** margin, 1.05)
        return Scale(low / factor, high * factor, start, end, True)
    apart = high - low > SAME * abs(high)
    room = (high - low) * margin if apart else abs(high) * margin or 1.0
    return Scale(low - room, high + room, start, end)


def plot(draw: Callable[[int], tuple[int, Markup]], label: str, style: str | None = None) -> Markup:
    """A plot in two widths, of which `page.css` shows the one that fits.

    Args:
        draw: gives for a width in pixels the height and what is inside.
        label: what is seen, for those who do not see it.
        style: CSS; with it, the wide one alone, as a file of its own.
    """
    if style is not None:
        height, inside = draw(WIDE)
        own = {"xmlns": "http://www.w3.org/2000/svg", "width": WIDE, "height": height, "viewBox": f"0 0 {WIDE} {height}"}
        return element("svg", element("style", style), inside, class_="plot alone", role="img", aria_label=label, **own)

    def drawn(width: int, kind: str) -> Markup:
        height, inside = draw(width)
        box = f"0 0 {width} {height}"
        return element(
            "svg", inside, viewBox=box, class_=f"plot {kind}", role="group", aria_label=label, width=width, height=height
        )

    return element("div", drawn(WIDE, "wide"), drawn(NARROW, "narrow"), class_="responsive")


def text(x: float, y: float, content: str, *classes: str, anchor: str = "start", turned: bool = False) -> Markup:
    """A label; turned ones are read from below."""
    turn = f"rotate(-90 {x:.1f} {y:.1f})" if turned else None
    return element(
        "text", content, x=float(x), y=float(y), class_=" ".join(classes) or None, text_anchor=anchor, transform=turn
    )


def line(x1: float, y1: float, x2: float, y2: float, *classes: str) -> Markup:
    """A straight line."""
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=" ".join(classes))


def told(inside: Any, tip: str, classes: str, row: int | None = None) -> Markup:
    """Part of a plot that says what it is, under the pointer and with the focus.

    Args:
        inside: what is drawn.
        tip: lines of text, the first what it is of.
        classes: in `page.css`.
        row: its number on the page (see `RowStyles.index`).
    """
    aloud = tip.replace("\n", "; ")
    return element("g", inside, class_=classes, data_row=row, data_tip=tip, tabindex=0, role="img", aria_label=aloud)


def axes(x: Scale, y: Scale, titles: tuple[str, str], texts: tuple[Callable[[float], str], Callable[[float], str]]) -> Markup:
    """Grid lines, ticks and titles below and to the left of a field.

    Args:
        x: from left to right.
        y: from its lower end up.
        titles: of both axes.
        texts: of a tick's value.
    """
    bottom, left, right = y.start, min(x.start, x.end), max(x.start, x.end)
    across = max(3, int((right - left) // 90))
    parts = []
    for value in x.ticks(across):
        parts += [
            line(x(value), y.end, x(value), bottom, "grid"),
            text(x(value), bottom + 17, texts[0](value), anchor="middle"),
        ]
    for value in y.ticks(max(2, int((bottom - y.end) // 44))):
        parts += [line(left, y(value), right, y(value), "grid"), text(left - 7, y(value) + 4, texts[1](value), anchor="end")]
    parts += [
        line(left, bottom, right, bottom, "axis"),
        text((left + right) / 2, bottom + 36, titles[0], "title", anchor="middle"),
    ]
    parts.append(text(13, (bottom + y.end) / 2, titles[1], "title", anchor="middle", turned=True))
    return element("g", parts, aria_hidden="true")


def axes_below(x: Scale, top: float, bottom: float, title: str) -> Markup:
    """Grid lines, ticks and a title of a scale alone."""
    parts = []
    for value in x.ticks(max(2, int(abs(x.end - x.start) // 70))):
        label = text(x(value), bottom + 17, plain(value), anchor="middle")
        parts += [line(x(value), top, x(value), bottom, "grid"), label]
    return element("g", parts, text((x.start + x.end) / 2, bottom + 36, title, "title", anchor="middle"), aria_hidden="true")


def place_labels(
    points: Sequence[tuple[float, float, str]], box: Box, bars: Sequence[Box] = ()
) -> list[tuple[float, float, str] | None]:
    """Where names of points can stand without covering points, each other or the frame.

    Args:
        points: x, y and name.
        box: of the frame.
        bars: what is not covered either if it can be helped.

    Returns:
        For each point x, y and anchor of its label; None if there is no room.
    """
    taken: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y, _ in points]
    found: list[tuple[float, float, str] | None] = []
    for point in points:
        places = list(_label_places(*point))
        free = [(place, area) for place, area in places if _within(area, box) and not any(_overlap(area, t) for t in taken)]
        clear = [each for each in free if not any(_overlap(each[1], bar) for bar in bars)]
        place, area = next(iter(clear or free), (None, None))
        found.append(place)
        if area is not None:
            taken.append(area)
    return found


def _label_places(x: float, y: float, name: str) -> Iterator[tuple[tuple[float, float, str], Box]]:
    """Where a point's name may stand, best first, and what it would cover."""
    wide = LETTER * len(name)
    for dx, dy, anchor in LABELS:
        left = x + dx - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
        yield (x + dx, y + dy, anchor), (left, y + dy - 10, left + wide, y + dy + 3)


def plain(value: float) -> str:
    """The text of a tick."""
    return f"{value:g}".replace("-", MINUS)


def cut(name: str, most: int) -> str:
    """A name, shortened where it is longer than so many letters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _within(a: Box, b: Box) -> bool:
    return a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3]


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / max(most, 1)
    base = 10.0 ** math.floor(math.log10(raw))
    for step in (base * factor for factor in (1, 2, 2.5, 5, 10, 20, 25, 50)):
        ticks = [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
        if len(ticks) <= most:
            return ticks if len(ticks) > 1 else [low, high]
    return [low, high]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**power for power in range(first, last + 1) for f in factors if low <= f * 10.0**power <= high]
        if len(ticks) <= most:
            return ticks if len(ticks) > 1 else [low, high]
    return ticks[:: math.ceil(len(ticks) / most)]
