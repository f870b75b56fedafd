"""Foresight: a layer that changed by less than a threshold of its own is not computed (arXiv 2506.00329).

In a warm-up all is computed, and each layer's threshold measured: of the mean squared changes of its output from call to call
the last three, the last with weight 1, those before with .1 and .01. After it, every `every`-th call computes all layers; at
the others a layer is computed if its last change, from one computation to the next, is `threshold` times its own threshold or
more, and else its last output is reused, as it stands: that of the layer, not what it added. So what was computed before a
layer that is reused does not reach further in that call; it keeps the earlier layers' changes known.

Where it departs: the warm-up is a share of diffusion time, which for the samplers here is that share of calls, and lasts until
a layer has a change; a change equal to the bound is computed, so that a threshold of 0 computes all. Each layer is compared
with itself alone (the public code for Latte takes a spatial cache for temporal blocks). Sparse layers keep their threshold and
last change where their grid changes, both means over tokens, and are computed there. One number is taken over the clips of a
batch: they share decisions.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from sparsevid.models.saving import Part, Place
from sparsevid.savings.base import Call, Every, Policy, SavingError, at_least
from sparsevid.sparsity.schedule import TIME_ERROR

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = (1.0, 0.1, 0.01)  # of the warm-up's changes, the last one first


@dataclass
class Foresight(Policy):
    """Leaves out layers that changed by less than `threshold` times a bound of their own, measured in the first share `warmup`
    of the sampling; every `every`-th call computes all.
    """

    name: ClassVar[str] = "foresight"
    points: ClassVar = ("layer",)

    threshold: float = 0.5
    warmup: float = 0.15
    every: int = 2
    _calls: Every = field(init=False, repr=False, compare=False)
    _computes: bool = field(init=False, default=True, repr=False, compare=False)
    _warms_up: bool = field(init=False, default=True, repr=False, compare=False)
    _begun: float | None = field(init=False, default=None, repr=False, compare=False)  # time of the first call
    _measured: "dict[Place, Tensor]" = field(init=False, default_factory=dict, repr=False, compare=False)  # not read yet
    _last: dict[Place, float] = field(init=False, default_factory=dict, repr=False, compare=False)  # change
    _warm: dict[Place, tuple[float, ...]] = field(init=False, default_factory=dict, repr=False, compare=False)  # changes

    def __post_init__(self) -> None:
        at_least(self.threshold, 0, "threshold", self)
        at_least(self.warmup, 0, "warmup", self)
        at_least(self.every, 1, "every", self)
        if self.warmup > 1:
            raise SavingError(f"saving foresight: warmup = {self.warmup}; it is a share of the sampling, at most 1")
        self._calls = Every(self.every)

    @property
    def changes_nothing(self) -> bool:
        return self.threshold == 0 or self.every == 1

    def begin(self, call: Call) -> None:
        self._read()
        self._begun = call.u if self._begun is None else self._begun
        self._warms_up = call.u > self._begun - self.warmup + TIME_ERROR or not self._warm
        self._computes = self._calls.computes(anew=self._warms_up)

    def reuse(self, place: Place, part: Part) -> "Tensor | None":
        if self._computes or place not in self.kept or place not in self._warm:
            return None
        own = sum(weight * change for weight, change in zip(WEIGHTS, self._warm[place], strict=False))
        return self.kept[place] if self._last[place] < self.threshold * own else None

    def keep(self, place: Place, part: Part, output: "Tensor") -> None:
        if place in self.kept:
            self._measured[place] = (output.float() - self.kept[place].float()).square().mean()
        self.kept[place] = output

    def _read(self) -> None:
        """Bring to the host, at once, what the call before measured."""
        import torch

        if not self._measured:
            return
        changes = dict(zip(self._measured, torch.stack(list(self._measured.values())).tolist(), strict=True))
        self._last |= changes
        for place, change in changes.items():
            if self._warms_up or place not in self._warm:
                self._warm[place] = (change, *self._warm.get(place, ()))[: len(WEIGHTS)]
        self._measured = {}
