"""Layouts and schedules as paths of a graph, whose arcs are choices with their loss and cost.

Dimensions: L layers, J intervals of diffusion time, G grids.
"""

from collections.abc import Sequence

from sparsevid.search.paths import Arc
from sparsevid.search.tables import Choices, CostTables, LossTables, Span, places
from sparsevid.sparsity.grid import Grid

START, END = "start", "end"


def layout_arcs(tables: LossTables | None, costs: CostTables, grids: Sequence[int]) -> list[Arc]:
    """Layouts as paths over depth, for a schedule: choices are `P`, `D`, and modules. Without tables nothing loses anything."""
    times, steps, depth = range(len(grids)), sum(costs.steps), len(costs.dense)
    arcs = [Arc(START, (0, True), None, 0.0, steps * costs.fixed)]
    for i in range(depth):
        pooling = 0.0 if tables is None else float(tables.pooling[i] @ tables.weights)
        arcs.append(Arc((i, True), (i + 1, True), "P", pooling, steps * costs.pooling[i]))
        for below in (True, False):  # whether all layers below are P
            if i == 0 and not below:
                continue
            arcs.append(Arc((i, below), (i + 1, False), "D", 0.0, steps * costs.dense[i]))
            for module in _starting_at(costs, i):
                loss = 0.0 if tables is None else sum(_loss(tables, module, grids[j], j) for j in times)
                cost = sum(costs.steps[j] * costs.modules[module][grids[j]] for j in times)
                arcs.append(Arc((i, below), (i + module[1], False), module, loss, cost))
    return [*arcs, *(Arc((depth, below), END, None, 0.0, 0) for below in (True, False))]


def schedule_arcs(tables: LossTables, costs: CostTables, choices: Choices, *, monotone: bool = True) -> list[Arc]:
    """Schedules as paths over time, for a layout: choices are indices of grids."""
    modules = [each for each in choices if isinstance(each, tuple)]
    loss = loss_outside(tables, choices)
    fixed = sum(costs.steps) * cost_outside(costs, choices)
    arcs = [Arc(START, (-1, None), None, loss, fixed)]
    last: list[int | None] = [None]
    for j in range(len(tables.weights)):
        for g, grid in enumerate(tables.grids):
            own = sum(_loss(tables, each, g, j) for each in modules)
            cost = costs.steps[j] * sum(costs.modules[each][g] for each in modules)
            before = [each for each in last if each is None or not monotone or is_within(grid, tables.grids[each])]
            arcs += [Arc((j - 1, each), (j, g), g, own, cost) for each in before]
        last = list(range(len(tables.grids)))
    return [*arcs, *(Arc((len(tables.weights) - 1, g), END, None, 0.0, 0) for g in last)]


def relaxed_arcs(tables: LossTables, costs: CostTables) -> list[Arc]:
    """Layouts whose modules have each a grid of its own at each time: all that can be chosen, and more.

    Choices are (`P`, layer), and (module, grid index, interval of time).
    """
    times, steps = range(len(tables.weights)), sum(costs.steps)
    arcs = [Arc(START, (0, True), None, 0.0, steps * costs.fixed)]
    for i in range(tables.depth):
        pooling = float(tables.pooling[i] @ tables.weights)
        arcs.append(Arc((i, True), (i + 1, True), ("P", i), pooling, steps * costs.pooling[i]))
        for below in (True, False):
            if i == 0 and not below:
                continue
            arcs.append(Arc((i, below), (i + 1, False), None, 0.0, steps * costs.dense[i]))
            arcs += [Arc((i, below), (i, module, 0), None, 0.0, 0) for module in _starting_at(costs, i)]
        for module in _starting_at(costs, i):
            for j in times:
                end = (i + module[1], False) if j == times[-1] else (i, module, j + 1)
                arcs += [
                    Arc((i, module, j), end, (module, g, j), _loss(tables, module, g, j), costs.steps[j] * each)
                    for g, each in enumerate(costs.modules[module])
                ]
    return [*arcs, *(Arc((tables.depth, below), END, None, 0.0, 0) for below in (True, False))]


def loss_outside(tables: LossTables, choices: Choices) -> float:
    """What the layers outside of modules lose."""
    return sum(float(tables.pooling[layer] @ tables.weights) for layer, each in places(choices) if each == "P")


def cost_outside(costs: CostTables, choices: Choices) -> int:
    """Multiply–adds of a forward outside of modules."""
    own = {"P": costs.pooling, "D": costs.dense}
    return costs.fixed + sum(own[each][layer] for layer, each in places(choices) if isinstance(each, str))


def is_within(small: Grid, large: Grid) -> bool:
    """Whether no side of one grid is larger than the other's."""
    return all(a <= b for a, b in zip(small, large, strict=True))


def _starting_at(costs: CostTables, layer: int) -> list[Span]:
    return [module for module in costs.modules if module[0] == layer]


def _loss(tables: LossTables, module: Span, grid: int, time: int) -> float:
    return float(tables.weights[time] * tables.modules[module][grid, time])
