"""Cheaper guidance: the half without a class has fewer tokens, passes over sparse layers, or is computed at every n-th call.

After the path-drop guidance of SPRINT (arXiv 2510.21986), whose half without a class passes over the sparse middle of a model.
In between calls, the difference of the two halves that was found last stands for the present one. (Such differences change
slowly, as FasterCache, arXiv 2410.19355, shows; it also corrects them by frequency, which is `faster`.)
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from sparsevid.diffusion import NULL
from sparsevid.models.saving import Part, Place
from sparsevid.savings.base import Call, Every, Policy, SavingError, at_least
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Guidance(Policy):
    """Computes the half without a class at every `every`-th call in which guidance acts; `sparse=off`: without layers M and S;
    `grid`: with this sparse grid, such as 4x6x6, wherever the other half has more tokens.
    """

    name: ClassVar[str] = "guidance"
    family: ClassVar[str] = "guidance"
    decides_null: ClassVar[bool] = True

    every: int = 1
    sparse: bool = True
    grid: tuple[int, int, int] | None = None
    _calls: Every = field(init=False, repr=False, compare=False)
    _difference: "Tensor | None" = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        at_least(self.every, 1, "every", self)
        self._calls = Every(self.every)
        self.points = () if self.sparse else ("layer",)  # type: ignore[misc]  # an option decides where it is asked

    @property
    def changes_nothing(self) -> bool:
        return self.every == 1 and self.sparse and self.grid is None

    def check(self, spec: ModelSpec) -> None:
        if not spec.is_sparse and (self.grid is not None or not self.sparse):
            raise SavingError(f"saving guidance: the layout {spec.layout!r} has no sparse layers; only `every` means something")

    def null_grid(self, grid: Grid) -> Grid:
        own = grid if self.grid is None else Grid(*self.grid)
        return own if own.tokens < grid.tokens else grid

    def reuse(self, place: Place, part: Part) -> "Tensor | None":
        return part.tokens() if self.half == NULL and place.kind in "MS" else None

    def computes_null(self, call: Call) -> bool:
        return self._calls.computes()

    def null_output(self, call: Call, conditional: "Tensor", null: "Tensor | None") -> "Tensor":
        if null is None:
            assert self._difference is not None  # its first call is computed
            return (conditional.float() - self._difference).to(conditional.dtype)
        if self.every > 1:
            self._difference = conditional.float() - null.float()
        return null
