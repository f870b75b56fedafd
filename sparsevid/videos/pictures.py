"""Image files: which formats are opened, by Pillow, and how many pictures a file holds."""

import struct
import zlib
from pathlib import Path

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

# Pillow also opens formats that run other programs (EPS): only those that are named are tried.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
_SEVERAL = ("PNG", "WEBP", "TIFF", "AVIF")  # of these a file may hold pictures that follow each other
_TIFF_USE = 254  # the tag that says what a picture of a TIFF is for:
_TIFF_NO_PAGE = 0b101  # a smaller copy, or a mask
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def open_picture(path: Path) -> ImageFile:
    """An image file whose header has been read.

    Raises:
        OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, DecompressionBombError: it cannot be; see BROKEN.
    """
    Image.init()  # AVIF came late to Pillow
    return Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN])


def is_animation(path: Path) -> bool:
    """Whether an image file holds several pictures; what cannot be opened does not."""
    try:
        with open_picture(path) as image:
            return len(shown_pictures(image)) > 1
    except BROKEN:
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


def _tiff_use(image: Image.Image, number: int) -> int:
    image.seek(number)
    return image.tag_v2.get(_TIFF_USE, 0) if isinstance(image, TiffImageFile) else 0
