"""Tables of loss and cost whose best choice is found by trying all."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np

from sparsevid.search.allocation import Allocation, predicted
from sparsevid.search.tables import CostTables, LossTables, Span, cost_tables, module_kinds, possible_modules, written
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.spec import ModelSpec

SPEC = ModelSpec("8D", 32, 2, input_size=(4, 16, 16), patch_size=2, mlp_ratio=2.0)
GRIDS = tuple(Grid(2, side, side) for side in (2, 3, 4, 5, 6))
STEPS = (3, 3, 4, 4, 3, 3)


def planted(seed: int, spec: ModelSpec = SPEC, grids: tuple[Grid, ...] = GRIDS, steps: tuple[int, ...] = STEPS) -> LossTables:
    """Random tables that look like a model's: finer grids lose less, longer modules more, with exceptions."""
    draw, times, depth = np.random.default_rng(seed), len(steps), spec.depth
    fineness = np.linspace(1.0, 0.2, len(grids))[:, None] * np.linspace(1.5, 0.5, times)

    def varied(*shape: int) -> np.ndarray:
        return draw.uniform(0.7, 1.3, shape)

    modules = {
        each: fineness * draw.uniform(0.1, 1.0) * (each[1] - 2) ** 1.7 * varied(len(grids), times)
        for each in possible_modules(depth)
    }
    pooling, weights = draw.uniform(0.0, 0.5, (depth, 1)) * varied(depth, times), draw.uniform(0.5, 1.5, times)
    return LossTables(grids, pooling, modules, weights / weights.sum())


def noisy(tables: LossTables, error: float, seed: int) -> LossTables:
    """The tables as they would be measured with this standard error."""
    draw = np.random.default_rng(seed)

    def measured(values: np.ndarray) -> np.ndarray:
        return values + error * draw.standard_normal(values.shape)

    modules = {key: measured(each) for key, each in tables.modules.items()}
    errors = replace(
        tables,
        pooling=np.full_like(tables.pooling, error),
        modules={key: np.full_like(each, error) for key, each in modules.items()},
    )
    return replace(tables, pooling=measured(tables.pooling), modules=modules, errors=errors)


def costs_of(tables: LossTables, spec: ModelSpec = SPEC, steps: tuple[int, ...] = STEPS) -> CostTables:
    """What `sparsity.cost` says of the same choices."""
    return cost_tables(spec, tables.grids, steps, list(tables.modules))


def layouts(depth: int, modules: list[Span]) -> Iterator[str]:
    """All layouts of pooling layers below, dense layers and modules."""

    def rest(layer: int) -> Iterator[str]:
        if layer == depth:
            yield ""
            return
        for kinds in ("D", *(module_kinds(length) for first, length in modules if first == layer)):
            for above in rest(layer + len(kinds)):
                yield kinds + above

    for pooled in range(depth + 1):
        for kinds in rest(pooled):
            yield written("P" * pooled + kinds)


def schedules(grids: int, times: int) -> Iterator[tuple[int, ...]]:
    """All in which tokens do not grow with noise."""
    for rising in combinations_with_replacement(range(grids), times):
        yield rising[::-1]


def by_trying_all(tables: LossTables, costs: CostTables, budget: float) -> Allocation | None:
    """The best of all layouts and monotone schedules; None if none is within the budget."""
    every = (
        predicted(tables, costs, layout, grids)
        for layout in layouts(tables.depth, list(tables.modules))
        for grids in schedules(len(tables.grids), len(tables.weights))
    )
    return min((each for each in every if each.ratio <= budget), key=lambda each: each.loss, default=None)
