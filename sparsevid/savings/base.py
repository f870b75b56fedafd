"""What every policy is: options, what it remembers of one sampling, and what it answers at each part of a call.

Dimensions: B clips.
"""

from collections.abc import Collection
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypedDict, TypeVar

from sparsevid.diffusion import CONDITIONAL
from sparsevid.models.saving import Part, Place, Stack
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.schedule import LAST_TIMESTEP
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.errors import ExpectedError

if TYPE_CHECKING:
    from torch import Tensor


Own = TypeVar("Own", bound="Policy")


class SavingError(ExpectedError, ValueError):
    """A saving that is not there, does not fit the model or another saving, or lacks what it needs; the message says which."""


class TextTold(TypedDict, total=False):
    """What a call's prompts cost, as `sparsity.cost` takes it: how long they are, and whether they come unprepared."""

    text_tokens: int
    naive_text: bool


class Call(NamedTuple):
    """What is known of one call of a sampling.

    Attributes:
        number: of all calls of the sampling, from 0.
        u: diffusion time, 1 = noise.
        count: calls of the whole sampling; None where its times are not known.
        spec: of the model.
        dense: grid of the dense tokens.
        sparse: grid of the sparse tokens of this half; None for a dense model.
        seed: of what a policy draws.
        text: of a model of text.
    """

    number: int
    u: float
    count: int | None  # type: ignore[assignment]  # hides `tuple.count`, which nobody asks of a call
    spec: ModelSpec
    dense: Grid
    sparse: Grid | None
    seed: int = 0
    text: TextTold = TextTold()

    @property
    def t(self) -> float:
        """The time as a timestep, 0 … 999; rounded, since one that was read from a float32 is a little beside it."""
        return round(LAST_TIMESTEP * self.u, 3)

    @property
    def whole(self) -> int:
        """`count`, for a policy that has to know it: without times `saved` takes none such."""
        if self.count is None:
            raise SavingError("the times of the sampling are not known, and how many calls it has")
        return self.count

    @property
    def is_last(self) -> bool:
        """Whether no call of the sampling follows; False where its times are not known."""
        return self.number + 1 == self.count


@dataclass
class Policy:
    """One way to leave parts of calls out. Fields that can be given are its options; the others are its state.

    An instance decides for the clips of one half of guidance, or of all where there is no guidance, during one sampling of one
    batch; `fresh` makes it from the one that holds the options. At each part of its `points`, `reuse` gives what stands for the
    part, or None to have it computed, and `keep` is told what was computed. The base class leaves nothing out.
    """

    name: ClassVar[str]
    points: ClassVar[Collection[str]] = ()  # of `models.saving.Place`
    differences: ClassVar[bool] = False  # whether it needs sparse tokens in float32
    needs_times: ClassVar[bool] = False  # whether it must know which call is the last
    needs_sparse: ClassVar[bool] = False  # whether only a model with sparse layers has what it leaves out
    family: ClassVar[str] = "cache"  # of savings of one family a sampling takes one
    decides_null: ClassVar[bool] = False  # whether it has a say about the half without a class; of those a sampling takes one

    kept: dict[Place, Any] = field(init=False, default_factory=dict, repr=False, compare=False)
    half: str = field(init=False, default=CONDITIONAL, repr=False, compare=False)

    @property
    def changes_nothing(self) -> bool:
        """Whether these options leave nothing out, of any model."""
        return False

    def __str__(self) -> str:
        """The text that `parse_saving` reads, with every option that has a value."""
        values = {each.name: getattr(self, each.name) for each in options_of(type(self))}
        options = ",".join(f"{name}={_shown(value)}" for name, value in values.items() if value is not None)
        return f"{self.name}:{options}" if options else self.name

    def record(self) -> str:
        """What samples are told apart by: the options, and of what is fitted to a model its content in place of its path."""
        return str(self)

    def with_fits(self, folder: Path | None) -> "Policy":
        """The same with what was fitted to its model, if that is in the model's folder of fits; most policies need no fit.

        Args:
            folder: `savings` in the model's; None or one that is not there: no fit, which `check` will say.
        """
        return self

    def fresh(self: Own, half: str) -> Own:
        """The same options, nothing remembered yet."""
        made = replace(self)
        made.half = half
        return made

    def check(self, spec: ModelSpec) -> None:
        """Raise `SavingError` if the model, or what was given, has not what the policy needs."""
        if self.needs_sparse and not spec.is_sparse:
            raise SavingError(
                f"saving {self.name}: the layout {spec.layout!r} has no sparse layers whose output could be reused"
            )

    def begin(self, call: Call) -> None:
        """Told before each call that computes this half."""

    def forget(self, kinds: str) -> None:
        """Told where the sparse grid is another than at the last call: what belongs to layers of these kinds fits no more."""
        self.kept = {place: value for place, value in self.kept.items() if place.kind not in kinds}

    def reuse(self, place: Place, part: Part) -> "Tensor | None":
        """What stands for the part's output, (B, ...), or None: it is computed."""
        return None

    def keep(self, place: Place, part: Part, output: "Tensor") -> None:
        """Told what was computed."""

    def changed(self, place: Place, part: Part) -> Part:
        """The part in the form in which it is computed."""
        return part

    def macs(self, place: Place, call: Call, usual: int) -> int:
        """Multiply-adds of the part of one clip in that form; `usual` are those of the part as it is."""
        return usual

    def null_grid(self, grid: Grid) -> Grid:
        """The sparse grid of the half without a class, where the other has `grid`."""
        return grid

    def computes_null(self, call: Call) -> bool:
        """Whether the half without a class is computed at this call."""
        return True

    def null_output(self, call: Call, conditional: "Tensor", null: "Tensor | None") -> "Tensor | None":
        """The model's output of the half without a class: what was computed, or, if None, what stands for it; None if this
        policy has nothing for it, which then was computed.
        """
        return null


class Every:
    """Counts calls: at which of them everything is computed.

    Args:
        number: calls from one computation to the next; 1: at each.
    """

    def __init__(self, number: int) -> None:
        self.number, self._since = number, 0

    def computes(self, anew: bool = False) -> bool:
        """Whether the next call computes; it does if there is reason to begin `anew`."""
        due = anew or self._since % self.number == 0
        self._since = 1 if due else self._since + 1
        return due


@dataclass
class Periodic(Policy):
    """A policy that computes all that it is asked about at every `every`-th call; 1: at each, which changes nothing."""

    every: int = 2
    _calls: Every = field(init=False, repr=False, compare=False)
    _computes: bool = field(init=False, default=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        at_least(self.every, 1, "every", self)
        self._calls = Every(self.every)

    @property
    def changes_nothing(self) -> bool:
        return self.every == 1


def stack_of(part: Part) -> Stack:
    """The part that policies of the point `stack` are asked about."""
    assert isinstance(part, Stack)
    return part


def options_of(policy: type[Policy]) -> list[Field]:
    """The dataclass fields that are options."""
    return [each for each in fields(policy) if each.init]


def at_least(value: float, least: float, option: str, policy: Policy) -> None:
    """Raise `SavingError` if an option is below what it can be."""
    if not value >= least:
        raise SavingError(f"saving {policy.name}: {option} = {value}; it is at least {least}")


def relative_change(now: "Tensor", before: "Tensor") -> float:
    """mean|now − before| / mean|before| over all clips; the host waits for it."""
    now, before = now.float(), before.float()
    return ((now - before).abs().mean() / before.abs().mean()).item()


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
