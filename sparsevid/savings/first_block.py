"""FirstBlockCache: where the first layer hardly changed, what the other layers added is reused (ParaAttention; no paper).

The change is that of the first layer's residual, mean|now − then| / mean|then|, to the last call that computed all. It needs no
fit. One number is taken over all clips of the batch: they share the decision.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from sparsevid.models.saving import Part, Place, Stack
from sparsevid.savings.base import Policy, at_least, relative_change


@dataclass
class FirstBlock(Policy):
    """Leaves out all layers after the first, where the first one's residual changed by less than `threshold`; 0: never."""

    name: ClassVar[str] = "first_block"
    points: ClassVar = ("stack",)

    threshold: float = 0.05
    _residual: Tensor | None = field(init=False, default=None, repr=False, compare=False)  # of the first layer, then
    _rest: Tensor | None = field(init=False, default=None, repr=False, compare=False)  # what the others added, then

    def __post_init__(self) -> None:
        at_least(self.threshold, 0, "threshold", self)

    @property
    def changes_nothing(self) -> bool:
        return self.threshold == 0

    def reuse(self, place: Place, part: Stack) -> Tensor | None:
        if self._rest is None or relative_change(_residual(part), self._residual) >= self.threshold:
            return None
        return (part.first().float() + self._rest).to(part.first().dtype)

    def keep(self, place: Place, part: Part, output: Tensor) -> None:
        self._residual = _residual(part)
        self._rest = output.float() - part.first().float()


def _residual(part: Stack) -> Tensor:
    return part.first().float() - part.inputs()[0].float()
