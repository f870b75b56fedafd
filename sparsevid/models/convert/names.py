"""How public checkpoints name layers, and what they hold beside our parameters.

Public are Latte (Vchitect/Latte), DiT (facebookresearch/DiT) and SparseDiT (changsn/SparseDiT).

Dimensions: D hidden size, T frames, N = H·W tokens a frame.
"""

import re
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from sparsevid.models.convert import FAMILIES
from sparsevid.models.embeddings import sincos, spatial_table
from sparsevid.sparsity.layout import Layout
from sparsevid.sparsity.spec import ADDED, ModelSpec

SDTM_PARTS = ("token_merge_blocks", "semantic_blocks", "token_recover_blocks", "normal_blocks")  # SparseDiT's M, S, R, D
LABELS = "y_embedder.embedding_table.weight"
LAYER = re.compile(r"(blocks|poolingformer_blocks|normal_blocks|dumbbell_blocks\.\d+\.[a-z_]+)\.(\d+)\.")


def detect_family(weights: Collection[str], frames: int = 1) -> str:
    """`sparsedit` if layers stand in its named lists, else `latte` if there are temporal positions or frames, else `dit`."""
    if any(match[1] != "blocks" for match in map(LAYER.match, weights) if match):
        return "sparsedit"
    return "latte" if "temp_embed" in weights or frames > 1 else "dit"


def check_family(spec: ModelSpec, family: str) -> None:
    """Raise ValueError unless the family's public code can express the spec."""
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r} of public checkpoints; the families are {', '.join(FAMILIES)}")
    kinds, frames = spec.parsed_layout.kinds, spec.input_size[0]
    side = (spec.dense_grid().h, spec.dense_grid().w)
    if spec.position_base is not None and side == (spec.position_base, spec.position_base):
        spec = replace(spec, position_base=None)  # positions of that side are the public ones
    if other := sorted((set(ADDED) - {"no_class"}) & spec.to_dict().keys()):
        raise ValueError(
            f"public {family} has no {', '.join(other)}; models of text and folders of diffusers are written by --to-diffusers"
        )
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
        match = LAYER.match(name)
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


def _first_dense_run(layout: Layout) -> int:
    """Number of D in the run that follows the only R of the layout, 0 if there is none."""
    runs = [run for group in layout.groups for run in group.runs]
    after = runs[[run.kind for run in runs].index("R") + 1 :]
    return after[0].count if after else 0
