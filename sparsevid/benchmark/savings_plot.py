"""The benchmark of savings as a picture: distance against what a clip costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsevid.benchmark.savings import SavingsMeasurement, SavingsResult
from sparsevid.benchmark.savings_report import COSTS, frontiers
from sparsevid.evaluation.plot import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (12.0, 5.6)  # inches
MARKERS = "osD^vP*X<>phd8"
LINES = ("-", "--", ":", "-.")
AXES = {"seconds": "seconds a clip, from noise to latents", "multiply-adds": "multiply–adds a clip, counted (GMACs)"}
UNITS = {"seconds": 1.0, "multiply-adds": 1e9}
NOTHING = "no saving"
PALE = 0.35


def plot_savings(path: str | Path, measured: SavingsMeasurement, *, title: str, metric: str) -> None:
    """Draw the distance of each row against seconds and against multiply-adds, with its interval, and the frontier of each.

    A colour is a model, a marker a saving, a kind of line a sampler, over its numbers of steps; rows on the frontier are full.

    Args:
        path: of the picture, PNG, PDF or SVG by its ending; its folder exists.
        measured: rows that have been timed.
        title: above the picture.
        metric: name of the distance.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: another ending.
    """
    figure = new_figure(path, SIZE)
    results = list(measured.results.values())
    styles = _Styles(results)
    lies = frontiers(measured)
    panels = figure.subplots(1, len(COSTS), sharey=True)
    for axes, name in zip(panels, COSTS, strict=True):
        _draw(axes, name, [result for result in results if getattr(result, COSTS[name]) is not None], styles, lies)
    panels[0].set_ylabel(metric)
    figure.suptitle(title)
    _explain(figure, styles)
    save_figure(figure, path)


class _Styles:
    """Colours of models, markers of savings and their sizes by steps, lines of samplers."""

    def __init__(self, results: Sequence[SavingsResult]) -> None:
        self.colours = _dealt([result.case.model for result in results], [f"C{number}" for number in range(10)])
        self.markers = _dealt(["", *(result.case.savings for result in results)], MARKERS)
        self.lines = _dealt([result.case.sampler for result in results], LINES)
        steps = sorted({result.case.steps for result in results})
        self.sizes = {count: 5 + 4 * place / max(len(steps) - 1, 1) for place, count in enumerate(steps)}  # points


def _dealt(names: Sequence[str], choices: Sequence[str]) -> dict[str, str]:
    """A choice for each name, in their order; where there are more names, again from the first."""
    return {name: choices[number % len(choices)] for number, name in enumerate(dict.fromkeys(names))}


def _draw(axes: "Axes", name: str, results: Sequence[SavingsResult], styles: _Styles, lies: dict) -> None:
    """One panel."""
    from matplotlib.ticker import LogLocator, NullFormatter

    def cost(result: SavingsResult) -> float:
        return getattr(result, COSTS[name]) / UNITS[name]

    front = sorted((result for result in results if name in lies[result.case]), key=cost)
    if front:
        xs, ys = [cost(result) for result in front], [result.score for result in front]
        axes.plot(xs, ys, drawstyle="steps-post", color="black", linewidth=5, alpha=0.15, solid_capstyle="round", zorder=1)
    for way in dict.fromkeys((result.case.model, result.case.sampler, result.case.savings) for result in results):
        own = sorted((each for each in results if (each.case.model, each.case.sampler, each.case.savings) == way), key=cost)
        model, sampler, savings = way
        xs, ys = [cost(result) for result in own], [result.score for result in own]
        colour, line = styles.colours[model], styles.lines[sampler]
        width, alpha = (0.8, PALE) if savings else (1.6, 0.9)
        axes.plot(xs, ys, color=colour, linestyle=line, linewidth=width, alpha=alpha, zorder=2)
        for result, x in zip(own, xs, strict=True):
            _point(axes, x, result, styles, name in lies[result.case])
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(AXES[name])
    axes.grid(True, which="major", alpha=0.25)
    axes.margins(0.08)


def _point(axes: "Axes", x: float, result: SavingsResult, styles: _Styles, full: bool) -> None:
    """A row with its interval, as large as its steps are many, which are told in numbers where there is no saving."""
    case, interval = result.case, result.record.interval
    colour = styles.colours[case.model]
    if interval is not None:
        axes.plot([x, x], [interval["low"], interval["high"]], color=colour, linewidth=1, alpha=PALE, zorder=2)
    face = colour if full else "white"
    marker, size = styles.markers[case.savings], styles.sizes[case.steps]
    axes.plot([x], [result.score], marker=marker, markersize=size, linestyle="none", zorder=3, markeredgecolor=colour,
              markerfacecolor=face)  # fmt: skip
    if not case.savings:
        axes.annotate(str(case.steps), (x, result.score), (7, 6), textcoords="offset points", fontsize=9, color=colour,
                      fontweight="bold", zorder=4)  # fmt: skip


def _explain(figure: "Figure", styles: _Styles) -> None:
    """One legend below both panels."""
    from matplotlib.lines import Line2D

    grey: dict[str, Any] = {"color": "dimgray", "markersize": 7, "markerfacecolor": "white"}
    entries = [Line2D([], [], color=colour, linewidth=4, label=model) for model, colour in styles.colours.items()]
    if len(styles.lines) > 1:
        lines: dict[str, Any] = dict(styles.lines)  # of a set of texts that is matplotlib's own
        entries += [Line2D([], [], linestyle=line, color="dimgray", label=sampler) for sampler, line in lines.items()]
    entries += [
        Line2D([], [], linestyle="none", marker=marker, label=savings or NOTHING, **grey)
        for savings, marker in styles.markers.items()
    ]
    entries.append(Line2D([], [], color="black", linewidth=5, alpha=0.15, label="frontier (full markers)"))
    title = "numbers and sizes: steps"
    figure.legend(handles=entries, loc="outside lower center", ncols=4, fontsize=8, frameon=False, title=title)
