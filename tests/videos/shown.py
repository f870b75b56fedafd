"""Videos that a player shows otherwise than they are stored, and what it shows, worked out straight."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import torch
import torch.nn.functional as F
from torch import Tensor
from videos.made import moving_pictures

Matrix = tuple[float, float, float, float]

# name → (a, b, c, d) of a display matrix, which shows a stored (x,y) at (a·x + c·y, b·x + d·y), and the same of frames
TURNS: dict[str, tuple[Matrix, Callable[[Tensor], Tensor]]] = {
    "none": ((1, 0, 0, 1), lambda frames: frames),
    "clockwise": ((0, 1, -1, 0), lambda frames: torch.rot90(frames, -1, (2, 3))),
    "half": ((-1, 0, 0, -1), lambda frames: torch.rot90(frames, 2, (2, 3))),
    "counterclockwise": ((0, -1, 1, 0), lambda frames: torch.rot90(frames, 1, (2, 3))),
    "mirrored": ((-1, 0, 0, 1), lambda frames: frames.flip(3)),
    "upside down": ((1, 0, 0, -1), lambda frames: frames.flip(2)),
    "transposed": ((0, 1, 1, 0), lambda frames: frames.transpose(2, 3)),
    "transverse": ((0, -1, -1, 0), lambda frames: torch.rot90(frames, 2, (2, 3)).transpose(2, 3)),
}


def write_shown(
    path: Path,
    codec: str = "libx264",
    *,
    matrix: Matrix | None = None,
    aspect: Fraction | None = None,
    size: tuple[int, int] = (48, 112),
    frames: int = 8,
    pixels: str = "yuv420p",
) -> Path:
    """Write `moving_pictures` with pixels of an aspect, and a display matrix (MP4 alone)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for picture in moving_pictures(frames, *size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    if matrix is not None:
        set_matrix(path, matrix)
    return path


def set_matrix(path: Path, matrix: Matrix) -> None:
    """Overwrite the display matrix of an MP4's track (ISO/IEC 14496-12, tkhd), in fixed point."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4
    start += 4 + (20 if content[start] == 0 else 32) + 16
    a, b, c, d = (round(value * 65536) for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def set_container_aspect(path: Path, width: int, height: int) -> None:
    """Overwrite the aspect of pixels that an MP4 states (pasp), and leave its stream's."""
    content = bytearray(path.read_bytes())
    start = content.index(b"pasp") + 4
    content[start : start + 8] = struct.pack(">2I", width, height)
    path.write_bytes(content)


def stretched(frames: Tensor, width: int) -> Tensor:
    """Frames uint8 (T,C,H,w) of another width."""
    resized = F.interpolate(frames.float(), (frames.shape[2], width), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)
