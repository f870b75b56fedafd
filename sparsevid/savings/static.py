"""FORA: attentions and MLPs are computed at every n-th call, and their outputs are reused in between (arXiv 2407.01425).

As there, what is kept is the output before the gate, and the gates are those of the call. FORA keeps each layer of DiT; here
are five kinds of layers, and those on sparse tokens are also computed where the sparse grid changes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsevid.models.saving import Part, Place
from sparsevid.savings.base import Call, Periodic

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Static(Periodic):
    """Computes all attentions and MLPs at every `every`-th call, and takes their last outputs in between."""

    name: ClassVar[str] = "static"
    points: ClassVar = ("attention", "mlp")

    def begin(self, call: Call) -> None:
        self._computes = self._calls.computes()

    def reuse(self, place: Place, part: Part) -> "Tensor | None":
        return None if self._computes else self.kept.get(place)

    def keep(self, place: Place, part: Part, output: "Tensor") -> None:
        self.kept[place] = output
