"""How like clips are to others of the same content, pixel by pixel: PSNR and SSIM, frame by frame.

Dimensions: N clips, C channels, T frames, H height, W width.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

PEAK = 255.0
WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian, in pixels
K1, K2 = 0.01, 0.03


def psnr(clips: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, mean over all frames; infinite where all clips are the same.

    Among frames that differ, one that does not would make the mean infinite. It counts as the nearest one that differs:
    by a level in one value.

    Args:
        clips: uint8 (N, C, T, H, W).
        reference: the same.

    Raises:
        ValueError: other shapes, or no uint8.
    """
    errors = torch.cat([(one - other).square().mean(dim=(1, 2, 3)) for one, other in _frames(clips, reference)])
    if not errors.any():
        return math.inf
    channels, height, width = clips.shape[1], *clips.shape[3:]
    nearest = 1 / (channels * height * width)
    return (10 * torch.log10(PEAK**2 / errors.clamp(min=nearest))).mean().item()


def ssim(clips: Tensor, reference: Tensor) -> float:
    """Structural similarity (Wang, Bovik, Sheikh and Simoncelli 2004), mean over channels and frames; 1 of the same clips.

    As there: a Gaussian of 11×11 pixels with σ = 1.5, K1 = 0.01, K2 = 0.03, wherever it lies inside of the frame; there of
    luminance, here of each channel. A frame with fewer pixels has a window of its own size.

    Args:
        clips: uint8 (N, C, T, H, W).
        reference: the same.

    Raises:
        ValueError: other shapes, or no uint8.
    """
    return torch.cat([_ssim_of_frames(one, other) for one, other in _frames(clips, reference)]).mean().item()


def _frames(clips: Tensor, reference: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The frames (T, C, H, W) of each clip as float32, one clip after the other: all at once are four times the clips."""
    if clips.shape != reference.shape or clips.ndim != 5 or {clips.dtype, reference.dtype} != {torch.uint8}:
        shown = " and ".join(f"{each.dtype} {tuple(each.shape)}" for each in (clips, reference))
        raise ValueError(f"clips are compared with others of their size, uint8 (N, C, T, H, W), got {shown}")
    for pair in zip(clips, reference, strict=True):
        one, other = (rearrange(each, "c t h w -> t c h w").float() for each in pair)
        yield one, other


def _ssim_of_frames(x: Tensor, y: Tensor) -> Tensor:
    """(T,), mean over channels."""
    frames, channels = x.shape[:2]
    maps = torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 2).unsqueeze(1)  # (5·T·C, 1, H, W)
    for dim in (2, 3):
        window = _gaussian(min(WINDOW, maps.shape[dim]), x.device)
        maps = F.conv2d(maps, window.reshape(1, 1, *(len(window) if each == dim else 1 for each in (2, 3))))
    mean_x, mean_y, xx, yy, xy = maps.reshape(5, frames, channels, *maps.shape[2:])
    variances, covariance = (xx - mean_x**2) + (yy - mean_y**2), xy - mean_x * mean_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _gaussian(size: int, device: torch.device) -> Tensor:
    """(size,), of sum 1."""
    offsets = torch.arange(size, device=device) - (size - 1) / 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    return weights / weights.sum()
