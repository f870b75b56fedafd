"""A colour and a marker for each row, the same on the whole page."""

import math
from collections.abc import Iterable

from sparsevid.study.measurements import CONTROL, REAL
from sparsevid.study.page.markup import Markup, element, short

COLOURS = 7  # of `page.css`, .c1 to .c7; .c0 is that of the usual control, in the colour of the text
SHAPES = ("circle", "square", "diamond", "triangle", "wedge", "star", "cross", "saltire")
# Corners, degrees turned, and size.
POLYGONS = {"square": (4, 45, 1.2), "diamond": (4, 0, 1.25), "triangle": (3, 0, 1.25), "wedge": (3, 180, 1.25)}


class RowStyles:
    """Which colour and which marker a row has: `dense`, the usual control, those of its own, the others as they come.

    Colours and markers go round in turns of different length, so that rows of one colour have other markers.

    Args:
        names: of all rows of the page, in order.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(dict.fromkeys(names))
        others = [name for name in self.names if name not in (CONTROL, REAL)]
        self._places = {name: number for number, name in enumerate(others)}

    def index(self, row: str) -> int:
        """The row's number on the page, by which the page finds all that belongs to it."""
        return self.names.index(row)

    def classes(self, row: str, *more: str) -> str:
        """Names of classes in `page.css`: of its colour, and others."""
        place = self._places.get(row)
        return " ".join((f"c{0 if place is None else place % COLOURS + 1}", *more))

    def shape(self, row: str) -> str:
        """Name of its marker."""
        place = self._places.get(row)
        return SHAPES[0] if place is None else SHAPES[(place + 1) % len(SHAPES)]

    def marker(self, row: str, x: float, y: float, size: float = 5.0) -> Markup:
        """Its marker at a place of a picture."""
        return element("path", d=_path(self.shape(row), x, y, size), class_="marker")

    def name(self, row: str) -> Markup:
        """A row's name after its marker, if it has one; it may go on in another line after an underscore."""
        words = [(element("wbr"), f"_{word}") if number else word for number, word in enumerate(row.split("_"))]
        return element("span", None if row == REAL else self.chip(row), element("span", words), class_="row-name")

    def chip(self, row: str) -> Markup:
        """Its marker among text."""
        drawn = element("svg", self.marker(row, 7, 7), viewBox="0 0 14 14", aria_hidden="true", class_="chip")
        return element("span", drawn, class_=self.classes(row, "mark"))


def _path(shape: str, x: float, y: float, r: float) -> str:
    if shape == "circle":
        wide = short(2 * r)
        return f"M{short(x - r)} {short(y)}a{short(r)} {short(r)} 0 1 0 {wide} 0a{short(r)} {short(r)} 0 1 0 -{wide} 0z"
    return "M" + "L".join(f"{short(x + r * dx)} {short(y + r * dy)}" for dx, dy in _corners(shape)) + "z"


def _corners(shape: str) -> list[tuple[float, float]]:
    """Around the middle, at a size of one."""
    if shape in ("cross", "saltire"):
        a, b = 0.36, 1.1
        upright = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
        half = math.sqrt(0.5)
        return upright if shape == "cross" else [(half * (dx - dy), half * (dx + dy)) for dx, dy in upright]
    if shape == "star":
        return [_around(36 * number, 0.6 if number % 2 else 1.4) for number in range(10)]
    sides, turn, size = POLYGONS[shape]
    return [_around(turn + 360 * number / sides, size) for number in range(sides)]


def _around(degrees: float, size: float) -> tuple[float, float]:
    """A point so far from the middle, clockwise from the top."""
    return size * math.sin(math.radians(degrees)), -size * math.cos(math.radians(degrees))
