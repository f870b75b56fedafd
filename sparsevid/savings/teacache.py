"""TeaCache: where the first layer's modulated input hardly changed, what all layers added is reused (arXiv 2411.19108).

d = mean|m − m'| / mean|m'| compares that input with the one at the call before, computed or not; a polynomial p of degree 4,
fitted to the checkpoint, says from d how much the outputs change; while the sum of p(d) since the last computation is below a
threshold, the stack's last residual (output − input) is added to its input. First and last call are computed.

Ours departs so: each half of guidance sums for itself; state belongs to one sampling (the published code keeps it on the
class); outside of the range that p was fitted on, where a polynomial of degree 4 means nothing, d counts as the nearest in it;
and p(d) below 0 counts as 0. One number is taken over all clips of the batch: they share the decision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sparsevid.models.saving import Part, Place
from sparsevid.savings.base import SavingError, relative_change, stack_of
from sparsevid.savings.fits import Fit, FittedPolicy

if TYPE_CHECKING:
    from torch import Tensor

DEGREE = 4


@dataclass
class TeaCache(FittedPolicy):
    """Leaves out all layers while the predicted relative changes of the output sum up to less than `threshold`; 0: never."""

    name: ClassVar[str] = "teacache"
    lengths: ClassVar[Mapping[str, Sequence[int]]] = {"coefficients": (DEGREE + 1,), "range": (0, 2)}

    _before: "Tensor | None" = field(init=False, default=None, repr=False, compare=False)  # modulated input, the call before
    _sum: float = field(init=False, default=0.0, repr=False, compare=False)

    def reuse(self, place: Place, part: Part) -> "Tensor | None":
        now, before = stack_of(part).modulated(), self._before
        self._before = now
        if before is None or self._residual is None or self._call.is_last:
            self._sum = 0.0
            return None
        return self.again(part) if self.leaves_out(relative_change(now, before)) else None

    def leaves_out(self, distance: float) -> bool:
        """Whether all layers are left out at a call, neither the first nor the last, where d is `distance`."""
        self._sum += self.predicted(distance)
        if self._sum < self.threshold:
            return True
        self._sum = 0.0
        return False

    def predicted(self, distance: float) -> float:
        """How much the output changes, relatively, where d is `distance`."""
        values = self.fitted.values
        if limits := values.get("range"):
            distance = min(max(distance, limits[0]), limits[1])
        change = 0.0
        for coefficient in values["coefficients"]:
            change = change * distance + coefficient
        return max(change, 0.0)

    def _read(self, path: Path) -> Fit:
        fit = super()._read(path)
        if (limits := fit.values.get("range", [])) != sorted(limits):
            raise SavingError(f"saving teacache: the fit {path} is damaged: the range goes from {limits[0]} to {limits[1]}")
        return fit
