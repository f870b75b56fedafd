"""Pictures of scores and fits, and the clips worth looking at.

Dimensions: N real clips, M fake clips, D feature dimensions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from sparsevid.evaluation.metrics.distances import check_pair
from sparsevid.evaluation.metrics.manifold import nearest_distances
from sparsevid.evaluation.metrics.uncertainty import Extrapolation
from sparsevid.system.atomic import renamed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")


def check_can_draw(path: str | Path | None = None) -> None:
    """Refuse early what the functions of this module would refuse late.

    Args:
        path: of a picture to come; None if only a folder is known.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the picture's ending is none of `FORMATS`.
    """
    if path is not None and Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"a plot's file ends with one of {', '.join(FORMATS)}, got {str(path)!r}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("plots need the package matplotlib: pip install 'sparsevid[demo]'") from error


def plot_extrapolation(path: str | Path, found: Extrapolation, *, title: str, metric: str) -> None:
    """Draw a score against the number of clips, as 1/N, with its fit and the fit's value for N → ∞.

    Args:
        path: of the picture, PNG, PDF or SVG by its ending; its folder exists.
        found: as `extrapolate` gives it.
        title: above the picture.
        metric: name of the score.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: another ending.
    """
    figure = new_figure(path)
    axes = figure.add_subplot()
    inverse = [1 / size for size in found.sizes]
    line = [0.0, max(inverse)]
    limit = f"N → ∞: {found.value:.4g} ± {found.error:.2g}" + ("" if found.reliable else " (not reliable)")
    axes.plot(line, [found.value + found.slope * x for x in line], color="tab:gray", label="fit against 1/N")
    axes.plot(inverse, found.means, "o", color="tab:blue", label="measured")
    axes.errorbar(
        [0],
        [found.value],
        [found.error],
        fmt="s",
        color="tab:red",
        markerfacecolor="tab:red" if found.reliable else "none",
        capsize=3,
        label=limit,
    )
    axes.set_xticks([0, *inverse], ["∞", *map(str, found.sizes)])
    _finish(figure, path, title, ("fake clips N (axis linear in 1/N)", metric))


def plot_curves(
    path: str | Path, strengths: Sequence[float], curves: Mapping[str, Sequence[float]], *, title: str, metric: str
) -> None:
    """Draw a score against the strength of each distortion.

    Args:
        path: of the picture, PNG, PDF or SVG by its ending; its folder exists.
        strengths: common to all curves.
        curves: distortion → the score at each strength.
        title: above the picture.
        metric: name of the score.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: another ending; or a curve of another length than the strengths.
    """
    for name, scores in curves.items():
        if len(scores) != len(strengths):
            raise ValueError(f"curve {name!r} has {len(scores)} scores for {len(strengths)} strengths")
    figure = new_figure(path)
    axes = figure.add_subplot()
    for name, scores in curves.items():
        axes.plot(strengths, scores, "o-", label=name)
    _finish(figure, path, title, ("strength", metric))


def plot_fit(
    path: str | Path,
    points: Sequence[tuple[float, float]],
    curve: Sequence[tuple[float, float]],
    *,
    title: str,
    labels: tuple[str, str],
) -> None:
    """Draw points and what was fitted to them.

    Args:
        path: of the picture, PNG, PDF or SVG by its ending; its folder exists.
        points: (x, y) of each.
        curve: points of the fit in the order of x, joined by lines.
        title: above the picture.
        labels: of x and y.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: another ending.
    """
    figure = new_figure(path)
    axes = figure.add_subplot()
    axes.plot(*zip(*points, strict=True), ".", color="tab:blue", alpha=0.4, label="measured")
    axes.plot(*zip(*curve, strict=True), color="tab:red", label="fit")
    _finish(figure, path, title, labels)


def nearest_and_farthest(real: Tensor, fake: Tensor, k: int) -> tuple[list[int], list[int]]:
    """The fake clips nearest to and farthest from the real set, by the distance to the nearest real clip.

    Args:
        real: features (N, D).
        fake: features (M, D).
        k: clips of each list; all M if that is less.

    Returns:
        Indices of fakes: the nearest, nearest first, and the farthest, farthest first. Equal distances keep their order.

    Raises:
        ValueError: see `check_pair`; or k below 1.
    """
    check_pair(real, fake, minimum=1)
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    distances = nearest_distances(fake, real)
    nearest = distances.argsort(stable=True)
    farthest = distances.argsort(stable=True, descending=True)
    return nearest[:k].tolist(), farthest[:k].tolist()


def new_figure(path: str | Path, size: tuple[float, float] = (6.4, 4.4)) -> "Figure":
    """An empty figure that is drawn without a display and touches no state of pyplot.

    Args:
        path: of the picture to come.
        size: width and height in inches.

    Raises:
        ImportError, ValueError: as `check_can_draw`.
    """
    check_can_draw(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finish(figure: "Figure", path: str | Path, title: str, labels: tuple[str, str]) -> None:
    """Write title, names of x and y and legend into a picture of one plot, and the picture to its file."""
    (axes,) = figure.axes
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
    axes.legend()
    save_figure(figure, path)


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure as PNG, PDF or SVG, by the path's ending."""
    path = Path(path)
    with renamed(path) as draft:
        figure.savefig(draft, format=path.suffix.lower()[1:], dpi=150)
