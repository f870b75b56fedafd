"""Resize, crop and flip of uint8 frames.

Dimensions: T frames, C channels, H height, W width.
"""

import torch
from torch import Tensor

from sparsevid.videos.display import resize


def resize_crop(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale frames so that they just cover `size`, keeping their aspect, and cut out the centre.

    Args:
        frames: uint8 (T,C,h,w), any aspect.
        size: (H,W) in pixels.

    Returns:
        uint8 (T,C,H,W). Bilinear with antialiasing; values are rounded, not truncated.

    Raises:
        ValueError: `frames` is not uint8 (T,C,h,w), or `size` is not positive.
    """
    if frames.ndim != 4 or frames.dtype != torch.uint8:
        raise ValueError(f"frames must be uint8 (T,C,H,W), got {frames.dtype} {tuple(frames.shape)}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be two positive numbers (height, width), got {tuple(size)}")
    height, width = size
    scale = max(height / frames.shape[2], width / frames.shape[3])
    # The covered side may miss by one through rounding; `max` keeps the crop inside.
    covering = [max(height, round(frames.shape[2] * scale)), max(width, round(frames.shape[3] * scale))]
    if covering != list(frames.shape[2:]):
        frames = resize(frames, (covering[0], covering[1]))
    top, left = round((frames.shape[2] - height) / 2), round((frames.shape[3] - width) / 2)
    return frames[:, :, top : top + height, left : left + width]


def flip(frames: Tensor) -> Tensor:
    """Mirror frames (...,H,W) left to right."""
    return frames.flip(-1)


def area_average(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames in another size: each pixel the mean of what it covers, rounded. Whole numbers throughout: the same everywhere.

    Args:
        frames: uint8 (…,H,W).
        size: (H',W') in pixels; each may be larger or smaller.

    Returns:
        uint8 (…,H',W').
    """
    total = frames.long()
    for dim, target in zip((-2, -1), size, strict=True):
        total = _covered(total, dim, target)
    area = frames.shape[-2] * frames.shape[-1]
    return ((2 * total + area) // (2 * area)).to(torch.uint8)


def _covered(values: Tensor, dim: int, target: int) -> Tensor:
    """Sums over `target` equal parts of a dimension of n values, in units of which a value has `target`, and a part n."""
    n = values.shape[dim]
    parts: list[Tensor] = []
    for begin in range(0, n * target, n):
        end, total = begin + n, torch.zeros_like(values.select(dim, 0))
        for place in range(begin // target, -(-end // target)):
            share = min(end, (place + 1) * target) - max(begin, place * target)
            total = total + share * values.select(dim, place)
        parts.append(total)
    return torch.stack(parts, dim)
