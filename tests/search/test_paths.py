"""Shortest paths under a budget, against all paths of small random graphs."""

import random

import pytest

from sparsevid.search import SearchError
from sparsevid.search.paths import Arc, best_paths, cheapest, lagrange_bound, least_through


def random_graph(seed: int, nodes: int = 7, losses=lambda draw: draw.uniform(-1.0, 3.0)) -> list[Arc]:
    draw = random.Random(seed)
    arcs = []
    for start in range(nodes - 1):
        for end in range(start + 1, min(start + 4, nodes)):
            arcs += [
                Arc(start, end, (start, end, each), losses(draw), draw.randrange(8)) for each in range(draw.randrange(1, 3))
            ]
    return arcs


def all_paths(arcs, node, target):
    if node == target:
        yield ()
    for arc in arcs:
        if arc.start == node:
            for rest in all_paths(arcs, arc.end, target):
                yield (arc, *rest)


def sums(path):
    return sum(arc.loss for arc in path), sum(arc.cost for arc in path)


@pytest.mark.parametrize("seed", range(12))
def test_the_best_of_all_paths_are_found(seed):
    arcs = random_graph(seed)
    every = list(all_paths(arcs, 0, 6))
    least = cheapest(arcs, 0, 6).cost
    assert least == min(sums(path)[1] for path in every)
    for budget in (least, least + 3, 40):
        within = sorted(sums(path) for path in every if sums(path)[1] <= budget)
        found = best_paths(arcs, 0, 6, budget, count=5)
        assert [each.loss for each in found] == pytest.approx([loss for loss, _ in within[:5]])
        assert all(each.cost <= budget for each in found) and len({each.choices for each in found}) == len(found)
        assert lagrange_bound(arcs, 0, 6, budget) <= found[0].loss + 1e-9
        through = least_through(arcs, 0, 6, budget)
        for arc, loss in zip(arcs, through, strict=True):
            own = [sums(path)[0] for path in every if arc in path and sums(path)[1] <= budget]
            assert loss == pytest.approx(min(own, default=float("inf")))


def test_a_coarser_grid_of_costs_never_exceeds_the_budget():
    arcs = random_graph(3, nodes=9)
    for cells in (3, 8, 20):
        for budget in range(cheapest(arcs, 0, 8).cost, 40):
            found = best_paths(arcs, 0, 8, budget, cells=cells)[0]
            assert found.cost <= budget and found.loss >= best_paths(arcs, 0, 8, budget)[0].loss - 1e-12
            below = least_through(arcs, 0, 8, budget, cells=cells)
            assert all(a <= b + 1e-12 for a, b in zip(below, least_through(arcs, 0, 8, budget), strict=True))


def test_without_a_limit_the_bound_is_the_least_loss():
    arcs = random_graph(5)
    assert lagrange_bound(arcs, 0, 6, 1000) == pytest.approx(best_paths(arcs, 0, 6, 1000)[0].loss)


def test_the_order_of_arcs_of_a_node_does_not_matter():
    arcs = [Arc("a", "c", "long", 1.0, 1), Arc("a", "b", None, 0.0, 0), Arc("b", "c", "short", 0.5, 2)]
    assert best_paths(arcs, "a", "c", 2)[0].choices == ("short",)
    assert best_paths(arcs, "a", "c", 1)[0] == (("long",), 1.0, 1)


def test_what_has_no_answer_is_refused():
    arcs = [Arc("a", "b", "x", 1.0, 5)]
    with pytest.raises(SearchError, match="costs at most 4: the cheapest costs 5"):
        best_paths(arcs, "a", "b", 4)
    with pytest.raises(SearchError, match="the cheapest costs 5"):
        lagrange_bound(arcs, "a", "b", 4)
    with pytest.raises(SearchError, match="nothing to choose from"):
        best_paths(arcs, "a", "z", 4)
    with pytest.raises(SearchError, match="leads back"):
        best_paths([*arcs, Arc("b", "a", "y", 0.0, 0)], "a", "b", 9)
