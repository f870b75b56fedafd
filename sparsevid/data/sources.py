"""Where a dataset's frames come from: the videos themselves, or a copy of them in memory.

Dimensions: T frames, C channels, H height, W width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sparsevid.data.transforms import flip, resize_crop
from sparsevid.data.tree.manifest import Manifest, Video
from sparsevid.data.whole import video_frames
from sparsevid.system.logging import progress
from sparsevid.videos.read import DEFAULT_BACKEND, read_frames


class FrameSource(Protocol):
    """Frames of videos, all of one size.

    Attributes:
        moments: whether they are an autoencoder's moments in place of pixels.
    """

    moments: bool

    def read(self, video: Video, indices: Sequence[int], mirrored: bool) -> Tensor:
        """Frames (T,C,H,W) of a video, by number from its first, mirrored left to right if asked.

        Raises:
            DecodeError: a frame cannot be had.
        """


class VideoFrames:
    """Frames decoded when they are asked for; uint8, resized and cropped.

    Args:
        root: the manifest's root.
        size: (H,W) in pixels.
        backend: decoding backend, see `sparsevid.videos.read`.
    """

    moments = False

    def __init__(self, root: Path, size: tuple[int, int], backend: str = DEFAULT_BACKEND) -> None:
        self.root, self.size, self.backend = Path(root), (int(size[0]), int(size[1])), backend

    def read(self, video: Video, indices: Sequence[int], mirrored: bool) -> Tensor:
        numbers = [video.first + index for index in indices]
        frames = read_frames(self.root / video.path, numbers, self.backend, seek=not video.from_start, display=video.display)
        frames = resize_crop(frames, self.size)
        return flip(frames) if mirrored else frames


class MemoryFrames:
    """Every frame of every video, decoded and resized once, now: for sets that fit into memory.

    Args:
        manifest: the videos.
        size: (H,W) in pixels.

    Raises:
        DecodeError: a video cannot be decoded, or has another number of frames than the manifest says.
    """

    moments = False

    def __init__(self, manifest: Manifest, size: tuple[int, int]) -> None:
        # One tensor for all: each tensor that is handed to a worker process takes a file descriptor.
        self._frames = torch.empty(sum(video.frames for video in manifest.videos), 3, *size, dtype=torch.uint8)
        self._first: dict[tuple[str, int], int] = {}
        filled = 0
        for video in progress(manifest.videos, desc="decoding videos", delay=2):
            self._first[video.path, video.first] = filled
            for frames in video_frames(manifest.root, video, size):
                self._frames[filled : filled + len(frames)] = frames
                filled += len(frames)

    def read(self, video: Video, indices: Sequence[int], mirrored: bool) -> Tensor:
        first = self._first[video.path, video.first]
        frames = self._frames[[first + index for index in indices]]
        return flip(frames) if mirrored else frames
