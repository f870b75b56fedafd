"""Sparse tokens over diffusion time, a line for each schedule with the rows that follow it."""

from collections.abc import Mapping, Sequence

from sparsevid.study.measurements import TokenStep
from sparsevid.study.page.frame import Scale, axes, plain, plot, told
from sparsevid.study.page.markup import Markup, element, together
from sparsevid.study.page.numbers import count_tick, with_prefix
from sparsevid.study.page.rows import RowStyles
from sparsevid.study.page.stages import NOISE_TO_DATA, steps_path

BETWEEN = "  ·  "  # names, which may have commas


def tokens_plot(schedules: Mapping[str, Sequence[TokenStep]], styles: RowStyles, label: str) -> Markup | None:
    """The plot.

    Args:
        schedules: of rows or runs; those without one are left out.
        styles: of the page.
        label: what it is the plot of.

    Returns:
        The plot with a list of who follows which line; None without any schedule.
    """
    groups: dict[tuple[TokenStep, ...], list[str]] = {}
    for name, schedule in schedules.items():
        if schedule:
            groups.setdefault(tuple(schedule), []).append(name)
    if not groups:
        return None
    most = max(step.tokens for schedule in groups for step in schedule)

    def draw(width: int) -> tuple[int, Markup]:
        height = 340 if width > 500 else 290
        x, y = Scale(0.0, 1.0, width - 14, 64), Scale(0.0, (most or 1.0) * 1.08, height - 46, 14)
        parts = [axes(x, y, (NOISE_TO_DATA, "sparse tokens"), (plain, count_tick))]
        parts += [_line(schedule, names, styles, x, y) for schedule, names in groups.items()]
        return height, together(parts)

    who = [element("li", styles.chip(names[0]), BETWEEN.join(names)) for names in groups.values()]
    return element("div", plot(draw, f"{label}: sparse tokens over diffusion time"), element("ul", who, class_="who"))


def _line(schedule: Sequence[TokenStep], names: Sequence[str], styles: RowStyles, x: Scale, y: Scale) -> Markup:
    first, falling = names[0], sorted(schedule, reverse=True)
    said = [f"u {high:.3g} to {low:.3g}: {with_prefix(tokens)} tokens" for low, high, tokens in falling]
    marker = styles.marker(first, x((falling[0].low + falling[0].high) / 2), y(falling[0].tokens), 5)
    spot = told(marker, "\n".join([BETWEEN.join(names), *said]), "spot")
    path = element("path", d=steps_path(schedule, x, y), class_="line")
    return element("g", path, spot, class_=styles.classes(first, "series"), data_row=styles.index(first))
