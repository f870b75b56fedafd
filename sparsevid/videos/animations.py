"""Videos in image files that hold several pictures: animated WebP and PNG, AVIF sequences, TIFF of several pages.

Dimensions: T frames, C = 3 channels (RGB), H height, W width.

Pillow composes each picture from those before it, as a viewer shows it. What becomes of pixels is as in `frame_folder`, but
that of 16 bits in colour the high byte counts. A TIFF holds no times.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from sparsevid.videos.decode_file import VARIABLE_RATE
from sparsevid.videos.frame_folder import opened, to_rgb
from sparsevid.videos.pictures import shown_pictures
from sparsevid.videos.reading import DecodeError, VideoInfo, add_decoded, stack

_TICK = 0.001  # seconds: WebP counts milliseconds


def probe_animation(path: Path) -> VideoInfo:
    """`read.probe` of an image file with several pictures, all of which are decoded: no header says their times."""
    frames, size = 0, (0, 0)
    for frames, frame in enumerate(animation_frames(path), 1):
        size = size if frames > 1 else (frame.shape[0], frame.shape[1])
    times = animation_times(path)
    if not times:
        return VideoInfo(frames, None, size[1], size[0])
    step = times[-1] / max(1, frames - 1)
    variable = any(abs(time - i * step) > _TICK for i, time in enumerate(times))
    notes = (VARIABLE_RATE,) if variable else ()
    return VideoInfo(frames, 1 / step, size[1], size[0], seconds=times[-1], variable_rate=variable, notes=notes)


def read_animation(path: Path, indices: Sequence[int]) -> Tensor:
    """`read.read_frames` of an image file with several pictures: one pass up to the last frame asked for.

    Raises:
        DecodeError: a frame does not exist, cannot be decoded, or has another size than the first one asked for.
    """
    wanted, frames = set(indices), {}
    for number, frame in enumerate(animation_frames(path)):
        if number in wanted:
            frames[number] = frame
        if len(frames) == len(wanted):
            return stack(path, [(i, frames[i]) for i in indices])
    raise DecodeError(path, f"frame {max(wanted)} does not exist: {number + 1} frames can be read")


def animation_frames(path: Path) -> Iterator[Tensor]:
    """All frames in order, as uint8 (H,W,C).

    Raises:
        DecodeError: a picture cannot be decoded.
    """
    with opened(path, path) as image:
        for number in shown_pictures(image):
            image.seek(number)
            pixels = torch.from_numpy(to_rgb(image, path))
            add_decoded(1)
            yield pixels


def animation_times(path: Path) -> list[float]:
    """Seconds at which each frame is shown, the first at 0; empty if the file does not say.

    Raises:
        DecodeError: a picture cannot be decoded.
    """
    lasting = []
    with opened(path, path) as image:
        for number in shown_pictures(image):
            image.seek(number)
            image.load()  # not before does Pillow know how long a WebP's picture is shown
            lasting.append(float(image.info.get("duration") or 0) / 1000)
    return [0.0, *accumulate(lasting[:-1])] if all(lasting[:-1]) else []
