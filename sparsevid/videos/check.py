"""Whether the file of a clip is whole: opened and decoded to its end, as `write` wrote it.

Dimensions: C = 3 channels (RGB), T frames, H height, W width.
"""

import os
from pathlib import Path

import av
import numpy as np
from PIL import Image

from sparsevid.system.logging import get_logger
from sparsevid.videos.write import EVERY_FORMAT, GIF_TRAILER, frame_names, gif_comment, mp4_size

logger = get_logger(__name__)


def clip_file_is_whole(path: str | Path, format: str, frames: int, height: int, width: int) -> bool:
    """Decode a file that `write_clip` wrote.

    Args:
        path: the file, or the folder of frames.
        format: a key of `EVERY_FORMAT`.
        frames: T of the clip.
        height, width: of the clip.

    Returns:
        Whether it is there and gives so many frames of this size, none of which its decoder refuses or marks as damaged. So a
        file that is broken off, empty, of another format, or of a clip of another size is not whole; single wrong bytes are
        passed over where FFmpeg's decoder does so. What a decoder refuses is logged with its reason.

    Raises:
        ValueError: no such format.
    """
    if format not in EVERY_FORMAT:
        raise ValueError(f"no clip format {format!r}; accepted are {', '.join(EVERY_FORMAT)}")
    path = Path(path)
    if not (path.is_dir() if format == "frames" else path.is_file()):
        return False
    try:
        return CHECKS[format](path, frames, height, width)
    # What damaged content makes Pillow, zipfile, NumPy and FFmpeg raise has no common base: IndexError, AttributeError,
    # NotImplementedError, RuntimeError, zlib.error, MemoryError and others were seen.
    except Exception as error:
        logger.warning("%s is not whole: %s: %s", path, type(error).__name__, error)
        return False


def _ffv1_is_whole(path: Path, frames: int, height: int, width: int) -> bool:
    return _decoded_sizes(path, "matroska") == [(height, width)] * frames


def _mp4_is_whole(path: Path, frames: int, height: int, width: int) -> bool:
    return _decoded_sizes(path, "mp4") == [mp4_size(height, width)] * frames


def _decoded_sizes(path: Path, container: str) -> list[tuple[int, int]]:
    """(H,W) of each frame; one that its decoder marks as damaged counts as (0,0)."""
    with av.open(str(path.absolute()), format=container) as opened:
        stream = opened.streams.video[0]
        stream.codec_context.thread_count = 1
        return [(0, 0) if frame.is_corrupt else (frame.height, frame.width) for frame in opened.decode(stream)]


def _gif_is_whole(path: Path, frames: int, height: int, width: int) -> bool:
    """The comment tells the number of frames: files of before have one for equal neighbours. The trailer is the file's end."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != GIF_TRAILER:
            return False
    with Image.open(path, formats=["GIF"]) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            image.load()
        return image.info.get("comment") == gif_comment(frames) and image.size == (width, height)


def _frames_are_whole(folder: Path, frames: int, height: int, width: int) -> bool:
    shown = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}  # not what a file browser leaves
    if shown != set(frame_names(frames)):
        return False
    return {_png_size(folder / name) for name in frame_names(frames)} == {(width, height)}


def _png_is_whole(path: Path, frames: int, height: int, width: int) -> bool:
    return frames == 1 and _png_size(path) == (width, height)


def _png_size(path: Path) -> tuple[int, int]:
    with Image.open(path, formats=["PNG"]) as image:
        image.load()
        return image.size


def _npz_is_whole(path: Path, frames: int, height: int, width: int) -> bool:
    with np.load(path, allow_pickle=False) as archive:
        array, fps = archive["frames"], archive["fps"]
    return array.dtype == np.uint8 and array.shape == (frames, height, width, 3) and fps.shape == () and bool(fps > 0)


CHECKS = {
    "ffv1": _ffv1_is_whole,
    "mp4": _mp4_is_whole,
    "gif": _gif_is_whole,
    "png": _png_is_whole,
    "frames": _frames_are_whole,
    "npz": _npz_is_whole,
}
