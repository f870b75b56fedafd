"""Layout and token schedule of least predicted loss under a budget of multiply–adds: on tables of loss and cost alone.

A prediction adds up what each choice loses by itself: a layer that is a pooling one, a module on sparse tokens of a grid at a
time. What a module costs, and loses, depends on the grid at each time, so layout and schedule are chosen together: each is
exact given the other (`paths`), by turns from many schedules.

Dimensions: L layers, J intervals of diffusion time from data to noise, G grids from few to many tokens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from sparsevid.search import SearchError
from sparsevid.search.graphs import (
    END,
    START,
    cost_outside,
    is_within,
    layout_arcs,
    loss_outside,
    relaxed_arcs,
    schedule_arcs,
)
from sparsevid.search.paths import Path, best_paths, cheapest, lagrange_bound, least_through
from sparsevid.search.tables import Choice, Choices, CostTables, LossTables, choices_of, layout_of, places
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.schedule import TokenSchedule, table_schedule

STARTS = 1000  # schedules that a search begins with; all that there are, if they are not more


@dataclass(frozen=True)
class Allocation:
    """A layout and a schedule.

    Attributes:
        layout: in depth order.
        grids: index of the grid in each interval of time.
        loss: predicted, against the dense model.
        error: standard error of the prediction, as if those of the tables were independent.
        cost: multiply–adds of a sampling run.
        ratio: cost over that of the dense model.
    """

    layout: str
    grids: tuple[int, ...]
    loss: float
    error: float
    cost: int
    ratio: float

    def schedule(self, grids: Sequence[Grid], edges: Sequence[float], dense: Grid) -> TokenSchedule:
        """The token schedule.

        Args:
            grids: that `grids` are indices of.
            edges: J + 1 ends of the intervals.
            dense: (T, H, W).
        """
        return table_schedule([(high, grids[g]) for high, g in zip(edges[1:], self.grids, strict=True)], dense)


def allocate(
    tables: LossTables, costs: CostTables, budget: float, *, count: int = 1, monotone: bool = True
) -> list[Allocation]:
    """The layouts and schedules of least predicted loss within a budget.

    From each of many schedules the best layouts are found, for the best of these the best schedule, and so on until nothing
    changes. Where the search begins with all monotone schedules there are, the first is the optimum among these.

    Args:
        tables: of losses.
        costs: of the same choices.
        budget: of the multiply–adds of the dense model's sampling run, in (0, 1].
        count: how many, of different layouts.
        monotone: no side of the grid grows with noise.

    Returns:
        At most `count`, that of least predicted loss first.

    Raises:
        SearchError: nothing is within the budget; the message names the least that is.
    """
    limit = _limit(costs, budget)
    check_reachable(costs, tables.grids, budget)
    schedules, all_there_are = _starts(tables.grids, len(tables.weights), monotone)
    losses: dict[tuple[Choices, tuple[int, ...]], float] = {}
    for start in schedules:
        chosen, best = start, math.inf
        while True:
            arcs = layout_arcs(tables, costs, chosen)
            if cheapest(arcs, START, END).cost > limit:
                break
            found = best_paths(arcs, START, END, limit, count=count)
            losses |= {(path.choices, chosen): path.loss for path in found}
            if all_there_are and monotone:
                break
            improved = best_paths(schedule_arcs(tables, costs, found[0].choices, monotone=monotone), START, END, limit)[0]
            if (found[0].choices, improved.choices) in losses or not improved.loss < best:
                break
            chosen, best = improved.choices, improved.loss
    ranked = sorted(losses, key=lambda each: losses[each])
    layouts = list(dict.fromkeys(choices for choices, _ in ranked))[: 2 * count]
    settled = []
    for choices in layouts:  # each with the best schedule of its own
        path = best_paths(schedule_arcs(tables, costs, choices, monotone=monotone), START, END, limit)[0]
        settled.append(_allocation(tables, costs, choices, path.choices))
    return sorted(settled, key=lambda each: (each.loss, each.cost))[:count]


def predicted(tables: LossTables, costs: CostTables, layout: str, grids: Sequence[int]) -> Allocation:
    """What the tables say of a layout and a schedule.

    Raises:
        SearchError: the layout has modules that are not in the tables.
    """
    return _allocation(tables, costs, choices_of(layout, tables), tuple(grids))


def bound(tables: LossTables, costs: CostTables, budget: float) -> float:
    """A predicted loss that no layout and schedule within the budget is below: Lagrange's, each module free in its grids.

    Raises:
        SearchError: nothing is within the budget.
    """
    check_reachable(costs, tables.grids, budget)
    return lagrange_bound(relaxed_arcs(tables, costs), START, END, _limit(costs, budget))


def least_share(costs: CostTables, grids: Sequence[Grid]) -> float:
    """The least share of the dense model's multiply–adds that a layout and a schedule have."""
    return _cheapest(costs, grids).cost / costs.dense_total


def check_reachable(costs: CostTables, grids: Sequence[Grid], budget: float) -> None:
    """Refuse a budget that nothing is within.

    Raises:
        SearchError: the message says what is the least.
    """
    limit = _limit(costs, budget)
    if (least := _cheapest(costs, grids)).cost > limit:
        share = math.ceil(1e4 * least.cost / costs.dense_total) / 1e4
        raise SearchError(
            f"a budget of {budget:g} of the dense model's multiply–adds is not reachable with these modules and grids: the "
            f"least is {share:.4f}, by {layout_of(least.choices)}"
        )


def hopeless(tables: LossTables, costs: CostTables, budget: float, errors: float, cells: int = 2048) -> set[Choice]:
    """Choices that cannot be part of the best: with losses `errors` standard errors better than they seem, and each module
    free in its grids, all that they are part of is worse than what is best with losses as much worse.

    Returns:
        Layers i of `pooling`, and (module, grid index) of `modules` that are so at all times.
    """
    most = allocate(tables.shifted(errors), costs, budget)[0].loss
    arcs = relaxed_arcs(tables.shifted(-errors), costs)
    least = least_through(arcs, START, END, _limit(costs, budget), cells=cells)
    found: dict[Any, list[float]] = {arc.choice[:2]: [] for arc in arcs if arc.choice is not None}
    for arc, loss in zip(arcs, least, strict=True):
        if arc.choice is not None:
            found[arc.choice[:2]].append(loss)
    return {choice[1] if choice[0] == "P" else choice for choice, losses in found.items() if min(losses) > most}


def _starts(grids: Sequence[Grid], times: int, monotone: bool) -> tuple[list[tuple[int, ...]], bool]:
    """Schedules to begin with, and whether they are all monotone ones."""
    every = list(islice(_falling(grids, times), STARTS + 1))
    if len(every) <= STARTS:
        return every, True
    ends = [(a, b) for a in range(len(grids)) for b in range(a + 1) if is_within(grids[b], grids[a])]
    straight = [tuple(round(a + (b - a) * j / max(times - 1, 1)) for j in range(times)) for a, b in ends]
    kept = [each for each in straight if not monotone or all(is_within(grids[b], grids[a]) for a, b in pairwise(each))]
    return kept[:: -(-len(kept) // STARTS)], False


def _falling(grids: Sequence[Grid], times: int, above: int | None = None) -> Iterator[tuple[int, ...]]:
    """All schedules of so many times in which no side grows with noise."""
    if times == 0:
        yield ()
        return
    for g, grid in enumerate(grids):
        if above is None or is_within(grid, grids[above]):
            for rest in _falling(grids, times - 1, g):
                yield (g, *rest)


def _limit(costs: CostTables, budget: float) -> int:
    if not 0.0 < budget <= 1.0:
        raise SearchError(f"budget = {budget}: a share of the dense model's multiply–adds, above 0 and at most 1")
    return math.floor(budget * costs.dense_total * (1 + 1e-12))


def _cheapest(costs: CostTables, grids: Sequence[Grid]) -> Path:
    """The layout that costs least, on the best of the grids at all times."""
    every = [cheapest(layout_arcs(None, costs, [g] * len(costs.steps)), START, END) for g in range(len(grids))]
    return min(every, key=lambda each: each.cost)


def _allocation(tables: LossTables, costs: CostTables, choices: Choices, grids: tuple[int, ...]) -> Allocation:
    modules = [each for each in choices if isinstance(each, tuple)]
    pairs = [(j, g, each) for j, g in enumerate(grids) for each in modules]
    loss = loss_outside(tables, choices) + sum(float(tables.weights[j] * tables.modules[each][g, j]) for j, g, each in pairs)
    cost = sum(costs.steps) * cost_outside(costs, choices) + sum(
        costs.steps[j] * costs.modules[each][g] for j, g, each in pairs
    )
    variance = 0.0
    if (errors := tables.errors) is not None:
        variance += sum(float(((errors.pooling[i] * tables.weights) ** 2).sum()) for i, each in places(choices) if each == "P")
        variance += sum(float((tables.weights[j] * errors.modules[each][g, j]) ** 2) for j, g, each in pairs)
    return Allocation(layout_of(choices), grids, loss, math.sqrt(variance), cost, cost / costs.dense_total)
