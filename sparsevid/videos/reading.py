"""What all readers of videos share: their error, what they say of a video, the count of decoded frames, and a cache.

Dimensions: T frames, C = 3 channels (RGB), H height, W width.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

import torch
from einops import rearrange
from torch import Tensor

from sparsevid.system.errors import ExpectedError
from sparsevid.system.logging import get_logger

logger = get_logger(__name__)
Kept = TypeVar("Kept", bound=Sized)
FROM_START = "random access gives other frames: read from the start"  # a note of a `VideoInfo`


class DecodeError(ExpectedError):
    """A video, or a frame of it, cannot be read.

    Args:
        path: the video: a file or a frame folder.
        reason: what was found, without path and frame, so that equal reasons can be counted.
        detail: where in the video, and what the decoder said.
    """

    def __init__(self, path: str | Path, reason: str = "", detail: str = "") -> None:
        super().__init__(path, reason, detail)  # all, or the error could not be pickled by a loader's worker
        self.path, self.reason, self.detail = Path(path), reason, detail

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds.

    Attributes:
        frames: number that can be read.
        fps: frames a second, the mean where the rate varies or the header is wrong; None for frame folders and images, which
            do not say.
        width: in pixels.
        height: in pixels.
        header_frames: the header's number, without frames that are hidden or that an edit list cuts away, and packets that hold
            none; 0 if it says none.
        seconds: from the first frame shown to the last; None if unknown.
        variable_rate: whether the steps between frames differ by more than rounding.
        notes: short reasons to look at this video again, such as "variable frame rate".
        stored: (width, height) of its frames as they are stored, where a player shows them otherwise; else None.
    """

    frames: int
    fps: float | None
    width: int
    height: int
    header_frames: int = 0
    seconds: float | None = None
    variable_rate: bool = False
    notes: tuple[str, ...] = ()
    stored: tuple[int, int] | None = None

    def as_stored(self) -> "VideoInfo":
        """The same, of the stored pixels."""
        width, height = self.stored or (self.width, self.height)
        return replace(self, width=width, height=height, stored=None)


@dataclass
class DecodedCount:
    """How many frames were decoded, also those that were passed over on the way to the ones asked for."""

    frames: int = 0


_counts: list[DecodedCount] = []
_counts_lock = Lock()


@contextmanager
def count_decoded() -> Iterator[DecodedCount]:
    """Count the frames that this process decodes inside the block, in all its threads.

    decord decodes out of sight: of its frames, those that it returns are counted.

    Yields:
        An object whose `frames` is the number so far.
    """
    count = DecodedCount()
    with _counts_lock:
        _counts.append(count)
    try:
        yield count
    finally:
        with _counts_lock:
            _counts[:] = [other for other in _counts if other is not count]


def add_decoded(frames: int) -> None:
    """Tell every open `count_decoded` that so many frames more were decoded."""
    with _counts_lock:
        for count in _counts:
            count.frames += frames


def log_fallback(path: Path, reason: str) -> None:
    """Log that a video is read in another way than was asked for: one warning per folder and reason, not one per clip."""
    logger.debug("%s: %s", path, reason)
    _warn_once(path.parent, reason)


@lru_cache(maxsize=1024)
def _warn_once(folder: Path, reason: str) -> None:
    logger.warning("videos in %s: %s", folder, reason)


def stack(path: Path, frames: list[tuple[int, Tensor]], names: Callable[[int], str] = lambda i: f"frame {i}") -> Tensor:
    """Numbered frames (H,W,C) as one tensor.

    Args:
        path: the video, for the error.
        frames: T pairs of frame number and uint8 frame (H,W,C).
        names: what to call a frame in the error.

    Returns:
        uint8 (T,C,H,W), contiguous.

    Raises:
        DecodeError: the frames are not of one size.
    """
    first, expected = frames[0][0], frames[0][1].shape
    for i, frame in frames:
        if frame.shape != expected:
            sizes = f"{frame.shape[1]}x{frame.shape[0]}, {names(first)} is {expected[1]}x{expected[0]}"
            raise DecodeError(path, f"the size changes inside the video: {names(i)} is {sizes}")
    return rearrange(torch.stack([frame for _, frame in frames]), "t h w c -> t c h w").contiguous()


class SizedCache(Generic[Kept]):
    """The values used last, as many as have `limit` items together.

    `functools.lru_cache` counts values; a video may have ten frames or a million.

    Args:
        limit: the sum of `len(value)` over the values kept. A longer value is not kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.items = limit, 0
        self._values: OrderedDict[Hashable, Kept] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """The value, made if it is not kept, which becomes the last to be dropped."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        self._put(key, value)
        return value

    def _put(self, key: Hashable, value: Kept) -> None:
        """Keep a value, and drop those that were not used for longest until the limit holds."""
        with self._lock:
            if key in self._values:
                self.items -= len(self._values.pop(key))
            self._values[key] = value
            self.items += len(value)
            while self.items > self.limit:
                self.items -= len(self._values.popitem(last=False)[1])
