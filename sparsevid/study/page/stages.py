"""Held-out loss over diffusion time: of all rows as lines, and relative to the control, stage by stage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparsevid.study.intervals import Interval, interval_of, of_seeds
from sparsevid.study.measurements import Measurement, StageLoss, StudyResults
from sparsevid.study.page.frame import Scale, axes, line, plain, plot, spread_scale, text, told
from sparsevid.study.page.markup import Markup, element, short, together
from sparsevid.study.page.numbers import signed
from sparsevid.study.page.rows import RowStyles

NOISE_TO_DATA = "diffusion time u, from noise (1) to data (0)"


@dataclass(frozen=True)
class StageChange:
    """A row's loss in a stage relative to the control's: mean over seeds and its interval, in percent; None of one seed."""

    mean: float
    interval: Interval | None
    seeds: int


def mean_stages(measurements: Sequence[Measurement]) -> tuple[StageLoss, ...]:
    """Loss by stage, averaged over seeds of the same stages as the first that has any."""
    found = [each.stages for each in measurements if each.stages]
    alike = [stages for stages in found if _spans(stages) == _spans(found[0])]
    if not alike:
        return ()
    return tuple(StageLoss(low, high, math.fsum(stages[index].loss for stages in alike) / len(alike))
                 for index, (low, high, _) in enumerate(alike[0]))  # fmt: skip


def stage_changes(row: Sequence[Measurement], control: Sequence[Measurement]) -> list[StageChange]:
    """A row against the control, stage by stage, over the seeds of which both have the same stages; empty without any."""
    others = {each.seed: each.stages for each in control}
    pairs = [(each.stages, others[each.seed]) for each in row if each.stages and each.seed in others]
    pairs = [(own, other) for own, other in pairs if _spans(own) == _spans(other) == _spans(pairs[0][1])]
    if not pairs or any(not stage.loss for _, other in pairs for stage in other):
        return []
    ratios = [[100 * (a.loss / b.loss - 1) for a, b in zip(own, other, strict=True)] for own, other in pairs]
    found = [(math.fsum(of_stage) / len(pairs), of_stage) for of_stage in zip(*ratios, strict=True)]
    return [StageChange(mean, interval_of(mean, of_seeds(of_stage)), len(pairs)) for mean, of_stage in found]


def stage_lines(study: StudyResults, styles: RowStyles) -> Markup | None:
    """Loss over time, a line for each row that has losses of its own; None if no row has stages."""
    found = {row: stages for row in study.rows if study.loss_of(row) is None and (stages := mean_stages(study.of(row)))}
    if not found:
        return None

    def draw(width: int) -> tuple[int, Markup]:
        height = 380 if width > 500 else 320
        x, bottom = Scale(0.0, 1.0, width - 14, 64), height - 46
        y = spread_scale([each.loss for stages in found.values() for each in stages], bottom, 14)
        parts = [axes(x, y, (NOISE_TO_DATA, "held-out loss"), (plain, plain))]
        parts += [_steps(row, stages, styles, x, y) for row, stages in found.items()]
        return height, together(parts)

    return plot(draw, f"{study.name}: held-out loss over diffusion time, a line a row")


def stage_dots(study: StudyResults, styles: RowStyles) -> Markup | None:
    """Loss relative to the control in each stage, a marker for each row that has losses of its own; None if there is nothing to
    compare.
    """
    own = [row for row in study.rows if study.loss_of(row) is None]
    controls = {row: control for row in own if (control := study.control(row)) is not None}
    spans = next((_spans(mean) for control in controls.values() if (mean := mean_stages(study.of(control)))), [])
    found = {}
    for row, control in controls.items():
        changes = stage_changes(study.of(row), study.of(control))
        if changes and _spans(mean_stages(study.of(control))) == spans:
            found[row] = changes
    if not found:
        return None
    spans.reverse()  # from noise to data
    values = [end for each in found.values() for change in each for end in (change.mean, *(change.interval or ()))]

    def draw(width: int) -> tuple[int, Markup]:
        height = 380 if width > 500 else 320
        left, right = 64, width - 14
        y = spread_scale([0.0, *values], height - 46, 14, log=False)
        band = (right - left) / len(spans)
        slot = band * 0.84 / len(found)
        parts = [_bands(spans, y, left, right, study.against)]
        for place, (row, each) in enumerate(found.items()):
            marks = []
            for number, (span, change) in enumerate(zip(spans, reversed(each), strict=True)):
                x = left + band * (number + 0.08) + slot * (place + 0.5)
                marks.append(_dot((row, controls[row]), span, change, styles, x, y, min(5.0, max(2.5, slot / 2.4))))
            parts.append(element("g", marks, class_=styles.classes(row, "series"), data_row=styles.index(row)))
        return height, together(parts)

    return plot(draw, f"{study.name}: loss by stage of each row, relative to {study.against}")


def steps_path(steps: Sequence[tuple[float, float, float]], x: Scale, y: Scale) -> str:
    """The path of steps (low, high, value), from noise to data; a gap between two is a gap."""
    path, end = [], None
    for low, high, value in sorted(steps, reverse=True):
        path.append(f"{'L' if end == high else 'M'}{short(x(high))} {short(y(value))}H{short(x(low))}")
        end = low
    return "".join(path)


def _steps(row: str, stages: Sequence[StageLoss], styles: RowStyles, x: Scale, y: Scale) -> Markup:
    marks = [element("path", d=steps_path(stages, x, y), class_="line")]
    for low, high, loss in stages:
        marker = styles.marker(row, x((low + high) / 2), y(loss), 4.5)
        marks.append(told(marker, f"{row}\nloss {signed(loss, 4)} at u {high:g} to {low:g}", "spot"))
    return element("g", marks, class_=styles.classes(row, "series"), data_row=styles.index(row))


def _bands(spans: Sequence[tuple[float, float]], y: Scale, left: float, right: float, against: str) -> Markup:
    """The stages beside each other, each as wide as the others."""
    band = (right - left) / len(spans)
    shades = [element("rect", x=left + band * number, y=y.end, width=band, height=y.start - y.end, class_="band")
              for number in range(1, len(spans), 2)]  # fmt: skip
    parts: list[Markup] = [*shades]
    for value in y.ticks(7):
        parts += [line(left, y(value), right, y(value), "grid"), text(left - 7, y(value) + 4, plain(value), anchor="end")]
    for number, (low, high) in enumerate(spans):
        parts.append(text(left + band * (number + 0.5), y.start + 17, f"{high:.2g}–{low:.2g}", anchor="middle"))
    parts += [line(left, y(0), right, y(0), "zero"), line(left, y.start, right, y.start, "axis")]
    parts.append(text((left + right) / 2, y.start + 36, NOISE_TO_DATA, "title", anchor="middle"))
    parts.append(text(13, (y.start + y.end) / 2, f"loss against {against}, %", "title", anchor="middle", turned=True))
    return element("g", parts, aria_hidden="true")


def _dot(
    rows: tuple[str, str], span: tuple[float, float], change: StageChange, styles: RowStyles, x: float, y: Scale, r: float
) -> Markup:
    (row, control), interval, parts = rows, "one seed", []
    if change.interval is not None:
        low, high = change.interval
        interval = f"[{signed(low)}, {signed(high)}], 95 % over {change.seeds} seeds"
        parts.append(line(x, y(low), x, y(high), "bar"))
    parts.append(styles.marker(row, x, y(change.mean), r))
    said = f"u {span[1]:g} to {span[0]:g}: loss {signed(change.mean)} % against {control}"
    return told(parts, "\n".join([row, said, interval]), "spot")


def _spans(stages: Sequence[StageLoss]) -> list[tuple[float, float]]:
    return [(low, high) for low, high, _ in stages]
