"""Image files, by Pillow: which formats are opened, how many pictures a file holds, and their pixels.

Dimensions: H height, W width, C = 3 channels (RGB).

JPEG, PNG, WebP, AVIF, BMP, TIFF and PNM are read. Grey and palettes become RGB; alpha is dropped, not composited; an EXIF
orientation is not applied. 16 bits become 8 as v / 257, rounded (colour in TIFF and in animations: its high byte, which is at
most one level off).
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from sparsevid.data.decode_file import decode_deep_png
from sparsevid.data.reading import DecodeError

# Pillow also opens formats that run other programs (EPS): only those that are named are tried.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
_SEVERAL = ("PNG", "WEBP", "TIFF", "AVIF")  # of these a file may hold pictures that follow each other
_PNG_DEPTH = 24  # the byte of a PNG that says the bits of a channel
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes
_WIDE = ("I", "F")  # Pillow's modes of 32 bits; older versions give "I" for grey of 16 bits in these formats:
_SIXTEEN_BITS_AS_WIDE = ("PNG", "PPM")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_TIFF_USE = 254  # the tag that says what a picture of a TIFF is for:
_TIFF_NO_PAGE = 0b101  # a smaller copy, or a mask


@contextmanager
def opened(video: Path, file: Path) -> Iterator[Image.Image]:
    """An image whose header has been read. Errors inside become `DecodeError`s of the video.

    Args:
        video: the frame folder, or the image itself.
        file: the image.
    """
    try:
        with Image.open(file, formats=_available()) as image:
            limit = Image.MAX_IMAGE_PIXELS  # Pillow itself refuses from twice this limit on
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels, above Pillow's limit of {limit}")
            yield image
    except _BROKEN as error:
        name = "" if file == video else f"frame {file.name}: "
        said = str(error).splitlines()[0].replace(repr(str(file)), "the file") if str(error) else type(error).__name__
        raise DecodeError(video, "not readable as an image", f"{name}{said}") from error


def is_animation(path: Path) -> bool:
    """Whether an image file holds several pictures; what cannot be opened does not."""
    try:
        with Image.open(path, formats=_available()) as image:
            return len(shown_pictures(image)) > 1
    except _BROKEN:
        return False


def shown_pictures(image: Image.Image) -> list[int]:
    """Numbers of the pictures of an image file that are to be shown one after the other; it is left at the first of them.

    None is a TIFF's small copy or mask of another, the picture of a PNG for those who cannot show animations, or what a camera
    puts behind a JPEG.
    """
    count = getattr(image, "n_frames", 1)
    if count == 1 or image.format not in _SEVERAL:
        return [0]
    shown = list(range(1 if image.info.get("default_image") else 0, count))
    if image.format == "TIFF":
        shown = [i for i in shown if not _tiff_use(image, i) & _TIFF_NO_PAGE] or [0]
    image.seek(shown[0])
    return shown


def to_rgb(image: Image.Image, file: Path) -> np.ndarray:
    """The current picture of an opened image as uint8 (H,W,C).

    Args:
        image: as `opened` gives it.
        file: what was opened.

    Raises:
        ValueError: its pixels have 32 bits.
    """
    if image.format == "PNG" and getattr(image, "n_frames", 1) == 1 and _png_depth(file) == 16:
        image.load()  # checks that the file is whole; of colour of 16 bits Pillow keeps the high byte alone
        deep = decode_deep_png(file.read_bytes())
        return _narrowed(deep[..., :3] if deep.shape[-1] >= 3 else deep[..., :1])
    if image.mode in _SIXTEEN_BITS or (image.mode in _WIDE and image.format in _SIXTEEN_BITS_AS_WIDE):
        return _narrowed(np.asarray(image)[..., None])
    if image.mode in _WIDE:
        raise ValueError(f"pixels of 32 bits (mode {image.mode}); accepted: 8 or 16 bits")
    image.info.pop("transparency", None)  # Pillow would warn that converting drops it, which is wanted
    return np.array(image.convert("RGB"))


def _available() -> list[str]:
    """The formats that this Pillow can open: AVIF came late."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _tiff_use(image: Image.Image, number: int) -> int:
    image.seek(number)
    return image.tag_v2.get(_TIFF_USE, 0)


def _png_depth(file: Path) -> int:
    with file.open("rb") as content:
        return content.read(_PNG_DEPTH + 1)[_PNG_DEPTH]


def _narrowed(deep: np.ndarray) -> np.ndarray:
    """16-bit (H,W,1) or (H,W,3) as uint8 (H,W,3): 0 stays 0, 65535 becomes 255."""
    narrow = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.broadcast_to(narrow, (*narrow.shape[:2], 3)).copy(order="C")
