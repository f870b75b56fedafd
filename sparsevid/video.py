"""Writing clips: MP4 (PyAV), GIF, PNG frames, contact sheets.

Dimensions: N clips, C = 3 channels (RGB), T frames, H height, W width. A clip is a uint8 tensor (C,T,H,W).

Files appear whole: they are written under a temporary name in their folder and renamed.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

GAP = 2  # pixels between the pictures of a contact sheet
CAPTION_HEIGHT = 14  # pixels: a line of Pillow's default font
MAX_GIF_FPS = 100  # a GIF counts hundredths of a second


def write_mp4(path: str | Path, clip: Tensor, fps: float, crf: int = 18) -> None:
    """Write H.264 in 4:2:0, which every player shows. It needs even sides: an odd one is padded by a copy of its edge.

    Args:
        path: the file; its folder exists.
        clip: uint8 (C,T,H,W).
        fps: frames a second.
        crf: constant rate factor of x264, 0 (lossless but for the colour subsampling) to 51.

    Raises:
        ValueError: not a uint8 clip, or a number out of range.
    """
    frames = _frames(clip)
    if not fps > 0 or not 0 <= crf <= 51:
        raise ValueError(f"fps must be positive and crf within 0 to 51, got fps={fps}, crf={crf}")
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    with _renamed(Path(path)) as draft, av.open(str(draft.absolute()), "w", format="mp4") as container:
        # 1001 is the denominator of the broadcast rates, such as 30000/1001.
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def write_gif(path: str | Path, clip: Tensor, fps: float, scale: int = 1) -> None:
    """Write an endless GIF.

    Args:
        path: the file; its folder exists.
        clip: uint8 (C,T,H,W).
        fps: frames a second, at most 100 (many viewers slow down above 50). Each frame lasts whole hundredths of a
            second, spread so that the sum is right.
        scale: each pixel becomes this many in width and in height.

    Raises:
        ValueError: not a uint8 clip, or a number out of range.
    """
    if not 0 < fps <= MAX_GIF_FPS:
        raise ValueError(f"a GIF shows above 0 and up to {MAX_GIF_FPS} frames a second, got fps={fps}")
    images = [_enlarge(frame, scale) for frame in _frames(clip)]
    ends = [round(100 * (i + 1) / fps) for i in range(len(images))]
    durations = [10 * (end - begin) for begin, end in zip([0, *ends], ends, strict=False)]  # milliseconds
    with _renamed(Path(path)) as draft:
        images[0].save(draft, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)


def write_frames(folder: str | Path, clip: Tensor) -> None:
    """Write `000000.png`, `000001.png`, … without loss.

    Args:
        folder: made if it is missing. Frames of an earlier clip are replaced.
        clip: uint8 (C,T,H,W).

    Raises:
        ValueError: not a uint8 clip.
        FileExistsError: the folder holds later PNG frames, which would be taken for this clip's.
    """
    folder = Path(folder)
    frames = _frames(clip)
    names = [f"{index:06d}.png" for index in range(len(frames))]
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted({entry.name for entry in folder.iterdir() if entry.suffix == ".png"} - set(names))
    if others:
        raise FileExistsError(f"{folder} holds {others[0]}, not of this clip of {len(frames)} frames; empty it first")
    for name, frame in zip(names, frames, strict=True):
        with _renamed(folder / name) as draft:
            Image.fromarray(frame).save(draft, format="PNG")


def contact_sheet(
    clips: Tensor | Sequence[Tensor], captions: Sequence[str] | None = None, max_frames: int = 8, scale: int = 1
) -> Image.Image:
    """Clips in rows, frames in columns, a thin white gap between them.

    Args:
        clips: uint8 (N,C,T,H,W).
        captions: N lines, each above its row.
        max_frames: of a longer clip this many frames are shown, evenly spaced, with the first and the last.
        scale: each pixel becomes this many in width and in height.

    Returns:
        An RGB image.

    Raises:
        ValueError: not uint8 clips of one size, another number of captions, or a number out of range.
    """
    rows = [_frames(clip) for clip in clips]
    if not rows or len({row.shape for row in rows}) != 1:
        raise ValueError(f"a contact sheet needs clips of one size, got (T,H,W,C) {[row.shape for row in rows]}")
    if captions is not None and len(captions) != len(rows):
        raise ValueError(f"{len(captions)} captions for {len(rows)} clips")
    if max_frames < 1:
        raise ValueError(f"max_frames must be 1 or more, got {max_frames}")
    count = min(max_frames, len(rows[0]))
    shown = np.linspace(0, len(rows[0]) - 1, count).round().astype(int)
    height, width = rows[0].shape[1] * scale, rows[0].shape[2] * scale
    line = CAPTION_HEIGHT if captions is not None else 0
    sheet = Image.new("RGB", (count * (width + GAP) - GAP, len(rows) * (height + GAP + line) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        top = i * (height + GAP + line)
        if captions is not None:
            draw.text((1, top), captions[i], fill="black")
        for j, frame in enumerate(row[shown]):
            sheet.paste(_enlarge(frame, scale), (j * (width + GAP), top + line))
    return sheet


def write_contact_sheet(
    path: str | Path,
    clips: Tensor | Sequence[Tensor],
    captions: Sequence[str] | None = None,
    max_frames: int = 8,
    scale: int = 1,
) -> None:
    """Write a `contact_sheet` as PNG to `path`; the other arguments are its."""
    sheet = contact_sheet(clips, captions, max_frames, scale)
    with _renamed(Path(path)) as draft:
        sheet.save(draft, format="PNG", optimize=True)


def _frames(clip: Tensor) -> np.ndarray:
    """A clip as an array (T,H,W,C), checked."""
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[0] != 3 or 0 in clip.shape:
        raise ValueError(f"a clip is uint8 (3,T,H,W) with at least one frame, got {clip.dtype} {tuple(clip.shape)}")
    return np.ascontiguousarray(rearrange(clip, "c t h w -> t h w c").cpu().numpy())


def _enlarge(frame: np.ndarray, scale: int) -> Image.Image:
    """A frame (H,W,C) as an image, each pixel a square of `scale` pixels."""
    if scale < 1:
        raise ValueError(f"scale must be a whole number from 1, got {scale}")
    image = Image.fromarray(frame)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder; renamed to `path` if all went well, removed if not."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
