"""A colour and a marker for each row, the same on the whole page."""

import math
from collections.abc import Iterable

from sparsevid.study.page.markup import Markup, element, short
from sparsevid.study.page.results import CONTROL, REAL

COLOURS = 7  # of `page.css`, .c1 to .c7; .c0 is the control's, in the colour of the text
POLYGONS = {"square": (4, 45, 1.2), "diamond": (4, 0, 1.25), "triangle": (3, 0, 1.25), "wedge": (3, 180, 1.25),
            "pentagon": (5, 0, 1.1), "hexagon": (6, 90, 1.1)}  # corners, degrees turned, size  # fmt: skip
SHAPES = ("circle", "square", "diamond", "triangle", "wedge", "pentagon", "cross", "hexagon")


class RowStyles:
    """Which colour and which marker a row has: the control those of its own, the others as they come.

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

    def chip(self, row: str) -> Markup:
        """Its marker among text."""
        drawn = element("svg", self.marker(row, 7, 7), viewBox="0 0 14 14", aria_hidden="true", class_="chip")
        return element("span", drawn, class_=self.classes(row, "mark"))


def _path(shape: str, x: float, y: float, r: float) -> str:
    if shape == "circle":
        r = short(r)
        return f"M{short(x)} {short(y)}m-{r} 0a{r} {r} 0 1 0 {short(2 * float(r))} 0a{r} {r} 0 1 0 -{short(2 * float(r))} 0z"
    if shape == "cross":
        a, b = r * 0.38, r * 1.05
        corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    else:
        sides, turn, scale = POLYGONS[shape]
        angles = [math.radians(turn + 360 * number / sides - 90) for number in range(sides)]
        corners = [(r * scale * math.cos(angle), r * scale * math.sin(angle)) for angle in angles]
    return "M" + "L".join(f"{short(x + dx)} {short(y + dy)}" for dx, dy in corners) + "z"
