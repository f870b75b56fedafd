"""Embeddings of patches, diffusion time, classes and sizes of pictures, and sin-cos tables of positions.

Dimensions: B clips, C latent channels, T frames, N = H·W tokens a frame, D channels.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import ArrayLike
from torch import Tensor, nn

from sparsevid.sparsity.cost import FREQUENCIES
from sparsevid.sparsity.grid import cell_centres


class PatchProjection(nn.Conv2d):
    """A convolution whose patches do not overlap, applied as the linear map that it is; the weight is (D, C, p, p).

    A convolution's output is in the order of channels, and every layer after it would read tokens across memory.
    """

    bias: nn.Parameter

    def forward(self, patches: Tensor) -> Tensor:
        """(..., C·p·p) → (..., D)."""
        return F.linear(patches, self.weight.flatten(1), self.bias)


class PatchEmbedding(nn.Module):
    """Latents (B, C, T, H·p, W·p) → tokens (B, T, N, D), contiguous: a linear map of each p×p patch of each frame."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = PatchProjection(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        p = self.patch_size
        return self.proj(rearrange(x, "b c t (h p) (w q) -> b t (h w) (c p q)", p=p, q=p))


class TimestepEmbedding(nn.Module):
    """Timesteps (B,), possibly fractional, → (B, D): sinusoids of 128 frequencies, then an MLP.

    Args:
        hidden_size: D.
        shift: see `ModelSpec.frequency_shift`.
    """

    def __init__(self, hidden_size: int, shift: int = 0) -> None:
        super().__init__()
        self.shift = shift
        self.mlp: Any = nn.Sequential(nn.Linear(FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, t: Tensor) -> Tensor:
        angles = t.float()[:, None] * wave_frequencies(FREQUENCIES // 2, t.device, self.shift)  # (B, 128)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(waves.to(self.mlp[0].weight.dtype))


def embed_sizes(values: Tensor, sizes: TimestepEmbedding, ratio: TimestepEmbedding) -> Tensor:
    """PixArt's micro-conditions: height, width and height / width, (B, 3), each embedded as a time is → (B, D).

    Args:
        values: of each clip.
        sizes: embeds height and width, ratio: the third; each gives a third of D.
    """
    sides = sizes(values[:, :2].flatten())  # (2·B, D/3)
    return torch.cat([sides.view(len(values), -1), ratio(values[:, 2])], dim=-1)


class LabelEmbedding(nn.Module):
    """Labels → D channels, "no class" among them if the model knows it."""

    def __init__(self, labels: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(labels, hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


def sincos(positions: ArrayLike, channels: int) -> np.ndarray:
    """Sines, then cosines, of `positions` (M,) at channels/2 frequencies from 1 down to 1/10000: (M, channels), float64."""
    frequencies = 1.0 / 10000 ** (np.arange(channels // 2, dtype=np.float64) / (channels / 2.0))
    angles = np.asarray(positions, dtype=np.float64)[:, None] * frequencies[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def spatial_table(rows: ArrayLike, columns: ArrayLike, channels: int) -> np.ndarray:
    """Positions inside a frame: half the channels for the column, half for the row, as DiT does; (rows·columns, channels)."""
    column_grid, row_grid = np.meshgrid(columns, rows)
    halves = [sincos(column_grid.ravel(), channels // 2), sincos(row_grid.ravel(), channels // 2)]
    return np.concatenate(halves, axis=1)


# Tables are kept for good: a captured CUDA graph reads them where they are.


@torch.compiler.assume_constant_result
def wave_frequencies(count: int, device: torch.device, shift: int = 0) -> Tensor:
    """(count,) frequencies of `TimestepEmbedding`, from 1 down to 1/10000; computed on the CPU, so equal on every device."""
    return _wave_frequencies(count, device, shift)


@torch.compiler.assume_constant_result
def spatial_positions(
    height: int,
    width: int,
    h: int,
    w: int,
    channels: int,
    device: torch.device,
    dtype: torch.dtype,
    base: int | None = None,
    scale: float = 1.0,
) -> Tensor:
    """(n, D) sin-cos positions of the h×w cells of a frame, at their centres in the coordinates of its H×W dense tokens.

    With h×w = H×W these are the positions of the dense tokens. With a `base`, sides of any length span so many; coordinates
    are divided by `scale`. A table is computed once for each size, and enters a compiled graph as a constant.
    """
    return _spatial_positions(height, width, h, w, channels, device, dtype, base, scale)


@torch.compiler.assume_constant_result
def temporal_positions(frames: int, windows: int, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(t, 1, D) sin-cos positions of `windows` windows of frames, at their centres; of each frame if windows = frames."""
    return _temporal_positions(frames, windows, channels, device, dtype)


@cache
@torch.inference_mode(False)
def _wave_frequencies(count: int, device: torch.device, shift: int) -> Tensor:
    # In the order of diffusers' operations: at late times an angle shows a difference in the last bit.
    exponents = -math.log(10000.0) * torch.arange(count, dtype=torch.float32, device="cpu") / (count - shift)
    return torch.exp(exponents).to(device)


@cache
@torch.inference_mode(False)
def _spatial_positions(
    height: int,
    width: int,
    h: int,
    w: int,
    channels: int,
    device: torch.device,
    dtype: torch.dtype,
    base: int | None,
    scale: float,
) -> Tensor:
    rows, columns = (
        np.array(cell_centres(*each)) * ((base or each[0]) / each[0]) / scale for each in ((height, h), (width, w))
    )
    table = spatial_table(rows, columns, channels)
    return torch.from_numpy(table).float().to(device, dtype)


@cache
@torch.inference_mode(False)
def _temporal_positions(frames: int, windows: int, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    table = sincos(np.array(cell_centres(frames, windows)), channels)
    return torch.from_numpy(table).float()[:, None].to(device, dtype)
