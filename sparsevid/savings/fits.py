"""What a saving has fitted to one model, as a JSON file; and what the policies that need such a file have in common.

`sparsevid calibrate` writes it; it is read strictly, for what it says decides which samples come out.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from sparsevid.models.saving import Part, Place
from sparsevid.savings.base import Call, Policy, SavingError, at_least
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.atomic import write_json
from sparsevid.system.checksums import file_sha256, json_sha256
from sparsevid.system.home import expand_home

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
WEIGHTS_FILE = "model.safetensors"  # beside the folder of fits
_KINDS = {dict: "an object", list: "a list"}


@dataclass(frozen=True)
class Fit:
    """What was fitted to one model.

    Attributes:
        saving: name of the policy.
        values: what the policy decides by, lists of numbers by name.
        quality: how good the fit is: `r2` (the share of the points' variance that it explains), the `correlation` of points and
            fit, and the number of `points`.
        points: (x, y) of each clip at each call that it was fitted to.
        spec: of the model, as `ModelSpec.to_dict` gives it.
        weights: SHA-256 of the model's weights file; None where there was none.
        sampling: the samples that were looked at: their number, sampler, steps, guidance, token schedule, …
    """

    saving: str
    values: dict[str, list[float]]
    quality: dict[str, float]
    points: list[tuple[float, float]]
    spec: dict[str, Any]
    weights: str | None
    sampling: dict[str, Any]

    @property
    def digest(self) -> str:
        """What tells apart fits that decide otherwise: the beginning of the SHA-256 of saving and values."""
        return json_sha256([self.saving, self.values], sort_keys=True)[:16]

    def save(self, path: Path) -> None:
        """Write it as JSON; its folder is made."""
        write_json(path, {"version": VERSION, **asdict(self)})


def fits_folder(weights_file: Path) -> Path:
    """Where what was fitted to a model lies: beside its weights."""
    return weights_file.parent / "savings"


def fit_file(folder: Path, saving: str) -> Path:
    """Where the fit of a saving lies in a model's folder of fits."""
    return folder / f"{saving}.json"


def command(saving: str) -> str:
    """How a fit is made, for messages."""
    return f"`sparsevid calibrate MODEL --saving {saving}`"


def read_fit(path: Path, saving: str) -> Fit:
    """Read what `Fit.save` wrote.

    Raises:
        SavingError: nothing there, a damaged file, one of another version, or a fit of another saving.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SavingError(f"saving {saving}: there is no fit {path}; {command(saving)} makes one") from error
    except (OSError, ValueError, RecursionError) as error:
        raise SavingError(f"saving {saving}: the fit {path} cannot be read: {error}") from error
    said = f"saving {saving}: the fit {path}"
    if not isinstance(found, dict) or "version" not in found:
        raise SavingError(f"{said} is no file that `sparsevid calibrate` wrote")
    if found["version"] != VERSION:
        raise SavingError(f"{said} is of version {found['version']!r}, not {VERSION}; {command(saving)} makes one anew")
    names = {each.name for each in fields(Fit)}
    if found.keys() - {"version"} != names:
        odd = sorted((found.keys() - {"version"}) ^ names)
        raise SavingError(f"{said} is damaged: it lacks, or has too much, {', '.join(odd)}")
    if found["saving"] != saving:
        raise SavingError(f"{said} is one of {found['saving']!r}")
    return _checked(said, {name: found[name] for name in names})


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Values as JSON gives them back, with lists for tuples."""
    return json.loads(json.dumps(values))


def _checked(said: str, found: Mapping[str, Any]) -> Fit:
    """The fit, if everything in it is of its kind."""
    kinds = {"values": dict, "quality": dict, "points": list, "spec": dict, "sampling": dict}
    for name, kind in kinds.items():
        if not isinstance(found[name], kind):
            raise SavingError(f"{said} is damaged: {name} = {found[name]!r} is not {_KINDS[kind]}")
    if not isinstance(found["weights"], str | None):
        raise SavingError(f"{said} is damaged: weights = {found['weights']!r} is not text")
    lists = {f"values.{name}": numbers for name, numbers in found["values"].items()}
    lists |= {f"points[{index}]": point for index, point in enumerate(found["points"])}
    lists["quality"] = list(found["quality"].values())
    for name, numbers in lists.items():
        if not isinstance(numbers, list) or not all(_is_number(each) for each in numbers):
            raise SavingError(f"{said} is damaged: {name} = {numbers!r} is not a list of finite numbers")
    pairs = [tuple(map(float, point)) for point in found["points"]]
    if any(len(point) != 2 for point in pairs):
        raise SavingError(f"{said} is damaged: points are pairs")
    values = {name: [float(each) for each in numbers] for name, numbers in found["values"].items()}
    return Fit(**{**found, "values": values, "points": pairs})


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # also of whole numbers that no float holds


Own = TypeVar("Own", bound="FittedPolicy")


@dataclass
class FittedPolicy(Policy):
    """A policy that leaves out all layers where `threshold` is not reached, by what was fitted to its model.

    What all layers added when they were last computed, the stack's residual, is added to its input then.

    Attributes:
        threshold: 0: all is computed, whatever the fit, and there need not be one.
        fit: path of the fit; None: that in the model's folder of fits, see `with_fits`.
    """

    points: ClassVar = ("stack",)
    needs_times: ClassVar[bool] = True
    lengths: ClassVar[Mapping[str, Sequence[int]]] = {}  # of the lists in a fit's values; (): any but 0

    threshold: float = 0.1
    fit: str | None = None
    _fitted: Fit | None = field(init=False, default=None, repr=False, compare=False)
    _call: Call = field(init=False, repr=False, compare=False)
    _residual: "Tensor | None" = field(init=False, default=None, repr=False, compare=False)  # of the stack, when last computed

    def __post_init__(self) -> None:
        at_least(self.threshold, 0, "threshold", self)

    @property
    def changes_nothing(self) -> bool:
        return self.threshold == 0

    @property
    def fitted(self) -> Fit:
        """What was fitted to the model.

        Raises:
            SavingError: no fit, or not one of this saving.
        """
        if self._fitted is None:
            if self.fit is None:
                made = f"{command(self.name)} does it, or fit=PATH names a file that it wrote"
                raise SavingError(f"saving {self.name}: nothing is fitted to this model yet; {made}")
            self._fitted = self._read(Path(expand_home(self.fit)))
        return self._fitted

    def with_fits(self, folder: Path | None) -> "FittedPolicy":
        made = self.fresh(self.half)
        needed = made._fitted is None and self.fit is None and not self.changes_nothing
        if needed and folder is not None and (path := fit_file(folder, self.name)).is_file():
            made._fitted = self._read(path)
            weights = folder.parent / WEIGHTS_FILE
            if made._fitted.weights is not None and weights.is_file() and made._fitted.weights != file_sha256(weights):
                raise SavingError(
                    f"saving {self.name}: the fit {path} is of other weights than {weights}; {command(self.name)} makes one of "
                    f"these, fit={path} takes it nevertheless"
                )
        return made

    def with_fit(self: Own, fit: Fit) -> Own:
        """The same with this fit."""
        made = self.fresh(self.half)
        made._fitted = fit
        return made

    def fresh(self: Own, half: str) -> Own:
        made = super().fresh(half)
        made._fitted = self._fitted
        return made

    def begin(self, call: Call) -> None:
        self._call = call

    def keep(self, place: Place, part: Part, output: "Tensor") -> None:
        self._residual = output.float() - part.tokens().float()

    def again(self, part: Part) -> "Tensor | None":
        """The stack's output by what all layers added when they were last computed; None: they never were."""
        if self._residual is None:
            return None
        x = part.tokens()
        return (x.float() + self._residual).to(x.dtype)

    def record(self) -> str:
        if self.changes_nothing:
            return str(replace(self, fit=None))
        return str(replace(self, fit=f"sha256-{self.fitted.digest}"))

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if self.changes_nothing:
            return
        own = plain(spec.to_dict())
        if (other := self.fitted.spec) != own:
            odd = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
            shown = ", ".join(f"{name} {other.get(name)!r} there, {own.get(name)!r} here" for name in odd)
            raise SavingError(f"saving {self.name}: its fit is of another model ({shown}); {command(self.name)} makes one")

    def _read(self, path: Path) -> Fit:
        """The fit in a file, with the lists of numbers that this policy decides by."""
        fit = read_fit(path, self.name)
        for name, accepted in self.lengths.items():
            length = len(fit.values.get(name, ()))
            if length not in accepted and (accepted or not length):
                wanted = " or ".join(map(str, accepted)) or "some"
                raise SavingError(f"saving {self.name}: the fit {path} is damaged: {name} has {length} numbers, not {wanted}")
        return fit
