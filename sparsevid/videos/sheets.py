"""Many clips in one picture or one video: contact sheets, boards of pictures, grids.

Dimensions: N clips, C = 3 channels (RGB), T frames, H height, W width. A clip is a uint8 tensor (C,T,H,W).
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import repeat
from PIL import Image, ImageDraw
from torch import Tensor

from sparsevid.system.atomic import renamed
from sparsevid.videos.write import FORMATS, enlarge, frames_of

GAP = 2  # pixels between the pictures of a contact sheet
BLOCK_GAP = 10  # pixels between the blocks of a board
CAPTION_HEIGHT = 14  # pixels: a line of Pillow's default font
ELLIPSIS = "…"


def contact_sheet(
    clips: Tensor | Sequence[Tensor],
    captions: Sequence[str] | None = None,
    max_frames: int = 8,
    scale: int = 1,
    beside: bool = False,
) -> Image.Image:
    """Clips in rows, frames in columns, a thin white gap between them.

    Args:
        clips: uint8 (N,C,T,H,W).
        captions: N lines, each above its row; what is wider than the row is cut and ends in "…".
        max_frames: of a longer clip this many frames are shown, evenly spaced, with the first and the last.
        scale: each pixel becomes this many in width and in height.
        beside: write the captions, uncut, to the left of their rows.

    Returns:
        An RGB image.

    Raises:
        ValueError: not uint8 clips of one size, another number of captions, or a number out of range.
    """
    rows = _rows_of(clips, captions)
    if max_frames < 1:
        raise ValueError(f"max_frames must be 1 or more, got {max_frames}")
    count = min(max_frames, len(rows[0]))
    shown = np.linspace(0, len(rows[0]) - 1, count).round().astype(int)
    height, width = rows[0].shape[1] * scale, rows[0].shape[2] * scale
    if captions is not None and beside:
        frames = contact_sheet(clips, None, max_frames, scale)
        names = name_column(captions, [height] * len(rows))
        sheet = Image.new("RGB", (names.width + frames.width, frames.height), "white")
        sheet.paste(names, (0, 0))
        sheet.paste(frames, (names.width, 0))
        return sheet
    line = CAPTION_HEIGHT if captions is not None else 0
    sheet = Image.new("RGB", (count * (width + GAP) - GAP, len(rows) * (height + GAP + line) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        top = i * (height + GAP + line)
        if captions is not None:
            draw.text((1, top), fitted(captions[i], sheet.width - 1), fill="black")
        for j, frame in enumerate(row[shown]):
            sheet.paste(enlarge(frame, scale), (j * (width + GAP), top + line))
    return sheet


def write_contact_sheet(
    path: str | Path,
    clips: Tensor | Sequence[Tensor],
    captions: Sequence[str] | None = None,
    max_frames: int = 8,
    scale: int = 1,
    beside: bool = False,
) -> None:
    """Write a `contact_sheet` as PNG to `path`; the other arguments are its."""
    _write_png(Path(path), contact_sheet(clips, captions, max_frames, scale, beside))


def legible_scale(height: int, width: int) -> int:
    """The scale of a sheet of clips of this size in pixels: of small ones little could be seen."""
    return 2 if max(height, width) <= 128 else 1


def name_column(names: Sequence[str], heights: Sequence[int]) -> Image.Image:
    """Names under one another, each in the middle of its row, as what stands beside rows of pictures.

    Args:
        names: lines of Pillow's default font; the widest one decides the width.
        heights: of the rows, in pixels, without the gap between them.

    Returns:
        An RGB image.
    """
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    width = math.ceil(max(draw.textlength(name) for name in names)) + BLOCK_GAP
    column = Image.new("RGB", (width, sum(heights) + GAP * (len(heights) - 1)), "white")
    draw, top = ImageDraw.Draw(column), 0
    for name, height in zip(names, heights, strict=True):
        draw.text((2, top + height / 2), name, fill="black", anchor="lm")
        top += height + GAP
    return column


def board(blocks: Sequence[Image.Image], captions: Sequence[str], columns: int) -> Image.Image:
    """Pictures side by side, such as contact sheets, each under its caption.

    Args:
        blocks: row by row; they may differ in size.
        captions: a line for each; what is wider than its column is cut and ends in "…".
        columns: blocks of a row.

    Returns:
        An RGB image.

    Raises:
        ValueError: no block, another number of captions, or a number out of range.
    """
    if not blocks or len(captions) != len(blocks) or columns < 1:
        raise ValueError(
            "a board has blocks, a caption for each and columns from 1, got "
            f"{len(blocks)} blocks, {len(captions)} captions, columns={columns}"
        )
    columns = min(columns, len(blocks))
    width, height = max(block.width for block in blocks), CAPTION_HEIGHT + max(block.height for block in blocks)
    rows = math.ceil(len(blocks) / columns)
    size = (columns * (width + BLOCK_GAP) - BLOCK_GAP, rows * (height + BLOCK_GAP) - BLOCK_GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, (block, caption) in enumerate(zip(blocks, captions, strict=True)):
        row, column = divmod(index, columns)
        left, top = column * (width + BLOCK_GAP), row * (height + BLOCK_GAP)
        draw.text((left + 1, top), fitted(caption, width - 1), fill="black")
        sheet.paste(block, (left, top + CAPTION_HEIGHT))
    return sheet


def write_board(path: str | Path, blocks: Sequence[Image.Image], captions: Sequence[str], columns: int) -> None:
    """Write a `board` as PNG to `path`; the other arguments are its."""
    _write_png(Path(path), board(blocks, captions, columns))


def clip_grid(
    clips: Tensor | Sequence[Tensor], columns: int | None = None, scale: int = 1, names: Sequence[str] | None = None
) -> Tensor:
    """Clips side by side that play together, as one clip; what the last row lacks is white.

    Args:
        clips: uint8 (N,C,T,H,W).
        columns: clips of a row; default: as many as rows, or one more.
        scale: each pixel becomes this many in width and in height.
        names: of the rows, written to their left.

    Returns:
        uint8 (C,T,H',W').

    Raises:
        ValueError: not uint8 clips of one size, another number of names than rows, or a number out of range.
    """
    _rows_of(clips, None)
    columns = math.ceil(math.sqrt(len(clips))) if columns is None else columns
    if columns < 1 or scale < 1:
        raise ValueError(f"a grid has columns and a scale from 1, got columns={columns}, scale={scale}")
    columns = min(columns, len(clips))
    channels, frames, height, width = clips[0].shape
    height, width, rows = height * scale, width * scale, math.ceil(len(clips) / columns)
    size = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP)
    grid = torch.full((channels, frames, *size), 255, dtype=torch.uint8)
    for index, clip in enumerate(clips):
        top, left = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        large = clip.repeat_interleave(scale, dim=-2).repeat_interleave(scale, dim=-1)
        grid[..., top : top + height, left : left + width] = large
    if names is None:
        return grid
    if len(names) != rows:
        raise ValueError(f"{len(names)} names for {rows} rows")
    column = torch.from_numpy(np.array(name_column(names, [height] * rows)))
    return torch.cat([repeat(column, "h w c -> c t h w", t=frames), grid], dim=-1)


def write_grid(
    path: str | Path,
    clips: Tensor | Sequence[Tensor],
    fps: float,
    columns: int | None = None,
    scale: int = 1,
    names: Sequence[str] | None = None,
) -> None:
    """Write a `clip_grid` as one video or GIF; the other arguments are its.

    Args:
        path: the file; its suffix is one of those in `FORMATS`, such as .mp4 or .gif.
        fps: frames a second.

    Raises:
        ValueError: another suffix, or see `clip_grid`.
        OSError: the file cannot be written.
    """
    path = Path(path)
    writers = {each.suffix: each.write for each in FORMATS.values() if each.suffix}
    if path.suffix.lower() not in writers:
        raise ValueError(f"a grid of clips is written as {', '.join(writers)}, got the name {path.name!r}")
    writers[path.suffix.lower()](path, clip_grid(clips, columns, scale, names), fps)


def fitted(caption: str, width: int) -> str:
    """A line of Pillow's default font, cut so that it with a final "…" is at most `width` pixels wide, if it is wider."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    if draw.textlength(caption) <= width:
        return caption
    fits = bisect_right(range(1, len(caption)), float(width), key=lambda end: draw.textlength(caption[:end] + ELLIPSIS))
    return caption[:fits].rstrip() + ELLIPSIS


def _rows_of(clips: Tensor | Sequence[Tensor], captions: Sequence[str] | None) -> list[np.ndarray]:
    """Clips as arrays (T,H,W,C), checked to be of one size and as many as captions."""
    rows = [frames_of(clip) for clip in clips]
    if not rows or len({row.shape for row in rows}) != 1:
        raise ValueError(f"a contact sheet needs clips of one size, got (T,H,W,C) {[row.shape for row in rows]}")
    if captions is not None and len(captions) != len(rows):
        raise ValueError(f"{len(captions)} captions for {len(rows)} clips")
    return rows


def _write_png(path: Path, image: Image.Image) -> None:
    with renamed(path) as draft:
        image.save(draft, format="PNG", optimize=True)
