"""A clip that every format keeps well."""

import torch
from torch import Tensor


def smooth_clip(frames: int = 9, height: int = 48, width: int = 64) -> Tensor:
    """uint8 (C,T,H,W): gradients that move."""
    axes = (torch.arange(frames) / frames, torch.linspace(0, 1, height), torch.linspace(0, 1, width))
    t, y, x = torch.meshgrid(*axes, indexing="ij")
    waves = [torch.sin(2 * torch.pi * (x + t)), torch.cos(2 * torch.pi * (y - t)), torch.sin(torch.pi * (x + y + t))]
    return (127.5 + 110 * torch.stack(waves)).round().to(torch.uint8)
