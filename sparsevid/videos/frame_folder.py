"""Videos made of images: a folder of them, also one named like a video file, or a single image, a video of one frame.

Dimensions: T frames, C = 3 channels (RGB), H height, W width.

The frames of a folder are its images in natural order of their names. Listing it opens no file whose extension is one of an
The frames of a folder are its images in natural order of their names. Listing it opens no file whose extension is one of an
image, but for those that are often animated; a frame is opened when it is asked for. JPEG, PNG, WebP, AVIF, BMP, TIFF and PNM
are read; a file with several pictures is no frame (`animations`). Grey and palettes become RGB; alpha is dropped, not
composited. 16 bits become 8 as v / 257, rounded (colour in TIFF: its high byte, which is at most one level off). Each image is
turned as its EXIF orientation says, unless stored pixels are wanted; in TIFF the orientation is part of the format, and always
counts. A manifest looks at a folder's first image alone: where that is not turned, none of the folder is.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from torch import Tensor

from sparsevid.system.logging import get_logger
from sparsevid.videos.decode_file import decode_deep_png
from sparsevid.videos.display import ORIENTATIONS, STRAIGHT, Display
from sparsevid.videos.kinds import IMAGE_EXTENSIONS, is_believed, is_ignored, kind_of, natural_key
from sparsevid.videos.pictures import BROKEN, open_picture, shown_pictures
from sparsevid.videos.reading import DecodeError, SizedCache, VideoInfo, add_decoded, stack

NUMBERING_HAS_GAPS = "numbering has gaps"
WITHOUT_NUMBERS = "frames without numbers in their names"

_PNG_DEPTH = 24  # the byte of a PNG that says the bits of a channel
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes
_WIDE = ("I", "F")  # Pillow's modes of 32 bits; older versions give "I" for grey of 16 bits in these formats:
_SIXTEEN_BITS_AS_WIDE = ("PNG", "PPM")
_CACHED_NAMES = 500_000  # some 80 bytes each
_ORIENTATION = ExifTags.Base.Orientation

logger = get_logger(__name__)
_listings: SizedCache[tuple[str, ...]] = SizedCache(_CACHED_NAMES)


def frame_names(folder: str | Path) -> tuple[str, ...]:
    """The images in a folder, not those in folders below it. The listing is remembered until the folder changes.

    Args:
        folder: the folder.

    Returns:
        Names in natural order ("frame2" before "frame10"; without numbers in order of letters).

    Raises:
        DecodeError: no such folder, or it cannot be listed.
    """
    folder = Path(folder)
    try:
        state = str(folder.absolute()), folder.stat().st_mtime_ns
        return _listings.get(state, partial(_listed, folder))
    except OSError as error:
        raise DecodeError(folder, f"the folder cannot be listed ({error.strerror})") from error


def _listed(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        return tuple(sorted((entry.name for entry in entries if _is_frame(entry)), key=natural_key))


def numbering_gaps(names: Sequence[str]) -> tuple[int, ...]:
    """Where the numbering of frames breaks off.

    A frame's number is the last one in its name that is not the same in all names. The usual step is the most common one; a
    step other than 1 must be that of at least half the frames, or the numbers are no numbering (times of day, say).

    Args:
        names: in natural order.

    Returns:
        Positions i >= 1 where the number of `names[i]` is not one usual step after that of `names[i - 1]`.
    """
    numbers = _numbers(names)
    steps = {
        i: after - before
        for i, (before, after) in enumerate(pairwise(numbers), start=1)
        if before is not None and after is not None
    }
    counts = Counter(step for step in steps.values() if step > 0)
    if not counts:
        return tuple(steps)
    usual = min(counts, key=lambda step: (-counts[step], step))
    if usual != 1 and 2 * counts[usual] < len(steps):
        return ()
    return tuple(i for i, step in steps.items() if step != usual)


def image_paths(path: Path) -> list[Path]:
    """The files of a video made of images, in order.

    Raises:
        DecodeError: the folder cannot be listed or holds no image.
    """
    if not path.is_dir():
        return [path]
    names = frame_names(path)
    if not names:
        raise DecodeError(path, "no image in the folder")
    return [path / name for name in names]


def probe_images(path: Path) -> VideoInfo:
    """`read.probe` of a frame folder, whose first frame is decoded, or of an image, of which only the header is read.

    There may be a million images in a set: what is damaged in one shows when it is read.
    """
    files = image_paths(path)
    with opened(path, files[0]) as image:
        _check_still(path, image)
        stored, display = image.size, _display_of(image)
        if path.is_dir():
            to_rgb(image, files[0])
            add_decoded(1)
    notes = []
    if len(files) > 1:
        names = [file.name for file in files]
        if numbering_gaps(names):
            notes.append(NUMBERING_HAS_GAPS)
        if None in _numbers(names):
            notes.append(WITHOUT_NUMBERS)
    width, height = display.size(*stored)
    return VideoInfo(len(files), None, width, height, notes=tuple(notes), stored=None if display.plain else stored)


def read_images(path: Path, indices: Sequence[int], display: bool = True) -> Tensor:
    """`read.read_frames` of a frame folder or an image: opens the frames that are asked for, each once.

    Args:
        path: the folder or image.
        indices: T frame numbers, at least one, from 0, in any order, repeats allowed.
        display: turn each as its EXIF orientation says.

    Returns:
        uint8 (T,C,H,W), RGB.

    Raises:
        DecodeError: a frame does not exist, cannot be decoded, or has another size than the first one asked for.
    """
    files = image_paths(path)
    if max(indices) >= len(files):
        raise DecodeError(path, f"frame {max(indices)} does not exist: {len(files)} frames can be read")
    frames = {i: _read_image(path, files[i], display) for i in sorted(set(indices))}
    return stack(path, [(i, frames[i]) for i in indices], names=lambda i: f"frame {i} ({files[i].name})")


def _is_frame(entry: os.DirEntry) -> bool:
    if is_ignored(entry.name) or not entry.is_file():
        return False
    if is_believed(entry.name):
        return True
    kind = kind_of(Path(entry.path))
    return kind == "image" or (kind is None and os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS)


def _numbers(names: Sequence[str]) -> list[int | None]:
    """The number of each frame; None for a name without digits. The extension does not count."""
    groups = [[int(digits) for digits in re.findall("[0-9]+", os.path.splitext(name)[0])][::-1] for name in names]
    least = min(map(len, groups), default=0)
    differing = (place for place in range(least) if len({group[place] for group in groups}) > 1)
    place = next(differing, 0)
    return [group[place] if len(group) > place else None for group in groups]


@contextmanager
def opened(video: Path, file: Path) -> Iterator[ImageFile]:
    """An image whose header has been read. Errors inside become `DecodeError`s of the video."""
    try:
        with open_picture(file) as image:
            limit = Image.MAX_IMAGE_PIXELS  # Pillow itself refuses from twice this limit on
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels, above Pillow's limit of {limit}")
            yield image
    except BROKEN as error:
        name = "" if file == video else f"frame {file.name}: "
        said = str(error).splitlines()[0].replace(repr(str(file)), "the file") if str(error) else type(error).__name__
        raise DecodeError(video, "not readable as an image", f"{name}{said}") from error


def _read_image(video: Path, file: Path, display: bool) -> Tensor:
    """An image as uint8 (H,W,C)."""
    with opened(video, file) as image:
        _check_still(video, image)
        how = _display_of(image) if display else Display()
        pixels = to_rgb(image, file)
    add_decoded(1)
    return how.shown(torch.from_numpy(pixels))


def _display_of(image: ImageFile) -> Display:
    """How viewers show an image whose pixels have not been read: by what stands before these."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return Display()  # Pillow turns TIFF by itself, and would read all of a PNG to look behind the pixels
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except BROKEN as error:  # viewers show it all the same
        logger.debug("%s: its EXIF cannot be read: %s", image.filename, error)
        return Display()
    return Display() if orientation is None else Display(turn=ORIENTATIONS.get(orientation, STRAIGHT))


def to_rgb(image: Image.Image, file: Path) -> np.ndarray:
    """The current picture of an opened image as uint8 (H,W,C)."""
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


def _png_depth(file: Path) -> int:
    with file.open("rb") as content:
        return content.read(_PNG_DEPTH + 1)[_PNG_DEPTH]


def _narrowed(deep: np.ndarray) -> np.ndarray:
    """16-bit (H,W,1) or (H,W,3) as uint8 (H,W,3): 0 stays 0, 65535 becomes 255."""
    narrow = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.broadcast_to(narrow, (*narrow.shape[:2], 3)).copy(order="C")


def _check_still(video: Path, image: ImageFile) -> None:
    """Raise a DecodeError of the video if an image of it holds several pictures: all but the first would be lost."""
    count = len(shown_pictures(image))
    if count > 1:
        name = Path(os.fsdecode(image.filename)).name
        raise DecodeError(video, "an animation where a still image is read", f"{name} holds {count} pictures")
