"""What every conversion gives: weights, the spec that they belong to, and a report. All work on dictionaries of tensors."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.spec import ModelSpec


class Change(NamedTuple):
    """One tensor that a conversion dropped or initialised, and why or how."""

    name: str
    reason: str


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        carried: tensors of the result that come from the source: as they were, split or joined.
        dropped: what of the source the result does not hold.
        initialised: tensors of the result that the source did not have.
    """

    carried: int
    dropped: tuple[Change, ...] = ()
    initialised: tuple[Change, ...] = ()

    def then(self, later: "ConversionReport") -> "ConversionReport":
        """The report of this conversion followed by a later one."""
        return ConversionReport(later.carried, self.dropped + later.dropped, self.initialised + later.initialised)

    def rows(self) -> list[list[str]]:
        """Rows (tensor, what happened, why or how) of a table."""
        dropped = [[change.name, "dropped", change.reason] for change in self.dropped]
        return dropped + [[change.name, "initialised", change.reason] for change in self.initialised]


class Conversion(NamedTuple):
    """Weights under our names, the spec of the model that they belong to, and what was done to get them."""

    weights: dict[str, Tensor]
    spec: ModelSpec
    report: ConversionReport


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter of a model, by name, in the order of its state dict. Nothing is allocated."""
    with torch.device("meta"):
        model = DiffusionTransformer(spec)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes with the expected ones.

    Raises:
        ValueError: keys that are missing, unexpected, of another shape or not floating point; the first ten of each.
    """
    shared = expected.keys() & weights.keys()
    wrong = [name for name in shared if tuple(weights[name].shape) != tuple(expected[name])]
    problems = {
        "missing": expected.keys() - weights.keys(),
        "unexpected": weights.keys() - expected.keys(),
        "of another shape": [f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name])}" for name in wrong],
        "not floating point": [f"{name} {weights[name].dtype}" for name in shared if not weights[name].is_floating_point()],
    }
    found = [f"{len(names)} {problem}: {abbreviate(names)}" for problem, names in problems.items() if names]
    if found:
        raise ValueError(f"the weights do not fit the model; keys {'; '.join(found)}")


def with_own_storage(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy what is not contiguous, part of a larger storage, or in a storage that occurs twice: safetensors refuses these."""
    owned: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in weights.items():
        value = value.detach()
        storage = value.untyped_storage()
        if not value.is_contiguous() or storage.nbytes() != value.nbytes or storage.data_ptr() in storages:
            value = value.clone(memory_format=torch.contiguous_format)
        storages.add(value.untyped_storage().data_ptr())
        owned[name] = value
    return owned


def abbreviate(names: Collection[str], listed: int = 10) -> str:
    """The first names, sorted and separated by commas, and how many more there are."""
    more = len(names) - listed
    return ", ".join(sorted(names)[:listed]) + (f" and {more} more" if more > 0 else "")
