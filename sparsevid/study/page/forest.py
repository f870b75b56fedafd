"""Each row against the control: paired differences with their intervals around zero."""

from collections.abc import Mapping

from sparsevid.study.effects import OPEN, QUALITIES, Difference
from sparsevid.study.measurements import StudyResults
from sparsevid.study.page.frame import Scale, axes_below, cut, line, plot, spread_scale, text, told
from sparsevid.study.page.markup import Markup, together
from sparsevid.study.page.numbers import SHOWN, change
from sparsevid.study.page.rows import RowStyles

STEP = 29  # pixels from row to row
NAMES = {True: (190, 26), False: (116, 15)}  # of a wide and a narrow plot: pixels for names, and most letters of one


def forest(study: StudyResults, styles: RowStyles, quality: str, differences: Mapping[str, Difference | None]) -> Markup | None:
    """The plot of one figure.

    Args:
        study: whose rows.
        styles: of the page.
        quality: in `QUALITIES`.
        differences: of rows that have a control.

    Returns:
        None if no row has a difference.
    """
    found = {row: each for row, each in differences.items() if each is not None}
    if not found:
        return None
    factor = SHOWN[quality].factor
    ends = [factor * end for each in found.values() for end in (each.mean, *(each.interval or ()))]

    def draw(width: int) -> tuple[int, Markup]:
        (left, most), right, top = NAMES[width > 500], width - 16, 30
        bottom = top + STEP * len(found)
        x = spread_scale([0.0, *ends], left, right, log=False)
        title = f"{SHOWN[quality].title} minus that of {study.against}" + (", percentage points" if factor != 1 else "")
        parts = [axes_below(x, top, bottom, title), line(x(0), top - 4, x(0), bottom, "zero")]
        sides = ("◂ better", "worse ▸") if QUALITIES[quality] else ("◂ worse", "better ▸")
        parts += [text(left, 15, sides[0], "side"), text(right, 15, sides[1], "side", anchor="end")]
        for number, (row, each) in enumerate(found.items()):
            y = top + STEP * (number + 0.5)
            inside = [text(left - 10, y + 4, cut(row, most), "name", anchor="end"), *_bar(each, x, y, factor)]
            inside.append(styles.marker(row, x(factor * each.mean), y, 6))
            kinds = styles.classes(row, "point", *(["hollow"] if each.verdict == OPEN else []))
            parts.append(told(inside, _tip(row, each, quality, study.control(row)), kinds, styles.index(row)))
        return bottom + 46, together(parts)

    return plot(draw, f"{study.name}: {SHOWN[quality].axis} of each row minus that of {study.against}, with intervals")


def _bar(each: Difference, x: Scale, y: float, factor: float) -> list[Markup]:
    if each.interval is None:
        return []
    low, high = (x(factor * end) for end in each.interval)
    return [line(low, y, high, y, "bar"), *(line(end, y - 4, end, y + 4, "bar") for end in (low, high))]


def _tip(row: str, each: Difference, quality: str, control: str | None) -> str:
    said = f"{SHOWN[quality].title} against {control}: {change(quality, each.mean, each.interval)}"
    return "\n".join([row, said, f"{each.verdict}; {'95 % over ' if each.interval else ''}{each.of}"])
