"""What public checkpoints look like: files, names of layers, position tables, and what they show of a model.

Public are Latte (Vchitect/Latte), DiT (facebookresearch/DiT) and SparseDiT (changsn/SparseDiT).

Dimensions: D hidden size, T frames, N = H·W tokens a frame, p patch size, C latent channels.
"""

import argparse
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sparsevid.models.convert.foreign import check_content, check_name
from sparsevid.models.embeddings import sincos, spatial_table
from sparsevid.models.presets import PRESETS, build_spec
from sparsevid.sparsity.layout import Layout, parse_layout
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.logging import get_logger

FAMILIES = ("latte", "dit", "sparsedit")
# Of a training checkpoint, the one that gives the better samples first; "module" is DeepSpeed's.
ENTRIES = ("ema", "model", "module", "state_dict")
SDTM_PARTS = ("token_merge_blocks", "semantic_blocks", "token_recover_blocks", "normal_blocks")  # SparseDiT's M, S, R, D
LABELS = "y_embedder.embedding_table.weight"

_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_LAYER = re.compile(r"(blocks|poolingformer_blocks|normal_blocks|dumbbell_blocks\.\d+\.[a-z_]+)\.(\d+)\.")
_JOINT = re.compile(r"(?P<attn>.+\.attn)\.(?P<joint>qkv|kv)\.(?P<kind>weight|bias)")
_REFUSED = re.compile(r"WeightsUnpickler error: (.+?)(?:\. Please|\n|$)")  # without the advice to allow what was refused

logger = get_logger(__name__)


def read_checkpoint(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """Read the state dict of a `.pt`, `.pth` or `.safetensors` file, on the CPU. Code in a pickle is never run.

    Args:
        path: the file. It holds a state dict, or a dictionary with one under `ema`, `model`, `module` or `state_dict`.
        entry: which of these; by default the first of them that the file has, which is logged.

    Returns:
        The tensors, without the prefixes that DistributedDataParallel and torch.compile give to names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a damaged one, one that holds more than data, one without such an entry, or one that
            only looks like a public checkpoint (see `foreign`).
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    check_name(path)
    if path.suffix == ".safetensors":
        try:
            loaded = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from error
    elif path.suffix in (".pt", ".pth"):
        loaded = read_pickle(path)
    else:
        raise ValueError(f"{path}: a checkpoint ends in .pt, .pth or .safetensors, not in {path.suffix!r}")
    check_content(path, loaded)
    try:
        return unwrap(loaded, entry)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def unwrap(checkpoint: Mapping, entry: str | None = None) -> dict[str, Tensor]:
    """The state dict inside a loaded checkpoint. Arguments, result and errors are those of `read_checkpoint`."""
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"a checkpoint is a dictionary, found {type(checkpoint).__name__}")
    wrapped = [name for name in ENTRIES if isinstance(checkpoint.get(name), Mapping)]
    if entry is not None and entry not in wrapped:
        raise ValueError(f"no state dict under {entry!r}; there is {', '.join(wrapped) or 'none under a name of its own'}")
    if wrapped:
        chosen = entry or wrapped[0]
        logger.info("taking the weights under %r; the checkpoint has %s", chosen, ", ".join(wrapped))
        checkpoint = checkpoint[chosen]
    others = sorted(str(name) for name, value in checkpoint.items() if not _is_dense_tensor(value))
    if others or not checkpoint:
        raise ValueError(
            f"a state dict holds dense tensors alone, or stands under {', '.join(ENTRIES)}; "
            f"found {abbreviate(others) or 'nothing'}"
        )
    state = {str(name): value for name, value in checkpoint.items()}
    while prefix := next((each for each in _WRAPPERS if all(name.startswith(each) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


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
    spec = {
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


def detect_family(weights: Collection[str], frames: int = 1) -> str:
    """`sparsedit` if layers stand in its named lists, else `latte` if there are temporal positions or frames, else `dit`."""
    if any(match[1] != "blocks" for match in map(_LAYER.match, weights) if match):
        return "sparsedit"
    return "latte" if "temp_embed" in weights or frames > 1 else "dit"


def check_family(spec: ModelSpec, family: str) -> None:
    """Raise ValueError unless the family's public code can express the spec."""
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r} of public checkpoints; the families are {', '.join(FAMILIES)}")
    kinds, frames = spec.parsed_layout.kinds, spec.input_size[0]
    if family == "latte" and (frames == 1 or len(kinds) % 2):
        raise ValueError(
            f"public Latte has pairs of a spatial and a temporal layer: more than one frame (found {frames}) and an even "
            f"number of layers (found {len(kinds)})"
        )
    if family != "latte" and frames > 1:
        raise ValueError(f"public {family} is a model of images: one frame, found {frames}")
    if family != "sparsedit" and kinds.strip("D"):
        raise ValueError(f"public {family} is dense: layout {len(kinds)}D, found {spec.layout!r}")
    if family == "sparsedit" and spec.is_sparse and (spec.transition_positions or spec.residual_upsampling):
        raise ValueError(
            "public SparseDiT has transition_positions and residual_upsampling off, "
            f"found {spec.transition_positions} and {spec.residual_upsampling}"
        )


def public_names(spec: ModelSpec, family: str, names: Collection[str]) -> dict[str, str]:
    """Official name of each of our parameters' `names`, for a model of this spec.

    Raises:
        ValueError: a layout that SparseDiT's lists of layers cannot hold.
    """
    if family != "sparsedit":
        return {name: name for name in names}
    modules = sparsedit_modules(spec.parsed_layout)

    def rename(name: str) -> str:
        match = _LAYER.match(name)
        return f"{modules[int(match[2])]}.{name[match.end() :]}" if match else name

    return {name: rename(name) for name in names}


def sparsedit_modules(layout: Layout) -> list[str]:
    """SparseDiT's name of each layer in depth order, such as `dumbbell_blocks.0.semantic_blocks.2`.

    All its modules have the same counts of M, S, R and D; the D layers that follow the last one's are `normal_blocks`. A
    single module has as many D as the layout's run after its R: `1M3S1R1D 2D` has one, `1M3S1R3D` three.

    Raises:
        ValueError: modules that differ, or dense layers before the first module.
    """
    kinds = layout.kinds
    matched = re.fullmatch(r"(P*)((?:M+S*RD*)*)(D*)", kinds)
    if matched is None:
        raise ValueError(f"layout {str(layout)!r}: SparseDiT has P layers, then modules, then D layers, in this order")
    pooling, normal = len(matched[1]), len(matched[3])
    modules = [[len(run) for run in counts] for counts in re.findall(r"(M+)(S*)(R)(D*)", matched[2])]
    if modules:
        dense = modules[0][3] if len(modules) > 1 else _first_dense_run(layout)
        normal = modules[-1][3] - dense
        modules[-1][3] = dense
        if normal < 0 or any(counts != modules[0] for counts in modules):
            raise ValueError(f"layout {str(layout)!r}: the modules of SparseDiT have the same numbers of M, S, R and D layers")
    names = [f"poolingformer_blocks.{i}" for i in range(pooling)]
    for i, counts in enumerate(modules):
        for part, count in zip(SDTM_PARTS, counts, strict=True):
            names += [f"dumbbell_blocks.{i}.{part}.{j}" for j in range(count)]
    return names + [f"normal_blocks.{i}" for i in range(normal)]


def position_tables(spec: ModelSpec, family: str) -> dict[str, Tensor]:
    """The tables that the family stores, float32: `pos_embed` (1, N, D), and for Latte `temp_embed` (1, T, D)."""
    grid = spec.dense_grid()
    tables = {"pos_embed": spatial_table(range(grid.h), range(grid.w), spec.hidden_size)}
    if family == "latte":
        tables["temp_embed"] = sincos(range(grid.t), spec.hidden_size)
    return {name: torch.from_numpy(table).float()[None] for name, table in tables.items()}


def join_projections(weights: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
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


def abbreviate(names: Collection[str], listed: int = 10) -> str:
    """The first names, sorted and separated by commas, and how many more there are."""
    more = len(names) - listed
    return ", ".join(sorted(names)[:listed]) + (f" and {more} more" if more > 0 else "")


def read_pickle(path: Path) -> object:
    """What `torch.save` wrote, as far as it is data: tensors and plain values, on the CPU.

    Raises:
        ValueError: it is damaged, or holds more.
    """
    # The public trainers put their parsed arguments, plain data, beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # the reader has no error of its own: damage shows as KeyError, IndexError and others
            refused = _REFUSED.search(str(error))
            reason = refused[1] if refused else str(error).partition("\n")[0]
            raise ValueError(f"{path} is damaged, or holds more than tensors and plain data: {reason}") from error


def _is_dense_tensor(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided


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
    for layers, _ in {match.groups() for match in map(_LAYER.match, weights) if match}:
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


def _first_dense_run(layout: Layout) -> int:
    """Number of D in the run that follows the only R of the layout, 0 if there is none."""
    runs = [run for group in layout.groups for run in group.runs]
    after = runs[[run.kind for run in runs].index("R") + 1 :]
    return after[0].count if after else 0


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
