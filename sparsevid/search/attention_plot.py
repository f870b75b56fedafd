"""What attention does as a picture: layers from the bottom up, time from noise to data."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparsevid.evaluation.plot import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

AXES = {"space": ("spatial layers", "#0b6e75"), "time": ("temporal layers", "#b3541e"), "window": ("windows", "#6a4c93")}
LEAST = 1e-6  # of a squared change over the squared output that is shown
LEAST_NEAR = 1e-3  # of the share near by over that of uniform attention
MOST_CELLS = 14  # columns in which numbers are still read
WIDTH, ROW, AROUND, HEAD, BAR = 15.0, 0.34, 0.4, 1.2, 0.16  # inches: of the figure, a layer, around a panel, the title, a scale
SHARES = (1, 1, 1, 0.75)  # of the width

Layer = Mapping[str, Any]


class _Figure(NamedTuple):
    """A column of panels.

    Attributes:
        heading: above it.
        values: of a layer, by interval.
        norm: the scale of colours for all of them.
        colours: name of the map.
        written: the form of a value.
        times: whether values are multiples of something.
    """

    heading: str
    values: Callable[[Layer], np.ndarray]
    norm: Callable[[np.ndarray], "Normalize"]
    colours: str
    written: str
    times: bool = False


def plot_attention(paths: Sequence[Path], analysis: Mapping[str, Any], *, title: str) -> None:
    """Draw the entropy of attention, its share near by over that of uniform attention, and what replacing it changes.

    A row of panels has the layers over one axis, the lowest layer at the bottom; columns of a panel are intervals of time.

    Args:
        paths: of the picture, PNG, PDF or SVG by their endings; their folder exists.
        analysis: `layers` as `summarise` gives them, and `edges` of the intervals.
        title: above the picture.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: another ending.
    """
    layers: Sequence[Layer] = analysis["layers"]
    groups = {axis: own for axis in AXES if (own := [each for each in layers if each["axis"] == axis])}
    heights = [ROW * max(3, len(own)) + AROUND for own in groups.values()]
    figure = new_figure(paths[0], (WIDTH, sum(heights) + HEAD))
    columns = _columns()
    scales, *below = figure.subplots(len(groups) + 1, len(columns) + 1, squeeze=False,
                                     gridspec_kw={"height_ratios": [BAR, *heights], "width_ratios": SHARES})  # fmt: skip
    panels = np.array(below)
    for number, column in enumerate(columns):
        every = np.array([column.values(each) for each in layers])
        norm = column.norm(every)
        for axes, (axis, own) in zip(panels[:, number], groups.items(), strict=True):
            image = _draw(axes, column, own, norm, analysis["edges"])
            _name_layers(axes, axis, own, first=number == 0)
        bar = figure.colorbar(image, cax=scales[number], orientation="horizontal", ticklocation="top")
        bar.set_label(column.heading, fontsize=10.5, labelpad=6)
        bar.outline.set_visible(False)
        if column.times:
            _count_in_powers(bar)
        bar.ax.tick_params(labelsize=8)
        panels[-1, number].set_xlabel("diffusion time u, noise → data")
    _draw_losses(list(panels[:, -1]), groups)
    scales[-1].set_axis_off()
    scales[-1].set_title("change of the loss, at all times\n(± 2 standard errors)", fontsize=10.5, y=0.0, va="bottom")
    figure.suptitle(title, fontsize=13, fontweight="bold")
    for path in paths:
        save_figure(figure, path)


def _columns() -> tuple[_Figure, ...]:
    from matplotlib.colors import LogNorm, Normalize

    def near_one(values: np.ndarray) -> "Normalize":
        most = max(2.0, float(values.max()), 1 / float(values.min()))
        return LogNorm(1 / most, most)

    def decades(values: np.ndarray) -> "Normalize":
        return LogNorm(10 ** np.floor(np.log10(values.min())), 10 ** np.ceil(np.log10(values.max()) + 1e-9))

    return (
        _Figure("entropy of attention ÷ its maximum (1: uniform)", _means("entropy"),
                lambda values: Normalize(min(0.9, np.floor(10 * values.min()) / 10), 1.0), "viridis", ".2f"),
        _Figure("attention near by ÷ that of uniform attention", _near_by,
                near_one, "RdBu_r", ".2f", times=True),
        _Figure("squared change of the output, attention → mean", lambda each: np.maximum(_means("change")(each), LEAST),
                decades, "magma", ".0e"),
    )  # fmt: skip


def _count_in_powers(bar: Any) -> None:
    """Marks of a scale around 1 at powers of 2."""
    most = int(np.log2(bar.norm.vmax) + 1e-6)
    every = -(-most // 3)
    powers = [2.0**power for power in range(-most // every * every, most + 1, every)]
    bar.set_ticks(powers, labels=[f"×{each:g}" for each in powers])
    bar.ax.minorticks_off()


def _near_by(layer: Layer) -> np.ndarray:
    return np.maximum(_means("share")(layer) / _means("uniform")(layer), LEAST_NEAR)


def _means(name: str) -> Callable[[Layer], np.ndarray]:
    return lambda layer: np.array(layer[name]["means"])


def _draw(axes: "Axes", column: _Figure, layers: Sequence[Layer], norm: "Normalize", edges: Sequence[float]) -> Any:
    """One panel: the layers over one axis."""
    values = np.array([column.values(each) for each in layers])[:, ::-1]  # from noise to data
    image = axes.imshow(values, norm=norm, cmap=column.colours, aspect="auto", origin="lower", interpolation="nearest")
    count = values.shape[1]
    if count <= MOST_CELLS:
        for (row, place), value in np.ndenumerate(values):
            light = np.dot(image.cmap(norm(value))[:3], (0.299, 0.587, 0.114)) > 0.55
            text = f"{value:{column.written}}".replace("e-0", "e-")
            axes.text(place, row, text, ha="center", va="center", fontsize=7.5, color="#1a1a1a" if light else "white")
    every = max(1, count // 8)
    ends = list(range(0, count + 1, every))
    axes.set_xticks([each - 0.5 for each in ends], [f"{edges[count - each]:.2g}" for each in ends], fontsize=8)
    for side in axes.spines.values():
        side.set_visible(False)
    for line in range(1, len(layers)):
        axes.axhline(line - 0.5, color="white", linewidth=1.5)
    return image


def _name_layers(axes: "Axes", axis: str, layers: Sequence[Layer], *, first: bool) -> None:
    """Numbers of the layers, with the kinds of those that are not D, in the colour of their axis."""
    name, colour = AXES[axis]
    names = [f"{each['index']}" + ("" if each["kind"] == "D" else f" {each['kind']}") for each in layers]
    axes.set_yticks(range(len(layers)), names, fontsize=9, color=colour, fontweight="bold")
    axes.tick_params(axis="y", length=0)
    if first:
        axes.set_ylabel(name, fontsize=12, color=colour, fontweight="bold", labelpad=8)


def _draw_losses(panels: Sequence["Axes"], groups: Mapping[str, Sequence[Layer]]) -> None:
    """The change of the loss of each layer, with two standard errors, on one scale."""
    ends = [each["loss_change"]["mean"] + sign * 2 * each["loss_change"]["error"]
            for own in groups.values() for each in own for sign in (-1, 1)]  # fmt: skip
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.06 * (high - low) or 1.0
    for axes, (axis, own) in zip(panels, groups.items(), strict=True):
        changes = [each["loss_change"] for each in own]
        errors = [2 * each["error"] for each in changes]
        bars: dict[str, Any] = {"color": AXES[axis][1], "alpha": 0.85, "height": 0.62}
        bars["error_kw"] = {"elinewidth": 1, "ecolor": "#333333"}
        axes.barh(range(len(own)), [each["mean"] for each in changes], xerr=errors, capsize=2, **bars)
        axes.set_ylim(-0.5, len(own) - 0.5)
        axes.set_xlim(low - room if low < 0 else 0.0, high + room)
        axes.axvline(0, color="#333333", linewidth=0.8)
        axes.grid(True, axis="x", alpha=0.25)
        axes.set_axisbelow(True)
        axes.tick_params(axis="x", labelsize=8)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        _name_layers(axes, axis, own, first=False)
