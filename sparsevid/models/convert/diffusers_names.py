"""What diffusers' transformers call our parameters; several names where they hold apart, or many times, what we have once."""

import re
from collections.abc import Collection
from typing import NamedTuple

from sparsevid.models.convert.diffusers_config import DIT, LATTE

NULL_CAPTION = "y_embedder.y_embedding"
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_TABLE = re.compile(r"blocks\.(\d+)\.scale_shift_table")
_PARTS = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm1.linear",),
}
_OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
    "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
    "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
    "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "t_block.1": "adaln_single.linear",
    "final_layer.linear": "proj_out",
}
# Of DiT, which holds the embedders in every block.
_OF_EACH_BLOCK = {
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "norm1.emb.class_embedder.embedding_table",
}
_OF_DIT = {"final_layer.linear": "proj_out_2", "final_layer.adaLN_modulation.1": "proj_out_1"}


class Theirs(NamedTuple):
    """Where diffusers holds a tensor of ours: one behind the other under these names, or the same under each."""

    names: tuple[str, ...]
    copies: bool = False


def diffusers_names(names: Collection[str], kind: str, depth: int) -> dict[str, Theirs]:
    """Their names of each of our parameters.

    Args:
        names: of ours.
        kind: their class.
        depth: number of our layers.
    """
    return {name: _theirs(name, kind, depth) for name in names}


def _theirs(name: str, kind: str, depth: int) -> Theirs:
    if table := _TABLE.fullmatch(name):
        return Theirs((f"{_block(int(table[1]), kind)}.scale_shift_table",))
    if name == "final_layer.scale_shift_table":
        return Theirs(("scale_shift_table",))
    if name == NULL_CAPTION:
        return Theirs(("caption_projection.y_embedding",))
    if match := _BLOCK.fullmatch(name):
        return Theirs(tuple(f"{_block(int(match[1]), kind)}.{part}.{match[3]}" for part in _PARTS[match[2]]))
    module, _, ending = name.rpartition(".")
    if kind == DIT and module in _OF_EACH_BLOCK:
        return Theirs(tuple(f"{_block(i, kind)}.{_OF_EACH_BLOCK[module]}.{ending}" for i in range(depth)), copies=True)
    return Theirs((f"{(_OUTSIDE | _OF_DIT if kind == DIT else _OUTSIDE)[module]}.{ending}",))


def _block(index: int, kind: str) -> str:
    """Their name of our layer: Latte's temporal ones stand in a list of their own."""
    if kind != LATTE:
        return f"transformer_blocks.{index}"
    return f"{'temporal_transformer_blocks' if index % 2 else 'transformer_blocks'}.{index // 2}"
