"""Pyramid Attention Broadcast: in the middle of sampling, outputs of attentions are reused for some calls (arXiv 2408.12588).

As in its code (VideoSys), calls are counted over the whole sampling, and at those whose number is a multiple of an attention's
range it is computed; so are all outside of 100 < t < 800. The MLPs of layers 0 to 4 are computed at marks of time and reused
at the two calls that follow. Where it departs: the published marks are timesteps of one sampler of 50 steps; here the first
call at or below a mark is meant, whatever the steps, so with few steps each call may be at one and is computed, and with many
the reused stretch is short. Layers are counted in depth order: Latte's 28 blocks of each axis were published with 0 to 4 of
both, the same share as of 28 layers here. Flow models have t = 999·u and the same bounds. Attentions over a window (M and R)
count as spatial, and P's means as attentions.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from sparsevid.models.saving import Part, Place
from sparsevid.savings.base import Call, Policy, at_least
from sparsevid.sparsity.schedule import LAST_TIMESTEP

if TYPE_CHECKING:
    from torch import Tensor

RANGES = {"spatial": 2, "temporal": 3, "text": 6}
AXES = {"space": "spatial", "window": "spatial", "time": "temporal", "text": "text"}
MARKS = (720, 640, 560, 480, 400)  # timesteps
MLP_LAYERS = range(5)
MLP_CALLS = 2


@dataclass
class Pab(Policy):
    """Computes attentions at every `spatial`-th, `temporal`-th and `text`-th call where `above` < t < `below`, of timesteps 0 …
    999, and takes their last outputs in between; `mlp`: and those of some MLPs.

    `every` sets those of the three that are not given themselves. `mlp=off` leaves the MLPs alone; so does a range of 1 of all
    three, which is no saving.
    """

    name: ClassVar[str] = "pab"
    points: ClassVar = ("attention", "mlp")

    every: int | None = None
    spatial: int | None = None
    temporal: int | None = None
    text: int | None = None
    mlp: bool = True
    above: float = 100.0
    below: float = 800.0
    _call: int = field(init=False, default=0, repr=False, compare=False)
    _t: float = field(init=False, default=LAST_TIMESTEP, repr=False, compare=False)
    _passed: int | None = field(init=False, default=None, repr=False, compare=False)  # marks
    _since_mark: int | None = field(init=False, default=None, repr=False, compare=False)  # calls

    def __post_init__(self) -> None:
        for name, published in RANGES.items():
            given = getattr(self, name)
            setattr(self, name, next(value for value in (given, self.every, published) if value is not None))
            at_least(getattr(self, name), 1, name, self)
        self.every = None

    @property
    def changes_nothing(self) -> bool:
        return self.spatial == self.temporal == self.text == 1

    def begin(self, call: Call) -> None:
        self._call, self._t = call.number, call.t
        passed = sum(self._t <= mark for mark in MARKS)
        at_mark = self._passed is not None and passed > self._passed
        self._since_mark = 0 if at_mark else None if self._since_mark in (None, MLP_CALLS) else self._since_mark + 1
        self._passed = passed
        self.kept = {place: output for place, output in self.kept.items() if self._may_be_read(place)}

    def reuse(self, place: Place, part: Part) -> "Tensor | None":
        if place.point == "mlp":
            return self.kept.get(place) if self._since_mark else None
        due = self._call % getattr(self, AXES[place.axis]) == 0
        return self.kept.get(place) if self.above < self._t < self.below and not due else None

    def keep(self, place: Place, part: Part, output: "Tensor") -> None:
        if self._may_be_read(place):
            self.kept[place] = output

    def _may_be_read(self, place: Place) -> bool:
        """Whether this call or a later one may reuse what is kept of the place."""
        if place.point == "mlp":
            return self.mlp and place.index in MLP_LAYERS and self._since_mark is not None
        return self._t > self.above and getattr(self, AXES[place.axis]) > 1
