"""The spec of a public checkpoint, from the names and shapes of its tensors.

Dimensions: D hidden size, T frames, N = H·W tokens a frame, p patch size, C latent channels.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from sparsevid.models.convert.conversion import abbreviate
from sparsevid.models.convert.names import LABELS, LAYER, SDTM_PARTS, detect_family
from sparsevid.models.presets import PRESETS, build_spec
from sparsevid.sparsity.layout import Layout, parse_layout
from sparsevid.sparsity.spec import ModelSpec


def infer_spec(
    weights: Mapping[str, Tensor],
    *,
    preset: str | None = None,
    num_heads: int | None = None,
    input_size: Sequence[int] | None = None,
    sparse_grid: Sequence[int] | None = None,
    num_classes: int | None = None,
) -> ModelSpec:
    """The spec of a public state dict. Only names and shapes are read.

    Args:
        weights: the state dict under its official names.
        preset: the model's name; gives the number of heads and, at the preset's input size, the sparse grid. What the state
            dict shows of layers, hidden size, patch and MLP must agree with it; channels, classes and input size may differ.
        num_heads: attention heads, which no tensor shows; needed without a preset.
        input_size: (frames, height, width) of the latents; needed if they are not square or the tables are missing.
        sparse_grid: (1, h, w); needed for SparseDiT (its `semantic_size`) if the preset does not give it.
        num_classes: that the model was trained on. The label table has as many rows, or, of a model trained for guidance, one
            more, which means "no class". Needed if there is a table, and the preset has other classes.

    Raises:
        KeyError: no such preset.
        ValueError: something is missing or contradicts the arguments.
    """
    family = detect_family(weights)
    embed, head = _need(weights, "x_embedder.proj.weight", 4), _need(weights, "final_layer.linear.weight", 2)
    hidden, channels, patch = embed.shape[:3]
    fc1 = min((name for name in weights if name.endswith(".mlp.fc1.weight")), default="blocks.0.mlp.fc1.weight")
    layout = _infer_layout(weights)
    spec: dict[str, Any] = {
        "layout": str(layout),
        "hidden_size": hidden,
        "num_heads": num_heads,
        "input_size": tuple(input_size) if input_size is not None else _infer_size(weights, patch),
        "in_channels": channels,
        "patch_size": patch,
        "mlp_ratio": _mlp_ratio(hidden, _need(weights, fc1, 2).shape[0]),
        "learn_sigma": _learns_sigma(head.shape[0], patch**2 * channels),
        "sparse_grid": tuple(sparse_grid) if sparse_grid is not None else None,
        "transition_positions": family != "sparsedit",  # its code does not add positions again
        "allow_no_dense": re.search(r"R(?!D)", layout.kinds) is not None,
    }
    if preset is not None:
        spec |= _complete(spec, preset, build_spec(preset))
    if spec["num_heads"] is None:
        fitting = _fitting_presets(spec)
        raise ValueError(f"no tensor shows the number of attention heads: give num_heads or a preset (of this size: {fitting})")
    rows = _need(weights, LABELS, 2).shape[0] if LABELS in weights else 0
    return ModelSpec(**spec, **_classes(rows, num_classes, PRESETS[preset].num_classes if preset is not None else 0))


def _need(weights: Mapping[str, Tensor], name: str, dimensions: int) -> Tensor:
    """A tensor that every public checkpoint has."""
    if name not in weights:
        raise ValueError(f"no public Latte, DiT or SparseDiT checkpoint: it lacks {name}, and has {abbreviate(weights)}")
    if weights[name].ndim != dimensions or 0 in weights[name].shape:
        raise ValueError(f"{name} has {dimensions} dimensions, found shape {tuple(weights[name].shape)}")
    return weights[name]


def _classes(rows: int, given: int | None, usual: int) -> dict[str, Any]:
    """Number of classes and whether there is "no class", for a label table of so many rows.

    Args:
        rows: of the table; 0 if there is none.
        given: classes, if that is known.
        usual: classes of a preset; they need not be the checkpoint's.
    """
    if given is None:
        given = usual if usual and rows in (usual, usual + 1) else None if rows else 0
    if given is None:
        raise ValueError(
            f"{LABELS} has {rows} rows, and no tensor shows whether the last one is a class or means 'no class': give "
            f"num_classes (--classes of `sparsevid convert`), {rows - 1} if the model was trained for guidance, else {rows}"
        )
    if rows not in ((given, given + 1) if given else (0,)):
        raise ValueError(
            f"{LABELS} has {rows or 'no'} rows; a model of {given} classes has {given}, or one more for 'no class'"
        )
    return {"num_classes": given, "no_class": rows != given or not rows}


def _infer_layout(weights: Collection[str]) -> Layout:
    """The layout that the names of the layers show."""
    # Counting the names, rather than reading the largest index, turns a gap into missing keys and bounds the depth.
    counts: dict[str, int] = {}
    for layers, _ in {match.groups() for match in map(LAYER.match, weights) if match}:
        counts[layers] = counts.get(layers, 0) + 1
    indices = {name.split(".")[1] for name in counts if name.startswith("dumbbell_blocks.")}
    modules = {tuple(counts.get(f"dumbbell_blocks.{i}.{part}", 0) for part in SDTM_PARTS) for i in indices}
    if len(modules) > 1:
        raise ValueError(f"the dumbbell_blocks have different numbers of {', '.join(SDTM_PARTS)}: {sorted(modules)}")
    parts = [_run(counts.get("poolingformer_blocks", 0), "P")]
    for body in modules:
        parts.append(f"{len(indices)}({''.join(map(_run, body, 'MSRD'))})")
    parts.append(_run(counts.get("blocks", 0) + counts.get("normal_blocks", 0), "D"))
    text = " ".join(filter(None, parts))
    if not text:
        raise ValueError(f"no layers: no names such as blocks.0.attn.proj.weight among {abbreviate(weights)}")
    return parse_layout(text, allow_no_dense=True)


def _run(count: int, kind: str) -> str:
    return f"{count}{kind}" if count else ""


def _infer_size(weights: Mapping[str, Tensor], patch: int) -> tuple[int, int, int]:
    """(frames, height, width) of square latents, from the position tables."""
    if "pos_embed" not in weights:
        raise ValueError("the checkpoint has no pos_embed, which shows the size of the latents: give input_size=(T, H, W)")
    tokens = _need(weights, "pos_embed", 3).shape[1]
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise ValueError(f"pos_embed has {tokens} tokens, which is no square: give input_size=(T, H, W)")
    frames = _need(weights, "temp_embed", 3).shape[1] if "temp_embed" in weights else 1
    return frames, side * patch, side * patch


def _mlp_ratio(hidden: int, mlp: int) -> float:
    """The ratio for which int(hidden · ratio) is `mlp`: the quotient may round to just below it."""
    ratio = mlp / hidden
    return ratio if int(hidden * ratio) == mlp else math.nextafter(ratio, math.inf)


def _learns_sigma(rows: int, values: int) -> bool:
    """Whether a head of so many rows gives the variance beside the p²·C `values` of a patch."""
    if rows not in (values, 2 * values):
        raise ValueError(f"final_layer.linear.weight has {rows} rows; accepted are p²·C = {values}, or twice that")
    return rows == 2 * values


def _complete(spec: Mapping[str, Any], name: str, preset: ModelSpec) -> dict[str, Any]:
    """What a preset adds to the fields that a checkpoint shows, or ValueError if it contradicts them."""
    compared = {field: (getattr(preset, field), spec[field]) for field in ("hidden_size", "patch_size", "mlp_ratio")}
    compared["layers"] = (preset.parsed_layout.kinds, parse_layout(spec["layout"], allow_no_dense=True).kinds)
    compared["is_video"] = (preset.is_video, spec["input_size"][0] > 1)
    heads = spec["num_heads"] if spec["num_heads"] is not None else preset.num_heads
    compared["num_heads"] = (preset.num_heads, heads)
    differing = [f"{field} is {a!r} there and {b!r} here" for field, (a, b) in compared.items() if a != b]
    if differing:
        raise ValueError(
            f"the preset {name} does not fit the checkpoint: {'; '.join(differing)}. Presets of this size: "
            f"{_fitting_presets(spec)}. For a sparse model from a dense checkpoint, convert the dense one first"
        )
    grid = preset.sparse_grid if preset.input_size == spec["input_size"] else None
    return {"num_heads": heads, "sparse_grid": spec["sparse_grid"] or grid}


def _fitting_presets(spec: Mapping[str, Any]) -> str:
    layers = len(parse_layout(spec["layout"], allow_no_dense=True))
    size = (spec["hidden_size"], spec["patch_size"], layers)
    return (
        ", ".join(name for name, each in PRESETS.items() if (each.hidden_size, each.patch_size, each.depth) == size) or "none"
    )
