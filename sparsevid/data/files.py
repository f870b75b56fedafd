"""Files of a data tree: which count at all, what they are by their first bytes, and their natural order."""

import re
from pathlib import Path
from typing import Literal

from sparsevid.data.array_files import ARCHIVE_HEAD, ARRAY_HEAD, claims_clips

Kind = Literal["video", "image", "array"]
VIDEO_EXTENSIONS = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".gif")
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
IGNORED_NAMES = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_HEAD = 16  # bytes that tell the kinds apart
# QuickTime and MP4 begin with a box: four bytes of length, then its type.
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_VIDEOS = (b"\x1aE\xdf\xa3", b"GIF87a", b"GIF89a")  # Matroska and WebM; GIF
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\x00", b"MM\x00*", b"P5", b"P6")  # JPEG, PNG, BMP, TIFF, PNM
_RIFF = {b"AVI ": "video", b"WEBP": "image"}


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is no part of any data: hidden, or litter of an operating system."""
    return name.startswith(".") or name in IGNORED_NAMES


def kind_of(path: Path) -> Kind | None:
    """What a file is by its first bytes, whatever its name says; None for anything else, also if it is empty.

    An array file is a video only if its array has the axes of clips: labels and features may lie beside videos and frames.

    Raises:
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"RIFF"):
        return _RIFF.get(head[8:12])
    if head.startswith((ARRAY_HEAD, ARCHIVE_HEAD)):
        return "array" if claims_clips(path) else None
    if head.startswith(_VIDEOS) or head[4:8] in _BOXES:
        return "video"
    return "image" if head.startswith(_IMAGES) else None


def natural_key(name: str) -> tuple:
    """Sort key of a path that puts clip2 before clip10, and a/b before a-b; equal numbers go by spelling."""
    parts = [[int(p) if i % 2 else p for i, p in enumerate(re.split(r"([0-9]+)", part))] for part in name.split("/")]
    return parts, name
