"""Tokens by their grids: pooling, nearest upsampling, windows in time.

Dimensions: B clips, T×H×W dense grid, t×h×w sparse grid, N = H·W and n = h·w tokens a frame, D channels.
Tokens are (B, T, N, D).
"""

from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from sparsevid.sparsity.grid import Grid


def pool(tokens: Tensor, dense: Grid, sparse: Grid) -> Tensor:
    """Adaptive average pooling over the grid (SparseDiT, section 3.2).

    Args:
        tokens: (B, T, N, D).
        dense: (T, H, W) with N = H·W.
        sparse: (t, h, w); t divides T.

    Returns:
        (B, t, n, D).
    """
    frames = rearrange(tokens, "b (t k) n d -> b t k n d", t=sparse.t)
    frames = frames.squeeze(2) if dense.t == sparse.t else frames.mean(dim=2)
    if (dense.h, dense.w) == (sparse.h, sparse.w):
        return frames
    batch = tokens.shape[0]
    # A channels-last view of the tokens: the kernel reads and writes token order, and nothing is copied.
    image = rearrange(frames, "b t (h w) d -> (b t) d h w", h=dense.h)
    pooled = F.adaptive_avg_pool2d(image, (sparse.h, sparse.w))
    return rearrange(pooled, "(b t) d h w -> b t (h w) d", b=batch)


def upsample(tokens: Tensor, sparse: Grid, dense: Grid) -> Tensor:
    """Nearest upsampling inside frames: cell index ⌊j·h/H⌋ in integers. Frames are left to the caller (see `windows`).

    Args:
        tokens: (B, t, n, D).
        sparse: (t, h, w).
        dense: (T, H, W).

    Returns:
        (B, t, N, D): one upsampled frame for each window of T/t dense frames.
    """
    if (dense.h, dense.w) == (sparse.h, sparse.w):
        return tokens
    return tokens.index_select(2, _nearest_cells(sparse.h, sparse.w, dense.h, dense.w, tokens.device))


def windows(tokens: Tensor, count: int) -> Tensor:
    """View dense tokens as `count` windows in time: (B, T, N, D) → (B, t, T/t·N, D). Never copies contiguous tokens."""
    return tokens.unflatten(1, (count, -1)).flatten(2, 3)


@torch.compiler.assume_constant_result
def _nearest_cells(h: int, w: int, height: int, width: int, device: torch.device) -> Tensor:
    """(N,) index of the sparse token that stands for each dense token of a frame."""
    return _cached_nearest_cells(h, w, height, width, device)


@cache  # a captured CUDA graph reads it where it is
@torch.inference_mode(False)
def _cached_nearest_cells(h: int, w: int, height: int, width: int, device: torch.device) -> Tensor:
    rows = [j * h // height for j in range(height)]
    columns = [j * w // width for j in range(width)]
    return torch.tensor([row * w + column for row in rows for column in columns], device=device)
