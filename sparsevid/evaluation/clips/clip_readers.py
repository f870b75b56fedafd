"""Readers of clips that a protocol has chosen: from the videos of a tree, or from a generator.

Dimensions: T frames, C = 3 channels, H×W pixels of a clip.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor

from sparsevid.data.transforms import resize_crop
from sparsevid.data.tree.clip_rule import ClipRule, clip_indices
from sparsevid.data.tree.manifest import Video
from sparsevid.evaluation.clips.choice import clip_starts, draws
from sparsevid.evaluation.metrics.distances import Moments
from sparsevid.videos.display import resize
from sparsevid.videos.read import read_frames

FRAMES_PER_READ = 64  # of one video: bounds the decoded frames that are in memory at once, but for longer clips
BACKEND = "pyav"  # unlike decord it refuses frames that its decoder marks as damaged; a score is not to rest on them


class ClipReader(Protocol):
    """Where the frames of chosen clips come from."""

    def read(self, first: int, last: int) -> Iterator[Tensor]:
        """Clips first … last − 1 by position, uint8 (3, T, H, W)."""


@dataclass(frozen=True)
class Choice:
    """What a source gives: a reader, the clips' names, the fingerprint of the data, and what else the record says of them; of a
    reference file also statistics, by the detector's output."""

    reader: ClipReader
    ids: tuple[str, ...]
    data: str
    origin: dict[str, Any]
    moments: Mapping[str, Moments] = field(default_factory=dict)


@dataclass(frozen=True)
class ClipGenerator:
    """Clips that are made when they are asked for, in place of files.

    Attributes:
        make: number of a clip → uint8 (3, T, H, W). A function of the number alone: every rank, and a run that goes on after an
            interruption, makes the same clip.
        count: how many there are: numbers 0 … count − 1.
        name: all that the clips depend on (checkpoint, sampler, seed …): clips with one name are taken to be the same.
    """

    make: Callable[[int], Tensor]
    count: int
    name: str


@dataclass(frozen=True)
class ClipShape:
    """What becomes of frames: which of them make a clip, and of which size.

    Attributes:
        rule: which frames.
        size: (H, W) in pixels; None leaves frames as they are.
        resize: how, see `Protocol`.
    """

    rule: ClipRule
    size: tuple[int, int] | None
    resize: str

    def resized(self, frames: Tensor) -> Tensor:
        """Frames uint8 (T, C, h, w) in the clips' size (T, C, H, W)."""
        if self.size is None or tuple(frames.shape[2:]) == self.size:
            return frames
        if self.resize == "cover":
            return resize_crop(frames, self.size)
        return resize(frames, self.size, antialias=self.resize != "stretch_aliased")


@dataclass(frozen=True)
class VideoClips:
    """Clips of a tree's videos, decoded when they are read.

    Attributes:
        root: the tree.
        chosen: (video, first frame) of each clip.
        shape: which frames and what size.
    """

    root: Path
    chosen: tuple[tuple[Video, int], ...]
    shape: ClipShape

    def read(self, first: int, last: int) -> Iterator[Tensor]:
        per_read = max(1, FRAMES_PER_READ // self.shape.rule.frames)
        for _, group in groupby(self.chosen[first:last], key=lambda each: each[0].path):
            clips = list(group)
            starts = [video.first + start for video, start in clips]
            for i in range(0, len(starts), per_read):
                yield from self._read(clips[0][0], starts[i : i + per_read])

    def _read(self, video: Video, starts: list[int]) -> Iterator[Tensor]:
        """Clips of one file out of one pass over it: neighbours share frames and the way from the key frame."""
        wanted = sorted({frame for start in starts for frame in clip_indices(self.shape.rule, start)})
        frames = read_frames(self.root / video.path, wanted, BACKEND, seek=not video.from_start, display=video.display)
        frames = self.shape.resized(frames)
        position = {frame: i for i, frame in enumerate(wanted)}
        for start in starts:
            clip = frames[[position[frame] for frame in clip_indices(self.shape.rule, start)]]
            yield rearrange(clip, "t c h w -> c t h w").contiguous()


@dataclass(frozen=True)
class GeneratedClips:
    """Clips of a generator, made when they are read.

    Attributes:
        generator: makes them.
        chosen: numbers of the clips.
        shape: which frames and what size.
        start: where clips start, see `Protocol`.
        least_frames: that a clip has to come with.
        seed: of random starts.
    """

    generator: ClipGenerator
    chosen: tuple[int, ...]
    shape: ClipShape
    start: str
    least_frames: int
    seed: int

    def read(self, first: int, last: int) -> Iterator[Tensor]:
        for number in self.chosen[first:last]:
            clip = self.generator.make(number)
            self._check(number, clip)
            start, *_ = clip_starts(self.shape.rule, clip.shape[1], self.start, draws("fake", self.seed, number), 1)
            frames = rearrange(clip[:, clip_indices(self.shape.rule, start)], "c t h w -> t c h w")
            yield rearrange(self.shape.resized(frames), "t c h w -> c t h w").contiguous()

    def _check(self, number: int, clip: Tensor) -> None:
        name = f"{self.generator.name}: clip {number}"
        if not isinstance(clip, Tensor) or clip.dtype != torch.uint8 or clip.ndim != 4 or len(clip) != 3:
            found = f"{clip.dtype} {tuple(clip.shape)}" if isinstance(clip, Tensor) else type(clip).__name__
            raise ValueError(f"{name} is to be uint8 (3, T, H, W), got {found}")
        if clip.shape[1] < self.least_frames:
            raise ValueError(f"{name} has {clip.shape[1]} frames, the protocol needs {self.least_frames}")
