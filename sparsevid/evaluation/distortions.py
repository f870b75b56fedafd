"""Known damage to clips, in growing strength: what a detector does not answer to, its score does not measure.

Dimensions: C = 3 channels (RGB), T frames, H×W pixels of a clip.

Every function takes (clip, strength, generator) and returns a new clip of the same shape. Strength 0 returns the clip's
values unchanged. What is random is drawn in the same order at every strength: with generators that start alike, more
strength is more of the same damage. Damage to a set (`SET_DISTORTIONS`) takes its clips by position.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
BLUR_SHARE = 1 / 16  # standard deviation of the strongest blur, of the shorter side
SLOWEST = 1 / 4  # speed of the strongest slow motion
NOISE_LEVELS = 64.0  # standard deviation of the strongest noise, of 256 levels
Distortion = Callable[[Tensor, float, torch.Generator], Tensor]
ReadClip = Callable[[int], Tensor]
SetDistortion = Callable[[ReadClip, int, int, float, torch.Generator], Tensor]


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
    frames, size = clip.transpose(0, 1).float(), 2 * radius + 1  # (T,3,H,W)
    for kernel in (
        [size, 1],
        [1, size],
    ):  # one after the other: a kernel of both takes `size` times as long
        frames = gaussian_blur(frames, kernel_size=kernel, sigma=[sigma] * 2)
    return frames.round_().clamp_(0, 255).to(torch.uint8).transpose(0, 1).contiguous()


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


def drop_frames(clip: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Lose a share `strength` of the frames but the first; the frame before is shown in their place, as a player does.

    Args and errors are those of `blur`; the generator chooses the frames. A clip has two frames or more.
    """
    _check(clip, strength, min_frames=2)
    others = clip.shape[1] - 1
    lost = 1 + torch.randperm(others, generator=generator, device=generator.device)[: round(strength * others)]
    shown = torch.arange(others + 1)
    shown[lost] = 0
    return clip[:, shown.cummax(dim=0).values]


def duplicate_frames(clip: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Show a share `strength` of the frames twice; what is pushed out at the end is lost.

    Args and errors are those of `blur`; the generator chooses the frames. A clip has two frames or more.
    """
    _check(clip, strength, min_frames=2)
    frames = clip.shape[1]
    twice = torch.randperm(frames, generator=generator, device=generator.device)[: round(strength * frames)]
    counts = torch.ones(frames, dtype=torch.long)
    counts[twice] = 2
    return clip[:, torch.arange(frames).repeat_interleave(counts)[:frames]]


def slow_motion(clip: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Play slower, down to a quarter of the speed at strength 1; each frame is the last one that was due.

    Args and errors are those of `blur`; the generator is not used. A clip has two frames or more.
    """
    _check(clip, strength, min_frames=2)
    return clip[:, (torch.arange(clip.shape[1]) * (1 - (1 - SLOWEST) * strength) + 1e-6).long()]


DISTORTIONS: dict[str, Distortion] = {
    "blur": blur,
    "noise": noise,
    "frame shuffling": shuffle_frames,
    "freezing": freeze,
    "time reversal": reverse_time,
    "dropped frames": drop_frames,
    "duplicated frames": duplicate_frames,
    "slow motion": slow_motion,
}


def fewer_modes(read: ReadClip, count: int, position: int, strength: float, generator: torch.Generator) -> Tensor:
    """The clip at `position` of a set of which a share `strength` is lost, and others stand twice in their place.

    Args:
        read: position → clip of the undamaged set.
        count: clips of the set.
        position: of the clip.
        strength: 0 to 1; at 1 two clips are left.
        generator: the same for all positions: which clips are lost.
    """
    order = torch.randperm(count, generator=generator, device=generator.device)
    kept = max(min(2, count), round((1 - strength) * count))
    place = int((order == position).nonzero())
    return read(int(order[place % kept]))


def mix_clips(read: ReadClip, count: int, position: int, strength: float, generator: torch.Generator) -> Tensor:
    """The clip at `position`, with a chance of `strength` going on as another clip of the set from its middle on; of a single
    frame, its right half is another's.

    Args are those of `fewer_modes`; the generator decides which clips, and of which others.
    """
    order = torch.randperm(count, generator=generator, device=generator.device)
    chance = torch.rand(count, generator=generator, device=generator.device)
    clip = read(position).clone()
    if chance[position] < strength:
        place = int((order == position).nonzero())
        other, axis = read(int(order[(place + 1) % count])), 1 if clip.shape[1] > 1 else 3
        half = clip.shape[axis] // 2
        clip.narrow(axis, half, clip.shape[axis] - half).copy_(other.narrow(axis, half, clip.shape[axis] - half))
    return clip


SET_DISTORTIONS: dict[str, SetDistortion] = {"mixed classes": mix_clips, "fewer modes": fewer_modes}
TIME = tuple(name for name in DISTORTIONS if name not in ("blur", "noise"))  # of clips of two frames or more


def _check(clip: Tensor, strength: float, min_frames: int = 1) -> None:
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[0] != 3 or 0 in clip.shape:
        raise ValueError(f"a distortion takes a clip, uint8 (3,T,H,W), got {clip.dtype} {tuple(clip.shape)}")
    if clip.shape[1] < min_frames:
        raise ValueError(f"this distortion takes clips of {min_frames} frames or more, got {clip.shape[1]}")
    if not 0 <= strength <= 1:
        raise ValueError(f"a distortion's strength is 0 to 1, got {strength}")
