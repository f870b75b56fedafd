"""Files of a data tree: which count at all, what they are by their first bytes, and their natural order."""

import os
import re
from pathlib import Path
from typing import Literal

from sparsevid.videos.array_files import ARCHIVE_HEAD, ARRAY_HEAD, claims_clips
from sparsevid.videos.pictures import is_animation

Kind = Literal["video", "image", "animation", "array"]
VIDEO_EXTENSIONS = (
    ".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".gif", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".vob", ".ps", ".m2v",
    ".flv", ".f4v", ".wmv", ".asf", ".ogv", ".ogm", ".3gp", ".3g2", ".mxf", ".dv", ".rm", ".rmvb", ".nut", ".ivf", ".y4m",
    ".h264", ".hevc", ".wtv",
)  # fmt: skip
IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".apng"
)  # fmt: skip
IGNORED_NAMES = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_HEAD = 4096  # bytes that tell the kinds apart
# QuickTime and MP4 begin with a box: four bytes of length, then its type.
_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_VIDEOS = (
    b"\x1aE\xdf\xa3",  # Matroska and WebM
    b"GIF87a",
    b"GIF89a",
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG-1 and MPEG-2 without a container
    b"\x00\x00\x01\xb0",  # MPEG-4 without a container
    b"\x00\x00\x00\x01\x67",  # H.264 without a container
    b"\x00\x00\x00\x01\x40\x01",  # HEVC without a container
    b"FLV\x01",
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02",  # MXF
    b"\x1f\x07\x00",  # DV
    b"DKIF",  # IVF
    b".RMF",  # RealMedia
    b"nut/multimedia container\x00",
    b"YUV4MPEG2 ",
    b"\xb7\xd8\x00\x20\x37\x49\xda\x11\xa6\x4e\x00\x07\xe9\x5e\xad\x8d",  # WTV
)
# Containers of sound as often as of video: what says that there is video in them, near their beginning.
_OGG, _OGG_VIDEOS = b"OggS", (b"\x80theora", b"OVP80", b"BBCD\x00", b"\x01video\x00")
_ASF, _ASF_VIDEOS = b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", (b"\xc0\xef\x19\xbc\x4d\x5b\xcf\x11\xa8\xfd\x00\x80\x5f\x5c\x44\x2b",)
# MPEG transport stream: a byte at the start of every packet; (its place in the first packet, length of a packet).
_TS_SYNC, _TS_PACKETS = b"G", ((0, 188), (4, 192), (0, 204))
_IMAGES = (b"\xff\xd8\xff", b"BM", b"P5", b"P6")  # JPEG, BMP, PNM
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"II*\x00", b"MM\x00*")  # PNG, TIFF: of which there may be several in a file
# Brands of files that begin as MP4 does: AVIF; other images, of which FFmpeg would read a tile; sound.
_AVIF_BRANDS, _OTHER_BRANDS = {b"avif", b"avis"}, {b"heic", b"heix", b"heim", b"heis", b"mif1", b"M4A ", b"M4B "}
# An extension of which each file is looked into: others are believed, once one file in a folder has proved it.
_OFTEN_ANIMATED = (".webp", ".tif", ".tiff", ".avif", ".apng")


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is no part of any data: hidden, or litter of an operating system."""
    return name.startswith(".") or name in IGNORED_NAMES


def kind_of(path: Path) -> Kind | None:
    """What a file is by its first bytes, whatever its name says; None for anything else, also if it is empty.

    An array file is a video only if its array has the axes of clips: labels and features may lie beside videos and frames.
    An image file that holds several pictures is an animation: a video.

    Raises:
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith((ARRAY_HEAD, ARCHIVE_HEAD)):
        return "array" if claims_clips(path) else None
    brands = _brands(head)
    if head.startswith(_PICTURES) or _riff(head) == b"WEBP" or brands & _AVIF_BRANDS:
        return "animation" if is_animation(path) else "image"
    if head.startswith(_IMAGES):
        return "image"
    return "video" if _is_video(head) and not brands & _OTHER_BRANDS else None


def is_believed(name: str) -> bool:
    """Whether the extension is one of still images: one of a folder having proved to be, the others need not be opened."""
    extension = os.path.splitext(name)[1].lower()
    return extension in IMAGE_EXTENSIONS and extension not in _OFTEN_ANIMATED


def _is_video(head: bytes) -> bool:
    if head.startswith(_OGG):
        return any(mark in head for mark in _OGG_VIDEOS)
    if head.startswith(_ASF):
        return any(mark in head for mark in _ASF_VIDEOS)
    if head.startswith(_VIDEOS) or head[4:8] in _BOXES or _riff(head) == b"AVI ":
        return True
    places = ([head[first + i * length :][:1] for i in range(3)] for first, length in _TS_PACKETS)
    return any(place == [_TS_SYNC] * 3 for place in places)


def _riff(head: bytes) -> bytes:
    """What a RIFF file holds; nothing if it is none."""
    return head[8:12] if head.startswith(b"RIFF") else b""


def _brands(head: bytes) -> set[bytes]:
    """What a file that begins as MP4 does says that it is; nothing if it does not."""
    if head[4:8] != b"ftyp":
        return set()
    end = int.from_bytes(head[:4], "big")
    return {head[8:12], *(head[i : i + 4] for i in range(16, min(end, len(head)), 4))}


def natural_key(name: str) -> tuple:
    """Sort key of a path that puts clip2 before clip10, and a/b before a-b; equal numbers go by spelling."""
    parts = [[int(p) if i % 2 else p for i, p in enumerate(re.split(r"([0-9]+)", part))] for part in name.split("/")]
    return parts, name
