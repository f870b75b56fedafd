"""FasterCache: attentions are extrapolated at every second call, and the half without a class mostly estimated (arXiv
2410.19355).

From a share `start` of the calls on. An attention in between is the last computed one plus w times its change from the one
before; w rises from 0 to 1 over the rest of the calls, as the public code for Open-Sora nearly does. The half without a class
is computed at every `null_every`-th call; in between it is the other half plus the difference of the two, split into low
spatial frequencies, within a fifth of the smaller side, and high ones. As in the public code for Latte, each call in between
weighs the low ones by 1.1 more while 99 < t < 901, and the high ones once t < 301. The split is linear, so differences are
kept as images, and no transform is made in between.

Where it departs: wherever the half without a class is computed, so are its attentions, and the other half keeps to its own
turn (in diffusers it computes too); the learned variance is estimated as the other channels are; a share of calls stands for
the numbers set for each model, and the weights' times are those of Latte for all. Without guidance only attentions are saved.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from sparsevid.diffusion import NULL
from sparsevid.models.saving import Part, Place
from sparsevid.savings.base import Call, Policy, SavingError, at_least

if TYPE_CHECKING:
    from torch import Tensor

NULL_EVERY = 5  # calls from one computation of the half without a class to the next
GROWTH = 1.1  # of a difference, a call
LOW_TIMES = (99, 901)  # timesteps, exclusive
HIGH_TIMES = (-1, 301)
LOW_RADIUS = 5  # low are frequencies up to a fifth of the smaller side


@dataclass
class Faster(Policy):
    """Computes attentions at every `every`-th call, the half without a class at every `null_every`-th, and extrapolates both in
    between, from a share `start` of the calls on. `every=1` computes both always, unless `null_every` is given.
    """

    name: ClassVar[str] = "faster"
    points: ClassVar = ("attention",)
    needs_times: ClassVar[bool] = True
    decides_null: ClassVar[bool] = True

    every: int = 2
    null_every: int | None = None
    start: float = 0.33
    _since: int = field(init=False, default=0, repr=False, compare=False)  # calls after the first that may leave out
    _weight: float = field(init=False, default=0.0, repr=False, compare=False)
    _low: "Tensor | None" = field(init=False, default=None, repr=False, compare=False)  # null − conditional, weighted
    _high: "Tensor | None" = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        at_least(self.every, 1, "every", self)
        if self.null_every is None:
            self.null_every = NULL_EVERY if self.every > 1 else 1
        at_least(self.null_every, 1, "null_every", self)
        if not 0 <= self.start <= 1:
            raise SavingError(f"saving faster: start = {self.start}; it is a share of the sampling, 0 to 1")

    @property
    def changes_nothing(self) -> bool:
        return self.every == self.null_every == 1

    def begin(self, call: Call) -> None:
        first = self._first(call)
        self._since = call.number - first
        self._weight = self._since / max(1, call.whole - 1 - first)

    def reuse(self, place: Place, part: Part) -> "Tensor | None":
        import torch

        if self._computes_attentions or len(self.kept.get(place, ())) < 2:
            return None
        before, last = self.kept[place]
        return torch.lerp(before.float(), last.float(), 1 + self._weight).to(last.dtype)

    def keep(self, place: Place, part: Part, output: "Tensor") -> None:
        if self._since >= -1 and self._extrapolates:
            shared = output.untyped_storage().nbytes() > output.nbytes  # with the other half, which keeps none of it
            self.kept[place] = (*self.kept.get(place, ()), output.clone() if shared else output)[-2:]

    def computes_null(self, call: Call) -> bool:
        return self._low is None or (call.number - self._first(call)) % self._null_every == 0

    def null_output(self, call: Call, conditional: "Tensor", null: "Tensor | None") -> "Tensor":
        if null is None:
            assert self._low is not None and self._high is not None  # else `computes_null` had it computed
            self._low = self._low * (GROWTH if LOW_TIMES[0] < call.t < LOW_TIMES[1] else 1.0)
            self._high = self._high * (GROWTH if HIGH_TIMES[0] < call.t < HIGH_TIMES[1] else 1.0)
            return (conditional.float() + self._low + self._high).to(conditional.dtype)
        if self._null_every > 1 and call.number >= self._first(call):
            self._low, self._high = by_frequency(null.float() - conditional.float())
        return null

    @property
    def _null_every(self) -> int:
        """`null_every`, settled when this was made."""
        assert self.null_every is not None
        return self.null_every

    @property
    def _extrapolates(self) -> bool:
        """Whether this half's attentions are ever extrapolated."""
        return self.every > 1 and (self.half != NULL or self.null_every == 1)

    @property
    def _computes_attentions(self) -> bool:
        return self._since < 0 or self._since % self.every == 0

    def _first(self, call: Call) -> int:
        """Number of the first call that may leave something out."""
        return math.ceil(self.start * call.whole)


def by_frequency(images: "Tensor") -> "tuple[Tensor, Tensor]":
    """Low and high spatial frequencies of (..., H, W), whose sum it is."""
    import torch

    height, width = images.shape[-2:]
    y, x = (torch.fft.fftfreq(side, 1 / side, device=images.device) for side in (height, width))
    is_low = y[:, None] ** 2 + x**2 <= (min(height, width) // LOW_RADIUS) ** 2
    low = torch.fft.ifft2(torch.fft.fft2(images) * is_low).real.contiguous()  # a view would keep the imaginary part
    return low, images - low
