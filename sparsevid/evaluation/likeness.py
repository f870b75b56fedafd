"""Two folders of clips that were made from one noise, compared pixel by pixel: what a saving or another precision changes."""

import math
from dataclasses import dataclass
from pathlib import Path

from einops import rearrange
from torch import Tensor

from sparsevid.data.tree.manifest import Manifest, Video, open_manifest
from sparsevid.data.tree.walk import without_extension
from sparsevid.evaluation.metrics.likeness import psnr, ssim
from sparsevid.generation.formats import folder_of_clips
from sparsevid.system.logging import progress
from sparsevid.videos.read import read_frames


@dataclass(frozen=True)
class Likeness:
    """How like two sets of clips are.

    Attributes:
        psnr: mean over clips in dB, of those that differ; infinite where none does.
        ssim: mean over all clips.
        clips: their number.
        same: how many are the same to the bit.
    """

    psnr: float
    ssim: float
    clips: int
    same: int


def folder_likeness(clips: Path, reference: Path, count: int | None = None) -> Likeness:
    """Compare clips of the same names, whatever their formats, one pair at a time. All ranks call it together.

    Args:
        clips: a folder of generated clips.
        reference: a folder of others, made from the same noise.
        count: the first ones alone; default: all of `clips`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no clip, one that has no namesake in the other folder, or pairs that differ in frames or size.
        DecodeError: a clip cannot be read.
    """
    if count is not None and count < 1:
        raise ValueError(f"count is at least 1, got {count}")
    one, other = (_clips(folder) for folder in (clips, reference))
    lacking = [name for name in one[1] if name not in other[1]]
    if lacking:
        raise ValueError(f"{reference} has no clip of the name {lacking[0]!r}, nor of {len(lacking) - 1} others of {clips}")
    names = list(one[1])[:count]
    noise, structure = [], []
    for name in progress(names, desc="compare", unit="clip", delay=2):
        pair = [_read(manifest, videos[name]) for manifest, videos in (one, other)]
        if pair[0].shape != pair[1].shape:
            shapes = " and ".join(str(tuple(each.shape[1:])) for each in pair)
            raise ValueError(f"clip {name!r} is (T, H, W) {shapes}: clips are compared with others of their size")
        noise.append(psnr(*(each[None] for each in pair)))
        structure.append(ssim(*(each[None] for each in pair)))
    differing = [each for each in noise if each < math.inf]
    mean = sum(differing) / len(differing) if differing else math.inf
    return Likeness(mean, sum(structure) / len(structure), len(names), len(names) - len(differing))


def _clips(folder: Path) -> tuple[Manifest, dict[str, Video]]:
    manifest = open_manifest(folder_of_clips(folder))
    return manifest, {without_extension(video.path): video for video in manifest.videos}


def _read(manifest: Manifest, video: Video) -> Tensor:
    """(3,T,H,W)."""
    frames = read_frames(manifest.root / video.path, [video.first + i for i in range(video.frames)])
    return rearrange(frames, "t c h w -> c t h w")
