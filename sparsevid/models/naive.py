"""The dense model in the form of the public Latte code: what ours is measured against, and a second way to compute the same.

Dimensions: B clips, C latent channels, T frames, H×W tokens a frame, N = H·W, D channels, h heads, p patch size; S sequences.
"""

import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from sparsevid.models.blocks import AttentionLayer, Head, Layer, layer_norm
from sparsevid.models.embeddings import spatial_positions, temporal_positions
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.cost import forward_macs
from sparsevid.sparsity.spec import ADDED, ModelSpec


def naive_forward(model: DiffusionTransformer, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
    """What a dense `model` computes, written as the public Latte code writes it, to measure what our form of it saves.

    Tokens are copied into (B·T, N, D) for spatial and (B·N, T, D) for temporal layers, the condition is repeated, and adaLN
    computed, for every frame or position, and q, k, v are copied to contiguous heads. Attention itself is PyTorch's fused
    kernel, as in the model by default.

    Args:
        model: a model whose layers are all D.
        x, t, labels: as the model's, without stills.

    Raises:
        ValueError: the model has layers of other kinds, or more than the public class-conditional Latte has.
    """
    spec = model.spec
    check_naive(spec)
    batch, _, frames, *sides = x.shape
    dense, like = spec.dense_grid((frames, sides[0], sides[1])), (spec.hidden_size, x.device, x.dtype)
    frame = dense._replace(t=1)
    embed, p = model.x_embedder.proj, spec.patch_size
    tokens = F.conv2d(rearrange(x, "b c t h w -> (b t) c h w"), embed.weight, embed.bias, stride=p)
    tokens = tokens.flatten(2).transpose(1, 2)  # (B·T, N, D)
    tokens = tokens + spatial_positions(frame.h, frame.w, frame.h, frame.w, *like)
    condition = model.t_embedder(t)  # (B, D)
    if labels is not None:
        condition = condition + model.y_embedder(labels)
    of_frames = repeat(condition, "b d -> (b t) d", t=dense.t)
    of_positions = repeat(condition, "b d -> (b n) d", n=dense.h * dense.w)
    for index, block in enumerate(model.blocks):
        if not spec.layer_is_temporal(index):
            tokens = _naive_layer(block, tokens, of_frames)
            continue
        tokens = rearrange(tokens, "(b t) n d -> (b n) t d", b=batch)
        if index == spec.temporal_position_layer:
            tokens = tokens + temporal_positions(dense.t, dense.t, *like)[:, 0]
        tokens = _naive_layer(block, tokens, of_positions)
        tokens = rearrange(tokens, "(b n) t d -> (b t) n d", b=batch)
    shift, scale = _modulation(model.final_layer, of_frames).chunk(2, dim=1)
    out = model.final_layer.linear(_naive_modulate(layer_norm(tokens), shift, scale))  # (B·T, N, p·p·C')
    return rearrange(out, "(b t) (h w) (p q c) -> b c t (h p) (w q)", b=batch, h=dense.h, p=p, q=p)


def naive_macs(spec: ModelSpec, size: tuple[int, int, int] | None = None) -> int:
    """Multiply-adds of `naive_forward` for one clip: `forward_macs` plus adaLN for every further frame or position.

    Args:
        spec: a dense model.
        size: (frames, height, width) of the latents; by default the spec's.

    Raises:
        ValueError: as `naive_forward`.
    """
    check_naive(spec)
    dense, d = spec.dense_grid(size), spec.hidden_size
    repeats = [dense.h * dense.w if spec.layer_is_temporal(index) else dense.t for index in range(spec.depth)]
    return forward_macs(spec, size=size) + sum((n - 1) * 6 * d * d for n in repeats) + (dense.t - 1) * 2 * d * d


def check_naive(spec: ModelSpec) -> None:
    """Raise ValueError for a model that has no naive form."""
    if spec.parsed_layout.kinds.strip("D"):
        raise ValueError(f"the naive form is that of dense models such as {spec.depth}D, got layout {spec.layout!r}")
    if other := sorted((set(ADDED) - {"no_class"}) & spec.to_dict().keys()):
        raise ValueError(f"the naive form is that of the public Latte and DiT, which have no {', '.join(other)}")


def _naive_layer(block: AttentionLayer, x: Tensor, c: Tensor) -> Tensor:
    """One layer on S sequences: x (S, N, D), c (S, D) → (S, N, D)."""
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = _modulation(block, c).chunk(6, dim=1)
    attention = block.attn
    qkv = F.linear(_naive_modulate(layer_norm(x), shift, scale), attention.qkv.weight, attention.qkv.bias)
    q, k, v = rearrange(qkv, "s n (three h d) -> three s h n d", three=3, h=attention.heads).contiguous().unbind(0)
    attended = rearrange(F.scaled_dot_product_attention(q, k, v), "s h n d -> s n (h d)")
    attended = attention.proj(attended)
    x = x + gate.unsqueeze(1) * attended
    return x + mlp_gate.unsqueeze(1) * block.mlp(_naive_modulate(layer_norm(x), mlp_shift, mlp_scale))


def _modulation(module: Layer | Head, c: Tensor) -> Tensor:
    """Shifts, scales and gates in one: (S, D) → (S, m·D)."""
    own = module.adaLN_modulation
    assert own is not None  # `check_naive` refuses what is shared
    return own(c)


def _naive_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
