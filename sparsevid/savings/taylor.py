"""TaylorSeer: attentions and MLPs are computed at every n-th call, and extrapolated in between (arXiv 2503.06923).

As there, outputs before the gate are extrapolated from the differences of those that were computed. It departs in three
things. The published form counts in calls; this one in diffusion time, so that steps of any length are fitted, and a second
call at the same time, as Heun's method makes, is no step: its value takes the other's place and the slopes stay. Orders above
1 are Newton's polynomial through the last values, which is exact on polynomials of that degree; the published series takes
differences that lie behind for derivatives. And the first order + 1 calls are computed, whatever `every` is: the published
code computes a number of first calls that is set for each model.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from sparsevid.models.saving import Part, Place
from sparsevid.savings.base import Call, Every, Policy, SavingError, at_least
from sparsevid.sparsity.schedule import TIME_ERROR

if TYPE_CHECKING:
    from torch import Tensor

HIGHEST_ORDER = 3


class Polynomial(NamedTuple):
    """In Newton's form, through the last values: Σ differences[k]·(u − times[0])·…·(u − times[k − 1]).

    Attributes:
        times: diffusion times of the values, the last one first.
        differences: divided differences over the first 1, 2, … of these times: the value itself, then in float32.
    """

    times: tuple[float, ...]
    differences: "tuple[Tensor, ...]"

    def at(self, u: float) -> "Tensor":
        """Its value at time `u`, in the type of the values."""
        *_, total = self.differences
        for time, difference in list(zip(self.times, self.differences[:-1], strict=False))[::-1]:
            total = difference.float() + (u - time) * total
        return total.to(self.differences[0].dtype)

    def through(self, u: float, value: "Tensor", order: int) -> "Polynomial":
        """That of at most this order, through one more value."""
        if abs(u - self.times[0]) <= TIME_ERROR:
            return Polynomial(self.times, (value, *self.differences[1:]))
        differences = [value]
        for time, difference in list(zip(self.times, self.differences, strict=True))[:order]:
            differences.append((differences[-1].float() - difference.float()) / (u - time))
        return Polynomial((u, *self.times)[: len(differences)], tuple(differences))


@dataclass
class Taylor(Policy):
    """Computes attentions and MLPs at every `every`-th call, and extrapolates in between by degree `order`, 0 … 3.

    What extrapolates is a polynomial in time through the last outputs; degree 0 is `static`. Sparse layers are also computed
    where their grid changes, and begin there with degree 0.
    """

    name: ClassVar[str] = "taylor"
    points: ClassVar = ("attention", "mlp")

    every: int = 2
    order: int = 1
    _calls: Every = field(init=False, repr=False, compare=False)
    _computes: bool = field(init=False, default=True, repr=False, compare=False)
    _begun: int = field(init=False, default=0, repr=False, compare=False)  # calls of this half
    _u: float = field(init=False, default=1.0, repr=False, compare=False)  # of this call

    def __post_init__(self) -> None:
        at_least(self.every, 1, "every", self)
        at_least(self.order, 0, "order", self)
        if self.order > HIGHEST_ORDER:
            raise SavingError(f"saving taylor: order = {self.order}; it is at most {HIGHEST_ORDER}")
        self._calls = Every(self.every)

    @property
    def changes_nothing(self) -> bool:
        return self.every == 1

    def begin(self, call: Call) -> None:
        self._u = call.u
        self._computes = self._calls.computes(anew=self._begun <= self.order)
        self._begun += 1

    def reuse(self, place: Place, part: Part) -> "Tensor | None":
        if self._computes or place not in self.kept:
            return None
        return self.kept[place].at(self._u)

    def keep(self, place: Place, part: Part, output: "Tensor") -> None:
        known = self.kept.get(place)
        value = Polynomial((self._u,), (output,)) if known is None else known.through(self._u, output, self.order)
        self.kept[place] = value
