"""FirstBlockCache: where the first layer hardly changed, what the other layers added is reused (ParaAttention; no paper).

The change is that of the first layer's residual, mean|now − then| / mean|then|, to the last call that computed all. It needs no
fit. One number is taken over all clips of the batch: they share the decision.

Where the first layer is an M, its residual is that of the sparse tokens, and all is computed where their grid changes. A layer
that adds nothing at all tells nothing: all is computed then.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from sparsevid.models.saving import Part, Place, Stack
from sparsevid.savings.base import Call, Policy, at_least, relative_change, stack_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class FirstBlock(Policy):
    """Leaves out all layers after the first, where the first one's residual changed by less than `threshold`; 0: never."""

    name: ClassVar[str] = "first_block"
    points: ClassVar = ("stack",)

    threshold: float = 0.05
    _residual: "Tensor | None" = field(init=False, default=None, repr=False, compare=False)  # of the first layer, then
    _rest: "Tensor | None" = field(init=False, default=None, repr=False, compare=False)  # what the others added, then
    _first_kind: str = field(init=False, default="", repr=False, compare=False)  # of layer

    def __post_init__(self) -> None:
        at_least(self.threshold, 0, "threshold", self)

    @property
    def changes_nothing(self) -> bool:
        return self.threshold == 0

    def begin(self, call: Call) -> None:
        self._first_kind = call.spec.parsed_layout.kinds[0]

    def forget(self, kinds: str) -> None:
        super().forget(kinds)
        if self._first_kind in kinds:
            self._residual = self._rest = None

    def reuse(self, place: Place, part: Part) -> "Tensor | None":
        stack = stack_of(part)
        if self._rest is None or self._residual is None:
            return None
        if not relative_change(_residual(stack), self._residual) < self.threshold:
            return None
        x = stack.first().x
        return (x.float() + self._rest).to(x.dtype)

    def keep(self, place: Place, part: Part, output: "Tensor") -> None:
        stack = stack_of(part)
        self._residual = _residual(stack)
        self._rest = output.float() - stack.first().x.float()


def _residual(part: Stack) -> "Tensor":
    """Of the first layer's tokens, dense or sparse."""
    x, s, pooled = part.first()
    return x.float() - part.tokens().float() if s is None or pooled is None else s.float() - pooled.float()
