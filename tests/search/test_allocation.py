"""Layouts and schedules under a budget: the best of all that there are, within it by `sparsity.cost`, above the bound."""

from dataclasses import replace

import numpy as np
import pytest
from planted import GRIDS, SPEC, STEPS, by_trying_all, costs_of, layouts, noisy, planted

from sparsevid.models.presets import build_spec
from sparsevid.search import SearchError
from sparsevid.search.allocation import allocate, bound, hopeless, predicted
from sparsevid.search.tables import LossTables, choices_of, layout_of, possible_modules, written
from sparsevid.sparsity.cost import sampling_macs
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.layout import parse_layout
from sparsevid.sparsity.spec import ModelSpec

EDGES = [0.0, *(each / len(STEPS) for each in range(1, len(STEPS))), 1.0]
TIMES = [(low + (number + 0.5) / count * (high - low)) for count, low, high in zip(STEPS, EDGES, EDGES[1:], strict=False)
         for number in range(count)]  # fmt: skip


def counted(allocation, tables, spec, edges=EDGES, times=TIMES) -> float:
    """The share of the dense model's multiply–adds, by the code that counts models and runs."""
    schedule = allocation.schedule(tables.grids, edges, spec.dense_grid())
    sparse = "M" in parse_layout(allocation.layout).kinds
    changed = replace(spec, layout=allocation.layout, sparse_grid=tables.grids[0] if sparse else None)
    return sampling_macs(changed, schedule if sparse else None, times).ratio


@pytest.mark.parametrize(("seed", "budget"), [(0, 0.5), (1, 0.35)])
def test_a_planted_optimum_is_found(seed, budget):
    tables = planted(seed)
    costs = costs_of(tables)
    best = by_trying_all(tables, costs, budget)
    found = allocate(tables, costs, budget)[0]
    assert found.loss == pytest.approx(best.loss, rel=1e-12)
    assert counted(found, tables, SPEC) == pytest.approx(found.ratio, rel=1e-12) and found.ratio <= budget
    assert bound(tables, costs, budget) <= found.loss + 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
@pytest.mark.parametrize("budget", [0.4, 0.55, 0.8])
def test_planted_optima_are_found(seed, budget):
    test_a_planted_optimum_is_found(seed, budget)


def test_the_first_of_several_are_the_best_layouts():
    tables = planted(3)
    costs = costs_of(tables)
    every = allocate(tables, costs, 0.5, count=4)
    assert len({each.layout for each in every}) == 4
    assert [each.loss for each in every] == sorted(each.loss for each in every)
    assert every[0] == allocate(tables, costs, 0.5)[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_misleads_by_no_more_than_its_error(seed):
    """What is chosen by noisy tables is, by the true ones, worse than the optimum by at most what both errors explain."""
    truth = planted(seed)
    costs = costs_of(truth)
    measured = noisy(truth, 0.03, seed)
    chosen, best = allocate(measured, costs, 0.5)[0], allocate(truth, costs, 0.5)[0]
    own = predicted(truth, costs, chosen.layout, chosen.grids)
    other = predicted(measured, costs, best.layout, best.grids)
    error = (chosen.error**2 + other.error**2) ** 0.5
    assert chosen.error > 0
    assert abs(own.loss - chosen.loss) < 4 * chosen.error
    assert 0 <= own.loss - best.loss < 4 * error


def test_what_cannot_win_is_not_in_the_best():
    truth = planted(4)
    costs = costs_of(truth)
    measured = noisy(truth, 0.004, 4)
    left = hopeless(measured, costs, 0.5, 3.0)
    best = allocate(truth, costs, 0.5)[0]
    used = {(module, g) for module in choices_of(best.layout, truth) if isinstance(module, tuple) for g in best.grids}
    every = len(GRIDS) * len(truth.modules)
    assert not left & used and not left & set(range(best.layout.count("P")))
    assert every / 4 < len(left)  # it spares something
    assert not hopeless(noisy(truth, 10.0, 4), costs, 0.99, 3.0)  # where nothing is known


@pytest.mark.parametrize("name", ["Latte-XL/2", "DiT-B/2", "study"])
@pytest.mark.parametrize("budget", [0.25, 0.35, 0.6, 0.9])
def test_costs_are_within_the_budget(name, budget):
    study = ModelSpec("12D", 128, 4, input_size=(4, 8, 8), in_channels=48, patch_size=1, mlp_ratio=2.0, learn_sigma=False)
    spec = study if name == "study" else build_spec(name)
    t, h, _ = spec.dense_grid()
    sides = [max(2, round(h * share)) for share in (0.25, 0.4, 0.5, 0.65)]
    grids = tuple(Grid(max(1, t // 4), side, side) for side in sorted(set(sides)))
    tables = planted(5, spec, grids)
    costs = costs_of(tables, spec)
    try:
        found = allocate(tables, costs, budget)[0]
    except SearchError as error:
        least = float(str(error).partition("the least is ")[2].split(",")[0])
        assert budget < least < 0.5 and allocate(tables, costs, least)[0].ratio <= least
        assert budget <= 0.35  # only the smallest
    else:
        assert found.ratio <= budget
        assert counted(found, tables, spec) == pytest.approx(found.ratio, rel=1e-12)
        assert (
            found.loss <= allocate(tables, costs, 0.25 + budget / 2 if budget > 0.5 else budget)[0].loss
        )  # more may lose less


def test_schedules_can_rise_with_noise_if_asked_for():
    tables = planted(6)
    rising = {key: each[:, ::-1].copy() for key, each in tables.modules.items()}  # it is at noise that tokens count
    tables = replace(tables, modules=rising)
    costs = costs_of(tables)
    free, bound_to_fall = allocate(tables, costs, 0.5, monotone=False)[0], allocate(tables, costs, 0.5)[0]
    assert free.loss <= bound_to_fall.loss and free.ratio <= 0.5
    assert list(bound_to_fall.grids) == sorted(bound_to_fall.grids, reverse=True)
    assert bound(tables, costs, 0.5) <= free.loss


def test_equal_questions_have_equal_answers():
    tables = noisy(planted(7), 0.05, 7)
    assert allocate(tables, costs_of(tables), 0.45, count=3) == allocate(tables, costs_of(tables), 0.45, count=3)


def test_all_of_the_budget_leaves_the_model_as_it_is():
    tables = replace(planted(8), pooling=np.ones((8, 6)))
    found = allocate(tables, costs_of(tables), 1.0)[0]
    assert (found.layout, found.loss, found.ratio) == ("8D", 0.0, 1.0)


def test_layouts_are_written_as_they_are_read():
    every = list(layouts(8, possible_modules(8)))
    assert len(every) == len(set(every)) > 20
    tables = planted(0)
    for layout in every:
        assert str(parse_layout(layout)) == layout and layout_of(choices_of(layout, tables)) == layout
    assert written("PMSSRDMSSRDD") == "1P 2(1M2S1R1D) 1D"


def test_what_cannot_be_asked_is_refused():
    tables = planted(0)
    costs = costs_of(tables)
    for budget in (0.0, 1.1, float("nan")):
        with pytest.raises(SearchError, match="a share of the dense model's"):
            allocate(tables, costs, budget)
    with pytest.raises(SearchError, match=r"not reachable .* the least is 0\.\d+, by "):
        allocate(tables, costs, 0.05)
    with pytest.raises(SearchError, match="modules of layers 1 to 4|a module of layers 1 to 4"):
        predicted(tables, costs, "1P 1(1M1S1R1D) 3D", [0] * 6)
    with pytest.raises(SearchError, match="has 4 layers"):
        predicted(tables, costs, "4D", [0] * 6)
    with pytest.raises(SearchError, match="tables of other shapes"):
        LossTables(GRIDS, np.zeros((8, 6)), {(0, 3): np.zeros((2, 6))}, np.ones(6) / 6)
