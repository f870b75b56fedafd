"""Cost against quality: a point a row, with its seeds, its interval, and the frontier."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsevid.sparsity.cost import frontier
from sparsevid.study.effects import QUALITIES, Difference, Estimate, estimate
from sparsevid.study.measurements import StudyResults
from sparsevid.study.page.frame import DECADES, Box, Scale, axes, cut, line, place_labels, plot, spread_scale, text, told
from sparsevid.study.page.markup import Markup, element, short, together
from sparsevid.study.page.numbers import SHOWN, change
from sparsevid.study.page.rows import RowStyles

ALIKE, PITCH = 6.0, 12.0  # pixels: points whose costs are closer stand so far from each other
REAL_CLIPS = {"distance": "real clips", "accuracy": "held-out clips"}  # a level beside which samples are seen
MOST_LETTERS = 22  # of a row's name
FAR = 2.0  # ranges of the rows
BEYOND = 0.6  # intervals may widen the scale by this share of the points' range on each side; the rest is cut off


@dataclass(frozen=True)
class Point:
    """A row in a plot of cost against quality."""

    row: str
    cost: Estimate
    quality: Estimate


def points_of(study: StudyResults, cost: str, quality: str) -> list[Point]:
    """The rows of which both are measured."""
    found = [(row, estimate(study.of(row), cost), estimate(study.of(row), quality)) for row in study.rows]
    return [Point(row, x, y) for row, x, y in found if x is not None and y is not None]


def front_of(points: Sequence[Point], quality: str) -> list[int]:
    """Which points lie on the frontier, by rising cost."""
    sign = 1.0 if QUALITIES[quality] else -1.0
    lies = frontier([(point.cost.mean, sign * point.quality.mean) for point in points])
    return sorted((index for index, own in enumerate(lies) if own), key=lambda index: points[index].cost.mean)


def scatter(
    study: StudyResults,
    styles: RowStyles,
    cost: str,
    quality: str,
    differences: Mapping[str, Difference | None],
    style: str | None = None,
) -> Markup | None:
    """The plot of a cost and a quality.

    Args:
        study: whose rows.
        styles: of the page.
        cost: name of a figure.
        quality: in `QUALITIES`.
        differences: of rows to the control, in this quality.
        style: CSS, for a file of its own.

    Returns:
        None if there is no row with both.
    """
    points = points_of(study, cost, quality)
    if not points:
        return None
    front = front_of(points, quality)
    level = _level(study, quality, [value for point in points for value in point.quality.values])

    def draw(width: int) -> tuple[int, Markup]:
        height = 440 if width > 500 else 340
        left, right, top, bottom = 64, width - 14, 14, height - 46
        x = spread_scale([point.cost.mean for point in points], left, right, margin=0.1)
        y = _quality_scale(points, level, bottom, top)
        places = [(across, y(point.quality.mean)) for point, across in
                  zip(points, beside([x(point.cost.mean) for point in points], (right - left) / 2), strict=True)]  # fmt: skip
        inside = [_front([places[index] for index in front], right, top if QUALITIES[quality] else bottom)]
        if level is not None:
            label = text(right - 4, y(level) - 6, REAL_CLIPS[quality], anchor="end")
            inside += [line(left, y(level), right, y(level), "level"), label]
        for point, place in zip(points, places, strict=True):
            inside.append(
                _point(
                    point, styles, place[0], y, _tip(point, cost, quality, differences.get(point.row), study.control(point.row))
                )
            )
        window = f"0 {top - 8} {width} {bottom - top + 16}"  # what is drawn stays in it
        field = element("svg", inside, y=top - 8, width=width, height=bottom - top + 16, viewBox=window)
        frame = axes(x, y, (SHOWN[cost].axis, SHOWN[quality].axis), (SHOWN[cost].tick, SHOWN[quality].tick))
        return height, together([frame, field, _names(points, styles, places, y, (left, top, right, bottom))])

    return plot(draw, f"{study.name}: {SHOWN[cost].axis} against {SHOWN[quality].axis}, a point a row", style)


def beside(places: Sequence[float], most: float) -> list[float]:
    """Places of points across, in pixels: those that would cover each other stand side by side, around where they are.

    Args:
        places: where they are.
        most: the widest that some of them may stand. They come no nearer to their neighbours than half of the way.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    groups: list[list[int]] = []
    for index in order:
        if groups and places[index] - places[groups[-1][-1]] < ALIKE:
            groups[-1].append(index)
        else:
            groups.append([index])
    found = list(places)
    middles = [math.fsum(places[index] for index in group) / len(group) for group in groups]
    for number, (group, middle) in enumerate(zip(groups, middles, strict=True)):
        gaps = [abs(middle - middles[other]) for other in (number - 1, number + 1) if 0 <= other < len(groups)]
        width = min([PITCH * (len(group) - 1), most, *(0.9 * gap for gap in gaps)])
        for turn, index in enumerate(group if len(group) > 1 else []):
            found[index] = middle + width * (turn / (len(group) - 1) - 0.5)
    return found


def legend(study: StudyResults, styles: RowStyles) -> Markup:
    """Buttons that show one row among all others."""
    buttons = []
    for row in study.rows:
        inside = (styles.chip(row), element("span", row))
        buttons.append(element("button", inside, type="button", aria_pressed="false", data_pin=styles.index(row)))
    return element("div", buttons, class_="legend", role="group", aria_label="rows; press one to see it among the others")


def _level(study: StudyResults, quality: str, values: Sequence[float]) -> float | None:
    """The figure of real clips, on average; None if there is none, or it is too far off to be seen beside the rows."""
    found = [each.figures[name] for each in study.measurements.values() if (name := f"{quality}_real") in each.figures]
    level = math.fsum(found) / len(found) if found and quality in REAL_CLIPS else None
    low, high = min(values), max(values)
    return level if level is not None and low - FAR * (high - low) <= level <= high + FAR * (high - low) else None


def _quality_scale(points: Sequence[Point], level: float | None, bottom: float, top: float) -> Scale:
    values = [value for point in points for value in point.quality.values] + ([] if level is None else [level])
    low, high = min(values), max(values)
    if log := low > 0 and high / low >= DECADES:
        room = (high / low) ** (BEYOND / 4)  # such a scale is wide, and below there is no end to it
        least, most = low / room, high * room
    else:
        room = (high - low) * BEYOND or abs(high)
        least, most = low - room, high + room
    ends = [end for point in points for end in point.quality.interval or ()]
    return spread_scale([*values, *(min(max(end, least), most) for end in ends)], bottom, top, log=log)


def _front(points: Sequence[tuple[float, float]], right: float, worst: float) -> Markup:
    """Steps from each point of the frontier to the next."""
    steps = [f"M{short(points[0][0])} {short(worst)}", *(f"H{short(x)}V{short(y)}" for x, y in points), f"H{short(right)}"]
    return element("path", d="".join(steps), class_="front")


def _point(point: Point, styles: RowStyles, x: float, y: Scale, tip: str) -> Markup:
    parts = []
    if point.quality.interval is not None:
        low, high = map(y, point.quality.interval)
        parts += [line(x, low, x, high, "bar"), *(line(x - 4, end, x + 4, end, "bar") for end in (low, high))]
    if len(point.quality.values) > 1:
        parts += [element("circle", cx=x, cy=y(value), r=2, class_="seed") for value in point.quality.values]
    parts.append(styles.marker(point.row, x, y(point.quality.mean), 6.5))
    return told(parts, tip, styles.classes(point.row, "point"), styles.index(point.row))


def _names(
    points: Sequence[Point],
    styles: RowStyles,
    places: Sequence[tuple[float, float]],
    scale: Scale,
    box: Box,
) -> list[Markup]:
    named = [(*place, cut(point.row, MOST_LETTERS)) for point, place in zip(points, places, strict=True)]
    bars = [(x - 4, min(ends), x + 4, max(ends)) for (x, _), point in zip(places, points, strict=True)
            if (ends := list(map(scale, point.quality.interval or ())))]  # fmt: skip
    found = []
    for point, (_, _, name), label in zip(points, named, place_labels(named, box, bars), strict=True):
        if label is not None:
            x, y, anchor = label
            written = text(x, y, name, "name", anchor=anchor)
            found.append(element("g", written, aria_hidden="true", data_row=styles.index(point.row)))
    return found


def _tip(point: Point, cost: str, quality: str, difference: Difference | None, control: str | None) -> str:
    found, figure = point.quality, SHOWN[quality]
    own = f"{figure.title} {figure.text(found.mean)}"
    if found.interval is not None:
        own += f" [{', '.join(map(figure.text, found.interval))}], 95 % over {found.of}"
    elif len(found.values) == 1:
        own += ", one seed"
    said = [point.row, own, f"{SHOWN[cost].title} {SHOWN[cost].text(point.cost.mean)}"]
    if difference is not None:
        said.append(f"against {control}: {change(quality, difference.mean, difference.interval)}, {difference.verdict}")
    return "\n".join(said)
