"""Known damage to clips, in growing strength: what a detector does not answer to, its score does not measure.

Dimensions: C = 3 channels (RGB), T frames, H×W pixels of a clip.

Every function takes (clip, strength, generator) and returns a new clip of the same shape. Strength 0 returns the clip's
values unchanged. What is random is drawn in the same order at every strength: with generators that start alike, more
strength is more of the same damage.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
BLUR_SHARE = 1 / 16  # standard deviation of the strongest blur, of the shorter side
NOISE_LEVELS = 64.0  # standard deviation of the strongest noise, of 256 levels
Distortion = Callable[[Tensor, float, torch.Generator], Tensor]


def blur(clip: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Blur each frame by a Gaussian of standard deviation `strength` · `BLUR_SHARE` of the shorter side.

    Args:
        clip: uint8 (3,T,H,W).
        strength: 0 to 1.
        generator: not used.

    Raises:
        ValueError: not such a clip, or a strength out of range.
    """
    _check(clip, strength)
    sigma = strength * BLUR_SHARE * min(clip.shape[2:])
    radius = min(math.ceil(3 * sigma), min(clip.shape[2:]) - 1)  # reflection at the border ends at the other border
    if sigma == 0 or radius == 0:
        return clip.clone()
    frames = gaussian_blur(clip.transpose(0, 1), kernel_size=[2 * radius + 1] * 2, sigma=[sigma] * 2)  # (T,3,H,W)
    return frames.transpose(0, 1).contiguous()


def noise(clip: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Add normal noise of standard deviation `strength` · `NOISE_LEVELS` to every value, then round and clamp.

    Args and errors are those of `blur`; the generator draws the noise, on its own device.
    """
    _check(clip, strength)
    pattern = torch.randn(clip.shape, generator=generator, device=generator.device).to(clip.device)
    return (clip + strength * NOISE_LEVELS * pattern).round_().clamp_(0, 255).to(torch.uint8)


def shuffle_frames(clip: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Move a share `strength` of the frames, at least two, each to the place of another.

    Args and errors are those of `blur`; the generator chooses the frames and their places. A clip has two frames or more.
    """
    _check(clip, strength, min_frames=2)
    frames = clip.shape[1]
    order = torch.randperm(frames, generator=generator, device=generator.device)
    count = 0 if strength == 0 else max(2, round(strength * frames))
    moved = order[:count]
    source = torch.arange(frames)
    source[moved] = moved.roll(1)  # one cycle: none of them stays
    return clip[:, source]


def freeze(clip: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Replace the last `strength` · (T − 1) frames by the last one before them: 1 leaves a still of the first frame.

    Args and errors are those of `blur`; the generator is not used. A clip has two frames or more.
    """
    _check(clip, strength, min_frames=2)
    last = clip.shape[1] - 1
    live = last - round(strength * last)
    return clip[:, torch.arange(last + 1).clamp(max=live)]


def reverse_time(clip: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Play the clip backwards with a chance of `strength`: a growing share of a set, while each clip stays smooth.

    Args and errors are those of `blur`; the generator decides.
    """
    _check(clip, strength)
    draw = torch.rand((), generator=generator, device=generator.device).item()  # below 1
    return clip.flip(1) if draw < strength else clip.clone()


DISTORTIONS: dict[str, Distortion] = {
    "blur": blur,
    "noise": noise,
    "frame shuffling": shuffle_frames,
    "freezing": freeze,
    "time reversal": reverse_time,
}


def _check(clip: Tensor, strength: float, min_frames: int = 1) -> None:
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[0] != 3 or 0 in clip.shape:
        raise ValueError(f"a distortion takes a clip, uint8 (3,T,H,W), got {clip.dtype} {tuple(clip.shape)}")
    if clip.shape[1] < min_frames:
        raise ValueError(f"this distortion takes clips of {min_frames} frames or more, got {clip.shape[1]}")
    if not 0 <= strength <= 1:
        raise ValueError(f"a distortion's strength is 0 to 1, got {strength}")
