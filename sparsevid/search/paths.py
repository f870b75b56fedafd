"""Shortest paths under a budget, on an acyclic graph: each arc has a loss, and a cost of which all together have a limit.

Labels are set from node to node (Irnich and Desaulniers, "Shortest path problems with resource constraints", 2005): at a node
those are kept that no others excel in both loss and cost. Costs are whole numbers, and results exact; on a coarser grid of
costs, if asked for, there are fewer labels, and what is said errs to one side.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparsevid.search import SearchError

HALVINGS = 60  # of the interval in which the multiplier of a budget lies


class Arc(NamedTuple):
    """A choice that leads from one node to another.

    Attributes:
        start, end: nodes. Arcs are given in an order in which none leads to a node that an earlier one starts at.
        choice: what a path of this arc has chosen; None: nothing.
        loss: adds up along a path; any finite number.
        cost: adds up along a path; a whole number from 0.
    """

    start: Hashable
    end: Hashable
    choice: Any
    loss: float
    cost: int


class Path(NamedTuple):
    """The choices of the arcs from the source to the target, and their sums."""

    choices: tuple[Any, ...]
    loss: float
    cost: int


class _Labels(NamedTuple):
    """Ways to a node, by rising cost: loss, cost, the arc that they end with, and the label at that arc's start."""

    loss: np.ndarray
    cost: np.ndarray
    arc: np.ndarray
    before: np.ndarray


def best_paths(
    arcs: Sequence[Arc], source: Hashable, target: Hashable, budget: int, *, count: int = 1, cells: int | None = None
) -> list[Path]:
    """The paths of least loss whose cost is within a budget.

    Args:
        arcs: of an acyclic graph, in its order.
        source, target: nodes.
        budget: the largest cost of a path.
        count: how many paths.
        cells: round costs up to so many steps within the budget, which no path exceeds then either; None: exact.

    Returns:
        At most `count` paths, that of least loss first; of equal losses the cheaper one.

    Raises:
        SearchError: no path is within the budget; the message names the least cost. Or the arcs are in no order.
    """
    unit = _unit(budget, cells)
    least = cheapest(arcs, source, target)
    if least.cost > budget:
        raise SearchError(f"no choice costs at most {budget}: the cheapest costs {least.cost}")
    rest = _least_costs(_reversed(arcs), target)
    labels = _label(arcs, source, budget, unit, count, rest)
    if target not in labels:  # rounded up, the cheapest is above the budget
        return [least]
    ways = labels[target]
    chosen = np.lexsort((ways.cost, ways.loss))[:count]
    return [_path(arcs, labels, target, index) for index in chosen]


def cheapest(arcs: Sequence[Arc], source: Hashable, target: Hashable) -> Path:
    """The path of least cost, and of these one of least loss.

    Raises:
        SearchError: nothing leads from source to target.
    """
    return _shortest(arcs, source, target, lambda arc: (arc.cost, arc.loss))


def lagrange_bound(arcs: Sequence[Arc], source: Hashable, target: Hashable, budget: int) -> float:
    """A loss that no path within the budget is below (Held and Karp's bound: cost has a price in loss, and no limit).

    The largest over prices λ ≥ 0 of min(loss + λ·(cost − budget)), by halving.

    Raises:
        SearchError: no path is within the budget.
    """
    if (least := cheapest(arcs, source, target)).cost > budget:
        raise SearchError(f"no choice costs at most {budget}: the cheapest costs {least.cost}")

    def at(price: float) -> tuple[float, int]:
        found = _shortest(arcs, source, target, lambda arc: (arc.loss + price * arc.cost, arc.cost))
        return found.loss + price * (found.cost - budget), found.cost

    bound, cost = at(0.0)
    if cost <= budget:
        return bound
    low, high = 0.0, 1.0 / max(budget, 1)
    for _ in range(HALVINGS):  # a price at which the budget is kept
        value, cost = at(high)
        bound = max(bound, value)
        if cost <= budget:
            break
        low, high = high, 4 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        value, cost = at(middle)
        bound = max(bound, value)
        low, high = (low, middle) if cost <= budget else (middle, high)
    return bound


def least_through(
    arcs: Sequence[Arc], source: Hashable, target: Hashable, budget: int, *, cells: int | None = None
) -> list[float]:
    """For each arc the least loss of a path through it within the budget; infinity where there is none.

    With `cells` costs are rounded down to so many steps within the budget: what is said is never above the least loss.
    """
    unit = _unit(budget, cells)
    down = [arc._replace(cost=arc.cost // unit) for arc in arcs]
    limit = budget // unit
    to = _label(down, source, limit, 1, 1, _least_costs(_reversed(down), target))
    back = _reversed(down)
    since = _label(back, target, limit, 1, 1, _least_costs(down, source))
    return [_least_sum(to.get(arc.start), since.get(arc.end), arc, limit) for arc in down]


def _unit(budget: int, cells: int | None) -> int:
    return 1 if cells is None else max(1, -(-budget // cells))


def _least_sum(to: _Labels | None, since: _Labels | None, arc: Arc, limit: int) -> float:
    if to is None or since is None:
        return float("inf")
    places = np.searchsorted(since.cost, limit - arc.cost - to.cost, side="right") - 1
    fits = places >= 0
    if not fits.any():
        return float("inf")
    best = np.minimum.accumulate(since.loss)
    return float((to.loss[fits] + best[places[fits]]).min() + arc.loss)


def _label(
    arcs: Sequence[Arc], source: Hashable, budget: int, unit: int, count: int, rest: dict[Hashable, int]
) -> dict[Hashable, _Labels]:
    """The labels of all nodes; `rest` is what the cheapest way from a node to the target costs."""
    limit = budget // unit
    one = np.zeros(1, dtype=np.int64)
    labels = {source: _Labels(np.zeros(1), one, one - 1, one - 1)}
    for node, numbers in _into(arcs).items():
        ways = []
        for number in numbers:
            arc = arcs[number]
            if arc.start not in labels or node not in rest:
                continue
            before = labels[arc.start]
            cost = before.cost + -(-arc.cost // unit)
            fits = np.flatnonzero(cost + rest[node] // unit <= limit)
            ways.append(_Labels(before.loss[fits] + arc.loss, cost[fits], np.full(len(fits), number), fits))
        if ways and any(len(each.loss) for each in ways):
            labels[node] = _kept(_Labels(*map(np.concatenate, zip(*ways, strict=True))), count)
    return labels


def _kept(ways: _Labels, count: int) -> _Labels:
    """Of labels those that fewer than `count` others, each excelled by the next, excel; by rising cost."""
    order = np.lexsort((ways.loss, ways.cost))
    ways = _Labels(*(each[order] for each in ways))
    kept = np.zeros(len(order), dtype=bool)
    left = np.arange(len(order))
    for _ in range(count):
        if not len(left):
            break
        loss = ways.loss[left]
        front = loss < np.minimum.accumulate(np.concatenate([[np.inf], loss[:-1]]))
        kept[left[front]] = True
        left = left[~front]
    return _Labels(*(each[kept] for each in ways))


def _path(arcs: Sequence[Arc], labels: dict[Hashable, _Labels], node: Hashable, index: int) -> Path:
    chosen: list[Arc] = []
    while (number := labels[node].arc[index]) >= 0:
        chosen.append(arcs[number])
        node, index = arcs[number].start, labels[node].before[index]
    return _as_path(chosen)


def _as_path(backwards: Sequence[Arc]) -> Path:
    arcs = list(reversed(backwards))
    choices = tuple(arc.choice for arc in arcs if arc.choice is not None)
    return Path(choices, sum(arc.loss for arc in arcs), sum(arc.cost for arc in arcs))


def _shortest(arcs: Sequence[Arc], source: Hashable, target: Hashable, length: Any) -> Path:
    """A path of least length; a length is a pair, of which the second decides between equal ones."""
    best: dict[Hashable, tuple[tuple[float, float], Arc | None]] = {source: ((0, 0), None)}
    for numbers in _into(arcs).values():
        for number in numbers:
            arc = arcs[number]
            if arc.start not in best:
                continue
            before, own = best[arc.start][0], length(arc)
            found = (before[0] + own[0], before[1] + own[1])
            if arc.end not in best or found < best[arc.end][0]:
                best[arc.end] = (found, arc)
    if target not in best:
        raise SearchError("there is nothing to choose from: no choices lead from the first to the last")
    chosen: list[Arc] = []
    last = best[target][1]
    while last is not None:
        chosen.append(last)
        last = best[last.start][1]
    return _as_path(chosen)


def _least_costs(arcs: Sequence[Arc], source: Hashable) -> dict[Hashable, int]:
    """What the cheapest way to each node costs, of those that the source leads to."""
    least = {source: 0}
    for arc in arcs:
        if arc.start in least:
            cost = least[arc.start] + arc.cost
            least[arc.end] = min(least.get(arc.end, cost), cost)
    return least


def _reversed(arcs: Sequence[Arc]) -> list[Arc]:
    """The same graph from its end; its arcs in their order again."""
    return [arc._replace(start=arc.end, end=arc.start) for arc in reversed(arcs)]


def _into(arcs: Sequence[Arc]) -> dict[Hashable, list[int]]:
    """The numbers of the arcs into each node, nodes in an order in which arcs lead on.

    Raises:
        SearchError: an arc leads to a node that an earlier one starts at.
    """
    into: dict[Hashable, list[int]] = defaultdict(list)
    started: set[Hashable] = set()
    for number, arc in enumerate(arcs):
        if arc.end in started or arc.start == arc.end:
            raise SearchError(f"arcs are given in the order of their nodes; arc {number} leads back to {arc.end!r}")
        started.add(arc.start)
        into[arc.end].append(number)
    return dict(sorted(into.items(), key=lambda each: each[1][-1]))
