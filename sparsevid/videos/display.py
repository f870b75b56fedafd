"""How a player shows a stored frame: stretched by the aspect of its pixels, then turned or mirrored.

Phones store what the sensor saw, and write into the container how they were held; DV, DVD and many broadcasts store pixels that
are no squares. FFmpeg gives the rotation (of the container, or of the stream's own messages) with the first frame. Of the
aspects it takes the container's before the stream's, as players do.

Of images, only the EXIF orientation counts: viewers pass over the density.

Dimensions: H height, W width, C = 3 channels (RGB) of a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

# What is known of a video: nothing to do; shown otherwise than it is stored; the stored pixels, because they were asked for.
PLAIN, DISPLAYED, STORED = ("plain", "displayed", "stored")

OBLIQUE = "rotated by no multiple of 90 degrees, read as stored"
MIRRORED_OR_NOT = "rotated as the file says, mirrored or not: PyAV cannot read that"
SHOWN_OTHERWISE = "read as stored, a player shows it otherwise"
ODD_PIXELS = "pixels of an implausible aspect, read as stored"

SQUARE = Fraction(1)  # the aspect of a pixel
_SLACK = 0.0175  # the tangent of one degree, as in FFmpeg
_MOST = 10  # times as wide as high, or the reverse; pixels of standards reach 3
# 426x240 for 16:9: encoders and scalers that round the width write the rest into the aspect, and containers round that too.
_ROUNDING, _ROUNDING_PIXELS = Fraction(1, 100), 1


class Turn(NamedTuple):
    """One of the eight ways to lay a frame: rows and columns exchanged, then mirrored left to right, then top to bottom."""

    transposed: bool = False
    mirrored: bool = False
    upside_down: bool = False


STRAIGHT = Turn()
# By EXIF's number (JEITA CP-3451, Orientation): where the stored first row and first column are shown.
ORIENTATIONS = {
    1: STRAIGHT,
    2: Turn(mirrored=True),
    3: Turn(mirrored=True, upside_down=True),
    4: Turn(upside_down=True),
    5: Turn(transposed=True),
    6: Turn(transposed=True, mirrored=True),
    7: Turn(transposed=True, mirrored=True, upside_down=True),
    8: Turn(transposed=True, upside_down=True),
}
_BY_ANGLE = {0: STRAIGHT, -90: ORIENTATIONS[6], 90: ORIENTATIONS[8], 180: ORIENTATIONS[3], -180: ORIENTATIONS[3]}


@dataclass(frozen=True)
class Display:
    """How the frames of a video are shown.

    Attributes:
        aspect: width of a pixel by its height.
        turn: after stretching.
        notes: short reasons why something of what the file says is not done.
    """

    aspect: Fraction = SQUARE
    turn: Turn = STRAIGHT
    notes: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether frames are shown as they are stored."""
        return self.aspect == SQUARE and self.turn == STRAIGHT

    @property
    def upright(self) -> bool:
        """Whether the file holds no rotation, not even one that is left alone."""
        return self.turn == STRAIGHT and OBLIQUE not in self.notes

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels as shown, of those that are stored."""
        width = max(1, round(width * self.aspect))
        return (height, width) if self.turn.transposed else (width, height)

    def shown(self, frame: Tensor) -> Tensor:
        """A stored frame uint8 (H,W,C) as a player shows it, of `size`: bilinear with antialiasing, rounded."""
        height, width, _ = frame.shape
        if self.aspect != SQUARE:
            stretched = max(1, round(width * self.aspect))
            stored = rearrange(frame, "h w c -> 1 c h w").contiguous()
            frame = rearrange(resize(stored, (height, stretched)), "1 c h w -> h w c")
        if self.turn.transposed:
            frame = rearrange(frame, "h w c -> w h c")
        axes = [axis for axis, flipped in ((1, self.turn.mirrored), (0, self.turn.upside_down)) if flipped]
        return frame.flip(axes) if axes else frame


def display_of(stream: av.VideoStream, first: av.VideoFrame) -> Display:
    """How the frames of a stream are shown.

    Args:
        stream: of a container, with what its header says.
        first: its first frame, decoded.
    """
    aspect, notes = _aspect(stream, first.width)
    try:
        matrix: Any = first.side_data.get("DISPLAYMATRIX")  # a buffer, which PyAV's hints do not say
        turn = STRAIGHT if matrix is None else turn_of(np.frombuffer(matrix, np.int32).tolist())
    except ValueError:  # PyAV refuses all side data for the sake of a kind that it does not know, such as EXIF in MJPEG
        turn = _BY_ANGLE.get(first.rotation)
        notes += (MIRRORED_OR_NOT,) if turn not in (None, STRAIGHT) else ()
    return Display(aspect, STRAIGHT, (*notes, OBLIQUE)) if turn is None else Display(aspect, turn, notes)


def turn_of(matrix: Sequence[int]) -> Turn | None:
    """The turn that a display matrix describes.

    Args:
        matrix: its nine numbers in the order of FFmpeg and MP4: a stored (x,y) is shown at (m0·x + m3·y, m1·x + m4·y), but
            for a shift and a scale.

    Returns:
        None for a matrix that turns by another angle, or shears.
    """
    a, b, _, c, d, *_ = matrix
    if (a, c) == (0, 0) or (b, d) == (0, 0):  # some writers leave zeros
        return STRAIGHT
    for transposed, across, down, rest in ((False, a, d, (b, c)), (True, c, b, (a, d))):
        if max(map(abs, rest)) <= _SLACK * min(abs(across), abs(down)):
            return Turn(transposed, across < 0, down < 0)
    return None


def resize(frames: Tensor, size: tuple[int, int], *, antialias: bool = True) -> Tensor:
    """Scale uint8 frames (T,C,h,w) to `size` (H,W), whatever the aspect: bilinear, with antialiasing or without, rounded."""
    from torchvision.transforms.v2 import functional as F  # takes two seconds, and most frames stay as they are

    # In float32, because torchvision's integer kernel differs between processors; rounding is then ours to ask for.
    return F.resize(frames.float(), list(size), antialias=antialias).round().clamp(0, 255).to(torch.uint8)


def _aspect(stream: av.VideoStream, width: int) -> tuple[Fraction, tuple[str, ...]]:
    """Aspect of pixels, and notes on it. Unknown is 1, and so is what makes up for a rounded width alone."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    if not aspect or aspect < 0:
        return SQUARE, ()
    if not Fraction(1, _MOST) <= aspect <= _MOST:
        return SQUARE, (ODD_PIXELS,)
    if abs(aspect - 1) < _ROUNDING and abs(round(width * aspect) - width) <= _ROUNDING_PIXELS:
        return SQUARE, ()
    return aspect, ()
