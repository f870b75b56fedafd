"""Step reuse: the sparse layers run at every n-th call, and what they changed is added in between. Ours.

The early, sparse part of a model changes slowly over neighbouring sampling steps. So M and S are computed at a refresh and
passed over at the calls that follow; pooling, R and the dense layers run always.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from sparsevid.models.saving import Part, Place
from sparsevid.savings.base import Call, Periodic

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Steps(Periodic):
    """Computes sparse layers at every `every`-th call, and adds what they changed in between.

    They are also computed wherever the sparse grid or the batch is another one than before. In between, the tokens that a
    module begins with are pooled anew, and what its M and S changed at the last refresh is added.
    """

    name: ClassVar[str] = "steps"
    points: ClassVar = ("layer",)
    differences: ClassVar = True
    needs_sparse: ClassVar = True

    _inside: Place | None = field(init=False, default=None, repr=False, compare=False)  # the M that began the module

    def begin(self, call: Call) -> None:
        self._computes = self._calls.computes(anew=not self.kept)
        self._inside = None

    def reuse(self, place: Place, part: Part) -> "Tensor | None":
        if place.kind not in "MS":
            self._inside = None
            return None
        tokens, begins = part.tokens(), self._inside is None
        self._inside = place if begins else self._inside
        if self._computes:
            if begins:
                self.kept[place] = (tokens, None)
            return None
        if not begins:
            return tokens
        start, end = self.kept[place]
        return end + (tokens - start)

    def keep(self, place: Place, part: Part, output: "Tensor") -> None:
        if self._inside is not None and place.kind in "MS":
            self.kept[self._inside] = (self.kept[self._inside][0], output)
