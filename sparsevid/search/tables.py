"""What choices of layers, modules and grids lose and cost: arrays, by layer, module, grid and interval of diffusion time.

Dimensions: L layers, J intervals of diffusion time from data to noise, G grids from few to many tokens.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from sparsevid.search import SearchError
from sparsevid.sparsity.cost import fixed_macs, layer_macs
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.layout import parse_layout
from sparsevid.sparsity.spec import ModelSpec

SHORTEST, LONGEST = 3, 8  # layers of a module: M, S layers, R, and one D
_PARTS = re.compile("MS*RD|[PD]")

Span = tuple[int, int]  # of a module: its first layer, and its number of layers, the last of which is D
Choice = int | tuple[Span, int]  # a layer as P, or a module and the index of its grid
Choices = tuple[str | Span, ...]  # a layout in depth order: P, D, modules


@dataclass(frozen=True)
class LossTables:
    """What choices lose against the dense model, each by itself.

    Attributes:
        grids: G sparse grids, from few to many tokens.
        pooling: (L, J) loss of layer i as P.
        modules: (G, J) loss of each module that can be chosen.
        weights: (J,) of the intervals of time in the loss, with the sum 1.
        errors: of the losses, standard errors in the same shapes; None: exact.
    """

    grids: tuple[Grid, ...]
    pooling: np.ndarray
    modules: Mapping[Span, np.ndarray]
    weights: np.ndarray
    errors: "LossTables | None" = field(default=None, repr=False)

    def __post_init__(self) -> None:
        depth, times = self.pooling.shape
        if len(self.weights) != times or any(each.shape != (len(self.grids), times) for each in self.modules.values()):
            raise SearchError(
                f"tables of other shapes: pooling {self.pooling.shape}, {len(self.weights)} weights, modules "
                f"{sorted({each.shape for each in self.modules.values()})}; they are (L, J), (J,) and (G, J) with "
                f"G = {len(self.grids)}"
            )
        if not all(np.isfinite(each).all() for each in (self.pooling, self.weights, *self.modules.values())):
            raise SearchError("tables with losses or weights that are not finite")
        if wrong := [each for each in self.modules if each[0] < 0 or sum(each) > depth or each[1] < SHORTEST]:
            raise SearchError(f"modules {wrong} do not lie in {depth} layers, or have fewer than {SHORTEST}")

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.pooling)

    def shifted(self, errors: float) -> "LossTables":
        """The losses with so many standard errors added."""
        if self.errors is None:
            return self
        modules = {key: each + errors * self.errors.modules[key] for key, each in self.modules.items()}
        return replace(self, pooling=self.pooling + errors * self.errors.pooling, modules=modules, errors=None)


@dataclass(frozen=True)
class CostTables:
    """Multiply–adds of a sampling run, by choice.

    Attributes:
        fixed: of a forward, outside of the layers.
        dense: (L,) of layer i as D, of a forward.
        pooling: (L,) as P.
        modules: (G,) of each module on each grid.
        steps: (J,) forwards of the run in each interval of time.
    """

    fixed: int
    dense: Sequence[int]
    pooling: Sequence[int]
    modules: Mapping[Span, Sequence[int]]
    steps: Sequence[int]

    @property
    def dense_total(self) -> int:
        """Of a run of the dense model."""
        return sum(self.steps) * (self.fixed + sum(self.dense))


def possible_modules(depth: int, *, every: int = 2, longest: int = LONGEST) -> list[Span]:
    """Modules of 3 to `longest` layers that start at every `every`-th layer: 2, as the layer is a spatial one then."""
    return [(first, length) for first in range(0, depth, every)
            for length in range(SHORTEST, min(longest, depth - first) + 1)]  # fmt: skip


def module_kinds(length: int) -> str:
    """The layers of a module: `MSSRD` of five."""
    return "M" + "S" * (length - SHORTEST) + "RD"


def written(kinds: str) -> str:
    """Letters as a layout is written: `PMSRDMSRDD` as `1P 2(1M1S1R1D) 1D`."""
    groups, alone = [], ""  # layers that stand in no repeated module, to be written as runs
    for module, same in groupby(_PARTS.findall(kinds)):
        repeat = len(list(same))
        if module[0] != "M" or repeat == 1:
            alone += module * repeat
        else:
            groups += [_runs(alone), f"{repeat}({_runs(module)})"]
            alone = ""
    return str(parse_layout(" ".join([*groups, _runs(alone)])))


def _runs(kinds: str) -> str:
    return " ".join(f"{len(list(run))}{kind}" for kind, run in groupby(kinds))


def cost_tables(spec: ModelSpec, grids: Sequence[Grid], steps: Sequence[int], modules: Sequence[Span]) -> CostTables:
    """Costs by `sparsity.cost` of all choices in a model of these sizes.

    Args:
        spec: sizes; its layout does not count.
        grids: sparse ones.
        steps: forwards of a run in each interval of time.
        modules: that can be chosen.
    """
    depth, dense = spec.depth, spec.dense_grid()

    def macs(kinds: str, layers: range, grid: Grid | None = None) -> list[int]:
        of_kinds = replace(spec, layout=written(kinds), sparse_grid=grid)
        return [layer_macs(of_kinds, index, dense, grid) for index in layers]

    by_module = {
        (first, length): [
            sum(macs("D" * first + module_kinds(length) + "D" * (depth - first - length), range(first, first + length), grid))
            for grid in grids
        ]
        for first, length in modules
    }
    every = range(depth)
    return CostTables(fixed_macs(spec, dense), macs("D" * depth, every), macs("P" * depth, every), by_module, tuple(steps))


def layout_of(choices: Choices) -> str:
    """The layout that choices in depth order make."""
    return written("".join(module_kinds(each[1]) if isinstance(each, tuple) else each for each in choices))


def choices_of(layout: str, tables: LossTables) -> Choices:
    """The choices that a layout stands for.

    Raises:
        SearchError: it has another depth, or modules that are not in the tables.
    """
    choices = choices_of_layout(layout)
    if (depth := sum(1 if isinstance(each, str) else each[1] for each in choices)) != tables.depth:
        raise SearchError(f"layout {layout!r} has {depth} layers, and the tables {tables.depth}")
    for first, length in modules_of(layout):
        if (first, length) not in tables.modules:
            raise SearchError(f"layout {layout!r}: nothing is known of a module of layers {first} to {first + length - 1}")
    return choices


def modules_of(layout: str) -> list[Span]:
    """The modules of a layout, from the bottom."""
    return [each for each in choices_of_layout(layout) if isinstance(each, tuple)]


def choices_of_layout(layout: str) -> Choices:
    """Its P and D layers, and its modules, from the bottom."""
    parts = re.finditer("M+S*RD|.", parse_layout(layout).kinds)
    return tuple(part[0] if len(part[0]) == 1 else (part.start(), len(part[0])) for part in parts)


def places(choices: Choices) -> Iterator[tuple[int, str | Span]]:
    """Each choice with its first layer."""
    layer = 0
    for each in choices:
        yield layer, each
        layer += each[1] if isinstance(each, tuple) else 1
