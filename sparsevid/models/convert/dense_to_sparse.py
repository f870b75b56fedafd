"""Public checkpoints ↔ ours, and a sparse model from a dense one.

Public checkpoints differ from ours in three ways: SparseDiT keeps its layers in named lists instead of depth order, all store
sin-cos position tables, and some hold q, k and v apart. All functions work on dictionaries of tensors; tensors that do not
change are passed on, not copied.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sparsevid.models.convert.public import (
    abbreviate,
    check_family,
    detect_family,
    infer_spec,
    join_projections,
    position_tables,
    public_names,
)
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.spec import ModelSpec

# The public trainers average the constant tables too, and that drifts by rounding: 1.6e-4 in float32 with a decay of 0.9999.
TABLE_TOLERANCE = 5e-4

_PART = re.compile(r"(?P<attn>.+\.attn)\.(?P<part>q|kv|v)\.(?P<kind>weight|bias)")


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


def from_public(
    weights: Mapping[str, Tensor],
    *,
    preset: str | None = None,
    num_heads: int | None = None,
    input_size: Sequence[int] | None = None,
    sparse_grid: Sequence[int] | None = None,
    num_classes: int | None = None,
) -> Conversion:
    """Convert a public Latte, DiT or SparseDiT state dict to ours.

    The position tables are dropped after a comparison with ours; separate q, k and v are joined.

    Args:
        weights: the state dict under its official names, such as `public.read_checkpoint` returns.
        preset, num_heads, input_size, sparse_grid, num_classes: see `public.infer_spec`.

    Returns:
        Weights that `DiffusionTransformer(spec).load_state_dict` accepts and safetensors can write, the spec, and a report.

    Raises:
        KeyError: no such preset.
        ValueError: the spec cannot be told, a position table is not the sin-cos table of its size, or keys are missing,
            unexpected or of another shape; the message names them.
    """
    options = {"num_heads": num_heads, "input_size": input_size, "sparse_grid": sparse_grid, "num_classes": num_classes}
    spec = infer_spec(weights, preset=preset, **options)
    family = detect_family(weights, frames=spec.input_size[0])
    check_family(spec, family)
    tables = {name: table for name, table in position_tables(spec, family).items() if name in weights}
    shapes = expected_shapes(spec)
    names = public_names(spec, family, shapes)
    expected = {names[name]: shape for name, shape in shapes.items()}
    found = join_projections({name: value for name, value in weights.items() if name not in tables}, expected)
    check_weights(found, expected)
    dropped = tuple(_compare_table(name, weights[name], table) for name, table in tables.items())
    ours = {name: found[names[name]] for name in shapes}
    return Conversion(_with_own_storage(ours), spec, ConversionReport(len(ours), dropped))


def to_public(weights: Mapping[str, Tensor], spec: ModelSpec, family: str) -> dict[str, Tensor]:
    """Convert our weights to a public state dict: official names and position tables. The inverse of `from_public`.

    One SparseDiT does not return under the names it had, though the model is the same: a single module without dense layers
    of its own, followed by `normal_blocks`. These then count as the module's, because the layout cannot tell.

    Args:
        weights: all weights of a `DiffusionTransformer(spec)`.
        spec: its spec.
        family: `latte`, `dit` or `sparsedit`.

    Returns:
        Tensors that `torch.save` and safetensors can write; the tables have the data type of the weights.

    Raises:
        ValueError: no such family, a spec that the family's code cannot express, or keys that do not fit the spec.
    """
    check_family(spec, family)
    shapes = expected_shapes(spec)
    check_weights(weights, shapes)
    dtype = weights["x_embedder.proj.weight"].dtype
    tables = {name: table.to(dtype) for name, table in position_tables(spec, family).items()}
    names = public_names(spec, family, shapes)
    return _with_own_storage({**tables, **{names[name]: weights[name] for name in shapes}})


def dense_to_sparse(
    weights: Mapping[str, Tensor], dense_spec: ModelSpec, sparse_spec: ModelSpec
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Initialise a sparse model from a dense one, layer i from layer i (as SparseDiT does).

    P takes V and proj of the dense attention and drops Q and K; M and R take Q as q, K and V as kv. R's merge starts with
    W1 = 0 (1 with residual upsampling), W2 = 1. All else has the same name in both models.

    Args:
        weights: all weights of the dense model, under our names.
        dense_spec: its spec; all its layers are D.
        sparse_spec: the spec to convert to. It may differ from the dense one in layout and what belongs to it, and in the input
            size, as long as both are for images or both for videos.

    Returns:
        The weights of the sparse model, which safetensors can write, and a report.

    Raises:
        ValueError: the first model is not dense, the two differ in more than the above, or keys do not fit the dense spec.
    """
    _check_convertible(dense_spec, sparse_spec)
    check_weights(weights, expected_shapes(dense_spec))
    sparse: dict[str, Tensor] = {}
    dropped: list[Change] = []
    initialised: list[Change] = []
    for name, shape in expected_shapes(sparse_spec).items():
        if name in weights:
            sparse[name] = weights[name]
        elif part := _PART.fullmatch(name):
            joint = f"{part['attn']}.qkv.{part['kind']}"
            q, k, v = weights[joint].chunk(3)
            sparse[name] = {"q": q, "kv": torch.cat([k, v]), "v": v}[part["part"]]
            if part["part"] == "v":
                dropped.append(Change(f"{joint} (q, k)", "a pooling layer has no queries and keys"))
        else:
            identity = name.endswith("2.weight") or (name.endswith("1.weight") and sparse_spec.residual_upsampling)
            sparse[name] = (torch.eye(shape[0]) if identity else torch.zeros(shape)).to(weights["x_embedder.proj.weight"])
            initialised.append(Change(name, "identity" if identity else "zero"))
    return _with_own_storage(sparse), ConversionReport(len(sparse) - len(initialised), tuple(dropped), tuple(initialised))


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


def _compare_table(name: str, found: Tensor, table: Tensor) -> Change:
    """Accept a position table for dropping, or raise ValueError."""
    if found.shape != table.shape or not found.is_floating_point():
        raise ValueError(
            f"{name} has shape {tuple(found.shape)} and {found.dtype}; accepted are {tuple(table.shape)} and floats"
        )
    difference = (found.cpu().float() - table).abs().max().item()
    tolerance = TABLE_TOLERANCE + torch.finfo(found.dtype).eps
    if not difference <= tolerance:  # also where the difference is not a number
        raise ValueError(
            f"{name} is not the sin-cos table of its size: they differ by up to {difference:.2g}, accepted is {tolerance:.2g}. "
            "The model computes its positions, so other tables cannot be kept"
        )
    return Change(name, f"the sin-cos table is computed; largest difference {difference:.2g}")


def _check_convertible(dense: ModelSpec, sparse: ModelSpec) -> None:
    if dense.parsed_layout.kinds.strip("D"):
        raise ValueError(f"a sparse model is made from a dense one, layout {dense.depth}D; found {dense.layout!r}")
    fields = (
        "depth",
        "hidden_size",
        "num_heads",
        "in_channels",
        "patch_size",
        "mlp_ratio",
        "num_classes",
        "no_class",
        "learn_sigma",
    )
    compared = {field: (getattr(dense, field), getattr(sparse, field)) for field in (*fields, "is_video")}
    differing = [f"{field} is {a!r} in the dense and {b!r} in the sparse one" for field, (a, b) in compared.items() if a != b]
    if differing:
        raise ValueError(f"the two models differ in more than their layers: {'; '.join(differing)}")


def _with_own_storage(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
