"""Original files of PixArt-α and Latte-1. PixArt's names are ours; Latte-1's are those of diffusers' class."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparsevid.models.convert.conversion import (
    Conversion,
    ConversionReport,
    check_weights,
    expected_shapes,
    with_own_storage,
)
from sparsevid.models.convert.diffusers_config import LATTE
from sparsevid.models.convert.diffusers_folder import convert_names
from sparsevid.models.convert.public import compare_table
from sparsevid.models.embeddings import spatial_positions
from sparsevid.models.presets import TEXT, build_spec, text_spec
from sparsevid.sparsity.spec import ModelSpec

CAPTIONS = {"pixart": "y_embedder.y_proj.fc1.weight", "latte-1": "caption_projection.linear_1.weight"}
NULL = {"pixart": "y_embedder.y_embedding", "latte-1": "caption_projection.y_embedding"}
POSITIONS = "pos_embed"  # of PixArt


def text_family(weights: Collection[str]) -> str | None:
    """`pixart` or `latte-1`, by how a file names what embeds captions; None for a model without text."""
    return next((family for family, name in CAPTIONS.items() if name in weights), None)


def from_text_file(
    weights: Mapping[str, Tensor],
    *,
    preset: str | None = None,
    num_heads: int | None = None,
    input_size: Sequence[int] | None = None,
) -> Conversion:
    """Convert an original PixArt-α or Latte-1 state dict to ours; the null caption, if there, is kept.

    Args:
        weights: as `checkpoint_file.read_checkpoint` returns them.
        preset: such as `PixArt-XL/2-512`: gives heads, and the size if the file has no table of positions. What the file shows
            must agree with it.
        num_heads: attention heads, instead of a preset.
        input_size: (frames, height, width) of the latents that the model was trained on, which the positions follow.

    Raises:
        KeyError: no such preset.
        ValueError: the size or the heads are not said, the table of positions is another, or keys do not fit.
    """
    family = text_family(weights)
    if family is None:
        raise ValueError(f"no public checkpoint of text: it has none of {', '.join(CAPTIONS.values())}")
    spec = _spec(weights, family, preset, num_heads, input_size)
    if family == "latte-1":
        return convert_names(weights, spec, LATTE)
    found = {name: value for name, value in weights.items() if name != POSITIONS}
    shapes = expected_shapes(spec)
    check_weights(found, shapes)
    dropped = (compare_table(POSITIONS, weights[POSITIONS], _table(spec)),) if POSITIONS in weights else ()
    return Conversion(with_own_storage({name: found[name] for name in shapes}), spec, ConversionReport(len(shapes), dropped))


def _spec(
    weights: Mapping[str, Tensor],
    family: str,
    preset: str | None,
    num_heads: int | None,
    input_size: Sequence[int] | None,
) -> ModelSpec:
    usual = None if preset is None else build_spec(preset)
    hidden, captions = weights[CAPTIONS[family]].shape
    if usual is not None:
        _compare({"hidden_size": usual.hidden_size}, {"hidden_size": hidden}, str(preset))
    prefix, lists = ("blocks.", 1) if family == "pixart" else ("transformer_blocks.", 2)
    layers = lists * len({name.split(".")[1] for name in weights if name.startswith(prefix)})
    heads = num_heads or (None if usual is None else usual.num_heads)
    if heads is None:
        raise ValueError(f"no tensor shows the number of attention heads: give num_heads or a preset ({', '.join(TEXT)})")
    embed, out = (("x_embedder.proj", "final_layer.linear"), ("pos_embed.proj", "proj_out"))[family == "latte-1"]
    for name in (f"{embed}.weight", f"{out}.weight"):
        if name not in weights:
            raise ValueError(f"no public {family} checkpoint: it lacks {name}")
    channels, patch = weights[f"{embed}.weight"].shape[1:3]
    size = tuple(input_size) if input_size is not None else _size(weights, patch, usual)
    if (size[0] > 1) != (family == "latte-1") or size[1] != size[2]:
        raise ValueError(f"a file of {family} is of {'clips' if lists > 1 else 'one frame'} and square latents, got {size}")
    null = weights.get(NULL[family])
    spec = text_spec(
        f"{layers}D",
        hidden,
        heads,
        size[1],
        size[0],
        in_channels=channels,
        patch_size=patch,
        learn_sigma=weights[f"{out}.weight"].shape[0] == 2 * channels * patch**2,
        text_channels=captions,
        micro_conditions="csize_embedder.mlp.0.weight" in weights,
        **({} if null is None else {"null_caption": True, "text_tokens": len(null)}),
    )
    if usual is not None:
        usual = replace(usual, null_caption=spec.null_caption, text_tokens=spec.text_tokens)
        _compare(usual.to_dict(), spec.to_dict(), str(preset))
    return spec


def _size(weights: Mapping[str, Tensor], patch: int, usual: ModelSpec | None) -> tuple[int, int, int]:
    if POSITIONS in weights:
        side = math.isqrt(weights[POSITIONS].shape[-2]) * patch
        return 1, side, side
    if usual is None:
        raise ValueError(
            "no tensor shows the size of the latents, which positions follow: give input_size=(T, H, W) or a preset"
        )
    return usual.input_size


def _compare(theirs: dict[str, Any], mine: dict[str, Any], preset: str) -> None:
    """Raise ValueError where a preset says something else of a model than its file."""
    names = [name for name in theirs | mine if theirs.get(name) != mine.get(name)]
    if names:
        odd = "; ".join(f"{name} is {theirs.get(name)!r} there and {mine.get(name)!r} here" for name in names)
        raise ValueError(
            f"the preset {preset} does not fit the checkpoint: {odd}. For a sparse model convert the dense one first"
        )


def _table(spec: ModelSpec) -> Tensor:
    """The table of positions that PixArt's files hold, float32 (1, N, D)."""
    grid, cpu = spec.dense_grid(), torch.device("cpu")
    sides = grid.h, grid.w, grid.h, grid.w
    return spatial_positions(*sides, spec.hidden_size, cpu, torch.float32, spec.position_base, spec.position_scale)[None]
