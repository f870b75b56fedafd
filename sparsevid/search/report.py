"""What a search found, written: a run's configuration, a table of all that was tried, a picture, all numbers."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsevid.benchmark.report import as_markdown
from sparsevid.evaluation.plot import new_figure, save_figure
from sparsevid.runs.config import RecordConfig, RunConfig, save_config
from sparsevid.search.measure import name_of
from sparsevid.search.refine import Candidate, rank_correlations
from sparsevid.search.search import Found
from sparsevid.system.atomic import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIG, RESULT, TABLE, PICTURE = "searched.yaml", "result.json", "tried.md", "frontier.svg"
SIZE = (12.0, 5.2)  # inches


def write_found(found: Found, checkpoint: str, out: Path, header: dict[str, Any], *, plot: bool = True) -> None:
    """Write the results of a search into its folder: `searched.yaml`, `tried.md`, `result.json` and `frontier.svg`.

    Args:
        found: the outcome.
        checkpoint: of the dense model, that the configuration starts from.
        out: the folder.
        header: as `describe_run` gives it.
        plot: whether to draw, which needs matplotlib.
    """
    save_config(replace(searched_config(found, checkpoint), output=str(out)), out / CONFIG)
    write_text(out / TABLE, as_markdown(header, lines(found), columns(found), rows(found)))
    write_json(out / RESULT, header | as_json(found))
    if plot:
        plot_found(out / PICTURE, found)


def searched_config(found: Found, checkpoint: str) -> RunConfig:
    """A run of the best candidate, fine-tuned from the dense model."""
    best, config = found.candidates[0], found.problem.pipeline.config
    # Positions of a model of text are its preset's.
    preset = config.model.preset if found.problem.spec.text_channels else None
    model = replace(config.model, preset=preset, layout=best.layout, **_sizes(found))
    schedule = config.schedule
    if best.is_sparse:
        model, schedule = replace(model, residual_upsampling=True), replace(schedule, kind="table", table=best.table)
    train = replace(config.train, init_from=checkpoint, steps=max(found.problem.settings.steps, config.train.steps))
    return replace(config, name="searched", model=model, schedule=schedule, train=train, record=RecordConfig())


def _sizes(found: Found) -> dict[str, Any]:
    """What a preset would have said."""
    return {name: getattr(found.problem.spec, name) for name in ("hidden_size", "num_heads", "patch_size", "mlp_ratio")}


def columns(found: Found) -> list[str]:
    """Of the table of all that was tried."""
    return ["", "layout", "tokens over time", "of dense", "predicted", *(_after(steps) for steps in _lengths(found))]


def rows(found: Found) -> list[list[str]]:
    """The best first, the paper's last."""
    every = [*found.candidates, *([] if found.paper is None else [found.paper])]
    return [_row(each, _lengths(found)) for each in every]


def lines(found: Found) -> list[str]:
    """What is to be known of the table."""
    settings, (loss, error) = found.problem.settings, found.dense_loss
    best = found.candidates[0]
    said = [
        f"losses are differences to the dense model's, {loss:.4f} ± {error:.4f}, on {settings.clips} clips of "
        f"{settings.split}, {settings.times} times each; ± standard errors over clips; predicted: the sum of what each choice "
        "loses by itself, as converted",
        f"budget {settings.budget:g} of the dense model's multiply–adds; weights of time: {settings.objective}",
        f"no choice within the budget is predicted below {found.bound:+.4f}; the best found is predicted at "
        f"{min(each.predicted[0] for each in found.candidates if each.predicted is not None):+.4f}",
    ]
    for steps, (rho, count) in rank_correlations(found.candidates).items():
        said.append(f"Spearman's ρ of the prediction with the loss {_after(steps)}, over {count} that were found: {rho:+.2f}")
    if found.confirmed is not None and found.paper is not None:
        said.append(
            f"{best.name} − {found.paper.name} {_after(max(best.losses))}, paired, on clips, times and noise that had no part "
            f"in the choice: {found.confirmed[0]:+.4f} ± {found.confirmed[1]:.4f}"
        )
    return said


def as_json(found: Found) -> dict[str, Any]:
    """All numbers."""
    tables, grids, errors = found.tables, found.problem.grids, found.tables.errors
    assert errors is not None  # of tables that were measured
    every = [*found.candidates, *([] if found.paper is None else [found.paper])]
    choices = {name_of(i, grids): (tables.pooling[i], errors.pooling[i]) for i in range(tables.depth)}
    for module, losses in tables.modules.items():
        choices |= {name_of((module, g), grids): (losses[g], errors.modules[module][g]) for g in range(len(grids))}
    return {
        "settings": vars(found.problem.settings),
        "dense_loss": found.dense_loss,
        "edges": found.problem.edges,
        "weights": found.problem.weights.tolist(),
        "grids": [list(grid) for grid in grids],
        "choices": {name: {"losses": own.tolist(), "errors": error.tolist()} for name, (own, error) in choices.items()},
        "bound": found.bound,
        "confirmed": found.confirmed,
        "frontier": [{"ratio": each.ratio, "loss": each.loss, "layout": each.layout, "grids": list(each.grids)}
                     for each in found.frontier],
        "tried": [
            {"name": each.name, "layout": each.layout, "schedule": each.table, "ratio": each.ratio,
             "predicted": each.predicted, "losses": {str(steps): loss for steps, loss in each.losses.items()}}
            for each in every
        ],
    }  # fmt: skip


def plot_found(path: Path, found: Found) -> None:
    """Draw predicted loss against cost with the frontier, and predicted against measured losses.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = new_figure(path, SIZE)
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.25, 1]})
    _draw_frontier(left, found)
    _draw_ranks(right, found)
    save_figure(figure, path)


def _draw_frontier(axes: "Axes", found: Found) -> None:
    xs, ys = [each.ratio for each in found.frontier], [each.loss for each in found.frontier]
    axes.plot(xs, ys, "o-", color="tab:blue", markersize=4, label="best by the tables")
    singles = _singles(found)
    axes.plot(*zip(*singles, strict=True), ".", color="tab:gray", markersize=3, alpha=0.6, label="one layer or module alone")
    budget = found.problem.settings.budget
    axes.axvline(budget, color="black", linewidth=0.8, linestyle=":")
    axes.plot([budget], [found.bound], "_", color="black", markersize=14, label="Lagrange's bound")
    best = [(each.ratio, each.losses[0][0]) for each in found.candidates if 0 in each.losses]
    axes.plot(*zip(*best, strict=True), "o", color="tab:green", markerfacecolor="none", label="tried, as converted")
    if (paper := found.paper) is not None:
        if paper.predicted is not None:
            axes.plot([paper.ratio], [paper.predicted[0]], "s", color="tab:red", label="the paper's, by the tables")
        axes.plot([paper.ratio], [paper.losses[0][0]], "s", color="tab:red", markerfacecolor="none",
                  label="the paper's, as converted")  # fmt: skip
    axes.set_xlabel("multiply–adds of a sampling run, of the dense model's")
    axes.set_ylabel("held-out loss − the dense model's, before training")
    axes.grid(True, alpha=0.25)
    axes.legend(fontsize=8)


def _draw_ranks(axes: "Axes", found: Found) -> None:
    every = [*found.candidates, *([] if found.paper is None else [found.paper])]
    for number, steps in enumerate(_lengths(found)):
        pairs = [(each.predicted[0], *each.losses[steps], each) for each in every if each.predicted and steps in each.losses]
        for x, y, error, each in pairs:
            paper = each is found.paper
            axes.errorbar([x], [y], [error], fmt="s" if paper else "o", color=f"C{number}", markersize=7 if paper else 5,
                          markerfacecolor="white" if paper else f"C{number}", linewidth=0.8)  # fmt: skip
        axes.plot([], [], "o", color=f"C{number}", label=_after(steps))
    if found.paper is not None:
        axes.plot([], [], "s", color="black", markerfacecolor="white", markersize=7, label="the paper's layout")
    axes.set_xlabel("predicted by the tables")
    axes.set_ylabel("held-out loss − the dense model's")
    axes.grid(True, alpha=0.25)
    axes.legend(fontsize=8)


def _singles(found: Found) -> list[tuple[float, float]]:
    """(share of the cost, loss) of each choice made alone, at all times."""
    tables, costs = found.tables, found.problem.costs
    total, steps = costs.dense_total, costs.steps
    alone = [(1 - sum(steps) * (costs.dense[i] - costs.pooling[i]) / total, float(tables.pooling[i] @ tables.weights))
             for i in range(tables.depth)]  # fmt: skip
    for (first, length), losses in tables.modules.items():
        dense = sum(costs.dense[first : first + length])
        alone += [
            (1 - sum(steps) * (dense - each) / total, float(loss @ tables.weights))
            for each, loss in zip(costs.modules[first, length], losses, strict=True)
        ]
    return alone


def _lengths(found: Found) -> list[int]:
    """Steps after which anything was measured."""
    return sorted({steps for each in found.candidates for steps in each.losses})


def _after(steps: int) -> str:
    return f"after {steps} steps" if steps else "as converted"


def _row(each: Candidate, lengths: Sequence[int]) -> list[str]:
    found = [each.predicted, *map(each.losses.get, lengths)]
    losses = ["–" if loss is None else f"{loss[0]:+.4f} ± {loss[1]:.4f}" for loss in found]
    return [each.name, each.layout, tokens_over_time(each), f"{each.ratio:.4f}", *losses]


def tokens_over_time(each: Candidate) -> str:
    """The schedule in a line, from data to noise: `1×7×7 to 0.28, 1×6×6 to 0.5, 1×4×4`; of a layout that has none a dash."""
    if not each.is_sparse:
        return "–"
    stages = [(stage.high, str(stage.grid)) for stage in each.schedule.stages]
    merged = [(list(same)[-1][0], grid) for grid, same in groupby(stages, key=lambda stage: stage[1])]
    return ", ".join(grid if high == 1.0 else f"{grid} to {high:g}" for high, grid in merged)
