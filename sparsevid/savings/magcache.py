"""MagCache: all layers are left out while the size of what they add hardly changes, by measured ratios (arXiv 2506.09045).

A call's ratio is the norm of what all layers add (output − input) to a token over that at the call before, on average. Since
the last computation the ratios multiply; how far their product is from 1 is the error of a call that is left out, and these sum
up. While the sum is below a threshold, and not too many calls in a row are left out, the stack's last residual is added to its
input. A first share of the calls is computed always.

Each half of guidance has its own ratios and sums, as its authors advise. Ours departs so: the last call is computed; for
another number of calls the logarithm of the size is interpolated over the sampling, where the published code takes the ratio of
the nearest call: a longer step counts as the steps that it takes together. Nothing is decided by content: clips share nothing.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sparsevid.diffusion import CONDITIONAL
from sparsevid.models.saving import Part, Place
from sparsevid.savings.base import SavingError, at_least
from sparsevid.savings.fits import Fit, FittedPolicy

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = math.log(sys.float_info.max)


@dataclass
class MagCache(FittedPolicy):
    """Leaves out all layers while the summed error is below `threshold`, at most `skips` times in a row, once a share `start`
    of the calls is over.

    Threshold 0 or skips 0: never.
    """

    name: ClassVar[str] = "magcache"
    lengths: ClassVar[Mapping[str, Sequence[int]]] = {CONDITIONAL: ()}

    threshold: float = 0.06
    skips: int = 3
    start: float = 0.2
    _seen: int | None = field(init=False, default=None, repr=False, compare=False)  # number of the last call of this half
    _ratio: float = field(init=False, default=1.0, repr=False, compare=False)
    _error: float = field(init=False, default=0.0, repr=False, compare=False)
    _skipped: int = field(init=False, default=0, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.skips, 0, "skips", self)
        if not 0 <= self.start <= 1:
            raise SavingError(f"saving magcache: start = {self.start}; it is a share of the calls, 0 to 1")

    @property
    def changes_nothing(self) -> bool:
        return self.threshold == 0 or self.skips == 0

    def reuse(self, place: Place, part: Part) -> "Tensor | None":
        return self.again(part) if self.leaves_out(self._call.number, self._call.whole) else None

    def leaves_out(self, number: int, count: int) -> bool:
        """Whether all layers are left out at this call of so many; it is asked of call after call."""
        seen, self._seen = self._seen, number
        if seen is not None and int(self.start * count) <= number < count - 1:
            self._ratio *= self.ratio(seen, number, count)
            self._error += abs(1.0 - self._ratio)
            self._skipped += 1
            if self._error < self.threshold and self._skipped <= self.skips:
                return True
        self._ratio, self._error, self._skipped = 1.0, 0.0, 0
        return False

    def ratio(self, before: int, now: int, count: int) -> float:
        """The size of what all layers add at one call of so many over that at an earlier one."""
        import numpy as np

        values = self.fitted.values
        ratios = values.get(self.half) or values[CONDITIONAL]
        sizes = np.concatenate([[0.0], np.cumsum(np.log(ratios))])  # logarithms, of each call that was measured
        at = np.interp([before / (count - 1), now / (count - 1)], np.linspace(0.0, 1.0, len(sizes)), sizes)
        return math.exp(at[1] - at[0])

    def _read(self, path: Path) -> Fit:
        fit = super()._read(path)
        if min(ratio for ratios in fit.values.values() for ratio in ratios) <= 0:
            raise SavingError(f"saving magcache: the fit {path} is damaged: ratios of sizes are above 0")
        # At fewer calls than were measured some of them multiply.
        if max(sum(abs(math.log(ratio)) for ratio in ratios) for ratios in fit.values.values()) > LARGEST:
            raise SavingError(f"saving magcache: the fit {path} is damaged: its ratios multiply to more than a float holds")
        return fit
