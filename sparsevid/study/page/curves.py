"""Losses of runs over optimizer steps."""

import math
from collections.abc import Mapping, Sequence

from sparsevid.study.page.frame import Scale, axes, plain, plot, spread_scale, told
from sparsevid.study.page.markup import Markup, element, short, together
from sparsevid.study.page.numbers import count_tick, signed
from sparsevid.study.page.rows import RowStyles

MOST_POINTS = 160  # of a line: what is closer is averaged
SPOTS = 8  # points of a line that can be asked
Values = Sequence[tuple[int, float]]


def averaged(values: Values, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Means of neighbours, so many of each that `most` points or fewer stay."""
    size = math.ceil(len(values) / most)
    groups = [values[first : first + size] for first in range(0, len(values), size)]
    return [
        (sum(step for step, _ in group) / len(group), math.fsum(value for _, value in group) / len(group)) for group in groups
    ]


def curves_plot(series: Mapping[str, Values], title: str, styles: RowStyles) -> Markup | None:
    """A line for each run; None if none has values.

    Args:
        series: (step, value) by run.
        title: of the values.
        styles: of the page.
    """
    found = {name: averaged(values) for name, values in series.items() if values}
    if not found:
        return None
    points = [point for line in found.values() for point in line]

    def draw(width: int) -> tuple[int, Markup]:
        height = 360 if width > 500 else 300
        last = max(step for step, _ in points)
        x = Scale(0.0, last or 1.0, 64, width - 14)
        y = spread_scale([value for _, value in points], height - 46, 14, log=False)
        parts = [axes(x, y, ("optimizer steps", title), (count_tick, plain))]
        parts += [_line(name, line, title, styles, x, y) for name, line in found.items()]
        return height, together(parts)

    return plot(draw, f"{title} over optimizer steps, a line a run")


def _line(name: str, points: Sequence[tuple[float, float]], title: str, styles: RowStyles, x: Scale, y: Scale) -> Markup:
    path = "M" + "L".join(f"{short(x(step))} {short(y(value))}" for step, value in points)
    parts = [element("path", d=path, class_="line")]
    for step, value in points[:: -max(1, math.ceil(len(points) / SPOTS))]:
        marker = styles.marker(name, x(step), y(value), 4)
        parts.append(told(marker, f"{name}\nstep {step:.0f}: {title} {signed(value, 4)}", "spot"))
    return element("g", parts, class_=styles.classes(name, "series"), data_row=styles.index(name))
