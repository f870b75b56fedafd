"""What `teacache` and `magcache` know of a model: measured at every call of whole samplings, and fitted.

Dimensions: B clips, T frames, N tokens a frame, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from sparsevid.diffusion import CONDITIONAL, NULL
from sparsevid.models.saving import Part, Place
from sparsevid.savings.base import Call, Policy, SavingError, stack_of
from sparsevid.savings.fits import Fit, FittedPolicy, plain
from sparsevid.savings.magcache import MagCache
from sparsevid.savings.options import CALIBRATED
from sparsevid.savings.teacache import DEGREE, TeaCache
from sparsevid.sparsity.spec import ModelSpec

AXES = {  # of a picture of a fit: what x and y of its points are
    "teacache": ("relative change of the modulated input", "relative change of the output"),
    "magcache": ("position in the sampling, 1 = last call", "size of what all layers add, to the call before"),
}


class Measured(NamedTuple):
    """One call against the call before, of the clips of one half.

    Attributes:
        half: `conditional` or `null`.
        number: of the call, from 1.
        values: (3, B): TeaCache's d, mean|m − m'| / mean|m'| of the modulated input; the same of the stack's output; and the
            norm of what the stack adds to a token over that at the call before, on average.
    """

    half: str
    number: int
    values: Tensor


Own = TypeVar("Own", bound="Probe")


@dataclass
class Probe(Policy):
    """Leaves nothing out, and measures every call. What it measured is kept over all samplings that it is in."""

    name: ClassVar[str] = "probe"
    points: ClassVar = ("stack",)

    measured: list[Measured] = field(init=False, default_factory=list, repr=False, compare=False)
    _call: Call = field(init=False, repr=False, compare=False)
    _before: tuple[int, Tensor, Tensor, Tensor] | None = field(init=False, default=None, repr=False, compare=False)

    def fresh(self: Own, half: str) -> Own:
        made = super().fresh(half)
        made.measured = self.measured
        return made

    def begin(self, call: Call) -> None:
        self._call = call

    def keep(self, place: Place, part: Part, output: Tensor) -> None:
        modulated, output = stack_of(part).modulated().float(), output.float()  # (B, T, N, D)
        added = (output - part.tokens().float()).norm(dim=-1)  # (B, T, N)
        if self._before is not None and self._before[0] + 1 == self._call.number:
            _, *before = self._before
            ratio = (added / before[2]).flatten(1).mean(dim=1)
            values = torch.stack([_change(modulated, before[0]), _change(output, before[1]), ratio])
            self.measured.append(Measured(self.half, self._call.number, values))
        self._before = (self._call.number, modulated, output, added)


def _change(now: Tensor, before: Tensor) -> Tensor:
    """mean|now − before| / mean|before| of each clip, (B,)."""
    return (now - before).flatten(1).abs().mean(dim=1) / before.flatten(1).abs().mean(dim=1)


def measurements(measured: Sequence[Measured], half: str) -> Tensor:
    """What was measured of one half, (3, clips, calls − 1) in float64 on the CPU; no clips where the half has not all calls.

    Raises:
        SavingError: values that are not finite.
    """
    own = [each for each in measured if each.half == half]
    last = max((each.number for each in measured), default=0)
    calls = [[each.values for each in own if each.number == number] for number in range(1, last + 1)]
    if not last or not all(calls):
        return torch.empty(3, 0, last, dtype=torch.float64)
    values = torch.stack([torch.cat(batches, dim=1) for batches in calls], dim=-1).double().cpu()
    if not values.isfinite().all():
        raise SavingError("what was measured is not finite: the model's layers change nothing, as before training, or overflow")
    return values


def fit_saving(
    saving: str, measured: Sequence[Measured], spec: ModelSpec, weights: str | None, sampling: dict[str, Any]
) -> Fit:
    """Fit what a saving needs to what was measured.

    TeaCache: its authors fit the relative change of the model's outputs to d by least squares, over all calls of all samples.
    The output here is that of all layers, before the head; each clip at each call is a point, all of the same weight. The
    points are those of the conditional half; the null half goes by the same polynomial.

    MagCache: the mean ratio of each call over the clips, for each half apart where both have all calls.

    Args:
        saving: `teacache` or `magcache`.
        measured: by a `Probe`.
        weights: SHA-256 of the model's weights file.
        sampling: what samples were looked at, as the fit's file is to say it.

    Raises:
        SavingError: too few points, or some that are not finite.
    """
    distances, changes, ratios = measurements(measured, CONDITIONAL)  # (clips, calls − 1) each
    if saving == TeaCache.name:
        x, y = distances.flatten().numpy(), changes.flatten().numpy()
        values = {"coefficients": fit_polynomial(x, y), "range": [float(x.min()), float(x.max())]}
        said = np.polyval(values["coefficients"], x)
    else:
        values = {CONDITIONAL: _mean_ratios(ratios)}
        null = measurements(measured, NULL)[2]
        if len(null):
            values[NULL] = _mean_ratios(null)
        x = np.tile(np.linspace(0.0, 1.0, ratios.shape[1] + 1)[1:], len(ratios))
        y, said = ratios.flatten().numpy(), np.tile(values[CONDITIONAL], len(ratios))
    points = [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
    return Fit(saving, values, _quality(y, said), points, plain(spec.to_dict()), weights, plain(sampling))


def fit_polynomial(x: np.ndarray, y: np.ndarray) -> list[float]:
    """The coefficients of the polynomial of degree 4 nearest to the points by least squares, highest power first.

    Raises:
        SavingError: fewer points of different x than coefficients.
    """
    if len(np.unique(x)) <= DEGREE:
        found = f"{len(np.unique(x))} different points for {DEGREE + 1} coefficients"
        raise SavingError(f"saving teacache: {found}; take more samples, or more steps")
    fitted = Polynomial.fit(x, y, DEGREE).convert().coef  # fitted on [−1, 1], where powers are less alike
    return [float(each) for each in np.pad(fitted, (0, DEGREE + 1 - len(fitted)))[::-1]]


def curve(fit: Fit, points: int = 200) -> list[tuple[float, float]]:
    """The fit of the conditional half as (x, y), for a picture: TeaCache's polynomial over its range, MagCache's ratios."""
    if fit.saving == TeaCache.name:
        low, high = fit.values["range"]
        x = np.linspace(low, high, points)
        y = np.polyval(fit.values["coefficients"], x)
    else:
        y = np.array(fit.values[CONDITIONAL])
        x = np.linspace(0.0, 1.0, len(y) + 1)[1:]
    return list(zip(x.tolist(), y.tolist(), strict=True))


def share_left_out(policy: FittedPolicy, measured: Sequence[Measured]) -> float:
    """The share of calls that the policy would leave out of what was measured, in which nothing was.

    Once calls are left out, the following ones differ from those that were measured: an estimate.

    Args:
        policy: with its fit.
    """
    distances = measurements(measured, CONDITIONAL)[0]
    count = distances.shape[1] + 1
    left_out = 0
    for clip in distances.tolist():
        own = policy.fresh(CONDITIONAL)
        if isinstance(own, MagCache):
            left_out += sum(own.leaves_out(number, count) for number in range(count))
        elif isinstance(own, TeaCache):
            left_out += sum(own.leaves_out(distance) for distance in clip[:-1])
    return left_out / max(len(distances) * count, 1)


def thresholds_left_out(fit: Fit, thresholds: Sequence[float], measured: Sequence[Measured]) -> list[float]:
    """`share_left_out` at each threshold, the other options as they are by default."""
    policy = CALIBRATED[fit.saving]().with_fit(fit)
    return [share_left_out(replace(policy, threshold=threshold).with_fit(fit), measured) for threshold in thresholds]


def _mean_ratios(ratios: Tensor) -> list[float]:
    if not ratios.numel():
        raise SavingError("saving magcache: ratios of neighbouring calls need at least two calls: take more steps")
    if (ratios <= 0).any():
        raise SavingError("saving magcache: at some calls the model's layers add nothing")
    return ratios.mean(dim=0).tolist()


def _quality(points: np.ndarray, said: np.ndarray) -> dict[str, float]:
    """How good a fit is; where all points are alike, it explains nothing, and nothing correlates."""
    spread, spread_said = np.var(points), np.std(said)
    r2 = 1.0 - np.mean((points - said) ** 2) / spread if spread > 0 else 0.0
    correlation = np.corrcoef(points, said)[0, 1] if spread > 0 and spread_said > 0 else 0.0
    return {"points": len(points), "r2": float(r2), "correlation": float(correlation)}
