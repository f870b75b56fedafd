"""Public checkpoints ↔ ours.

They differ in three ways: SparseDiT keeps its layers in named lists instead of depth order, all store sin-cos position tables,
and some hold q, k and v apart. Tensors that do not change are passed on, not copied.
"""

import re
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from sparsevid.models.convert.conversion import (
    Change,
    Conversion,
    ConversionReport,
    check_weights,
    expected_shapes,
    with_own_storage,
)
from sparsevid.models.convert.infer import infer_spec
from sparsevid.models.convert.names import check_family, detect_family, position_tables, public_names
from sparsevid.sparsity.spec import ModelSpec

# The public trainers average the constant tables too, and that drifts by rounding: 1.6e-4 in float32 with a decay of 0.9999.
TABLE_TOLERANCE = 5e-4
_JOINT = re.compile(r"(?P<attn>.+\.attn)\.(?P<joint>qkv|kv)\.(?P<kind>weight|bias)")


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
        weights: the state dict under its official names, such as `checkpoint_file.read_checkpoint` returns.
        preset, num_heads, input_size, sparse_grid, num_classes: see `infer.infer_spec`.

    Returns:
        Weights that `DiffusionTransformer(spec).load_state_dict` accepts and safetensors can write, the spec, and a report.

    Raises:
        KeyError: no such preset.
        ValueError: the spec cannot be told, a position table is not the sin-cos table of its size, or keys are missing,
            unexpected or of another shape; the message names them.
    """
    spec = infer_spec(
        weights,
        preset=preset,
        num_heads=num_heads,
        input_size=input_size,
        sparse_grid=sparse_grid,
        num_classes=num_classes,
    )
    family = detect_family(weights, frames=spec.input_size[0])
    check_family(spec, family)
    tables = {name: table for name, table in position_tables(spec, family).items() if name in weights}
    shapes = expected_shapes(spec)
    names = public_names(spec, family, shapes)
    expected = {names[name]: shape for name, shape in shapes.items()}
    found = _join_projections({name: value for name, value in weights.items() if name not in tables}, expected)
    check_weights(found, expected)
    dropped = tuple(compare_table(name, weights[name], table) for name, table in tables.items())
    ours = {name: found[names[name]] for name in shapes}
    return Conversion(with_own_storage(ours), spec, ConversionReport(len(ours), dropped))


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
    return with_own_storage({**tables, **{names[name]: weights[name] for name in shapes}})


def _join_projections(weights: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Join separate q, k and v where one of the `expected` names has them in one matrix: `qkv`, or `kv` beside a `q`."""
    joined = dict(weights)
    for name in expected:
        match = _JOINT.fullmatch(name)
        if match is None or name in joined:
            continue
        parts = [f"{match['attn']}.{part}.{match['kind']}" for part in match["joint"]]
        if all(part in joined for part in parts) and len({joined[part].shape for part in parts}) == 1:
            joined[name] = torch.cat([joined.pop(part) for part in parts])
    return joined


def compare_table(name: str, found: Tensor, table: Tensor) -> Change:
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
