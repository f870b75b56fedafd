"""The walk: one pass over a tree of files says what its videos are, without decoding anything.

A video is a video file, an image file that holds several pictures, or an array file with clips; or a *frame folder*, a folder
that directly holds images and no video file, whatever the folder is called; or, in a tree of images, each image file. What a
file is, its first bytes say; of one whose name claims a video, FFmpeg is asked.
"""

import fnmatch
import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sparsevid.system.logging import get_logger
from sparsevid.videos.array_files import ARRAY_EXTENSIONS, other_layout
from sparsevid.videos.decode_file import holds_video
from sparsevid.videos.kinds import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, is_believed, is_ignored, kind_of, natural_key

MEDIA = ("video", "image")

Rejects = dict[str, list[str]]  # reason → paths below the root

# Reasons for which no video is missing: what may lie beside sound ones.
EMPTY_FOLDER, IMAGE_BESIDE, GIF_BESIDE = "empty folder", "image beside videos", "GIF beside more images"
ANIMATION_BESIDE, VIDEO_FOR_IMAGE = "animation beside more images", "a video, where images are read"
HARMLESS = (EMPTY_FOLDER, IMAGE_BESIDE, GIF_BESIDE, ANIMATION_BESIDE, VIDEO_FOR_IMAGE)

logger = get_logger(__name__)


@dataclass(frozen=True)
class Found:
    """A video of the tree, not looked into yet.

    Attributes:
        path: below the root, with forward slashes; "." is the root.
        bytes: size of the file, or of the frame folder's images together.
        folder: whether it is a frame folder.
    """

    path: str
    bytes: int
    folder: bool = False


@dataclass(frozen=True)
class Scan:
    """What a tree lists: names, sizes and times, nothing opened.

    Attributes:
        root: the tree.
        folders: folder below the root → (name, size in bytes, time of change in ns) of its files.
        rejects: links, folders and special files that cannot be used.
        signature: SHA-256 over all of it: the same for as long as nothing in the tree changes.
    """

    root: Path
    folders: dict[str, list[tuple[str, int, int]]]
    rejects: Rejects
    signature: str


def own_name(path: str) -> str:
    """The name of a video file without its extension; a frame folder's loses one only if it is a video's, as in `x.mp4/`."""
    name = PurePosixPath(path).name
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in VIDEO_EXTENSIONS + ARRAY_EXTENSIONS + IMAGE_EXTENSIONS else name


def without_extension(path: str) -> str:
    """The path of a video with its own name, as `own_name` has it."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{own_name(name)}"


def scan_tree(root: Path, ignore: Sequence[str] = ()) -> Scan:
    """List every file below a folder, following symbolic links.

    Args:
        root: the folder.
        ignore: names or `fnmatch` patterns of folders that are passed over with all that is in them.

    Returns:
        The listing. A folder that a link makes contain itself is entered once; broken links, folders that cannot be read
        and files that are neither data nor folder (pipes, devices) are rejected, and so are empty folders.
    """
    folders: dict[str, list[tuple[str, int, int]]] = {}
    rejects: Rejects = {}
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        folder, above = pending.pop()
        try:
            status = os.stat(root / folder)
            with os.scandir(root / folder) as listing:
                entries = [entry for entry in listing if not is_ignored(entry.name)]
        except OSError as error:
            rejects.setdefault(f"folder cannot be opened ({error.strerror})", []).append(folder or ".")
            continue
        here = (status.st_dev, status.st_ino)
        if here in above:
            logger.warning("%s: a symbolic link to a folder above it is not followed", root / folder)
            continue
        if not entries:
            rejects.setdefault(EMPTY_FOLDER, []).append(folder or ".")
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                found = entry.stat()
            except OSError as error:
                reason = "broken symbolic link" if entry.is_symlink() else f"cannot be looked at ({error.strerror})"
                rejects.setdefault(reason, []).append(path)
                continue
            if stat.S_ISDIR(found.st_mode):
                if not any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in ignore):
                    pending.append((path, above | {here}))
            elif stat.S_ISREG(found.st_mode):
                folders.setdefault(folder, []).append((entry.name, found.st_size, found.st_mtime_ns))
            else:  # opening a pipe would wait for ever
                rejects.setdefault("no regular file", []).append(path)
    return Scan(root, folders, rejects, _signature(folders, rejects))


def find_videos(scan: Scan, media: str = "video") -> tuple[list[Found], Rejects, Rejects]:
    """Tell the videos of a listing from everything else.

    Files with an image's extension are taken for images once one of their folder has proved to be: to open every frame of
    a large set takes longer than all else here. Images directly in the root are a video only if there is no other.

    Args:
        scan: the listing.
        media: `video`, or `image`: every image file is a video of one frame.

    Returns:
        The videos in natural order of their paths; all rejects, those of the listing included; and what else there is, which
        neither is a video or image nor claims to be.
    """
    found: list[Found] = []
    rejects = {reason: list(paths) for reason, paths in scan.rejects.items()}
    others: Rejects = {}
    loose: list[tuple[str, int]] = []  # images directly in the root
    for folder, files in scan.folders.items():
        videos, images = _sort_files(scan.root, folder, files, media, rejects, others)
        if media == "image":
            found += [Found(path, size) for path, size in images]
            _reject(rejects, VIDEO_FOR_IMAGE, videos)
            continue
        if len(images) > len(videos) and all(may_be_preview(path) for path, _ in videos):
            for path, size in videos:  # a preview of the frames, and not the video
                _reject(rejects, GIF_BESIDE if path.lower().endswith(".gif") else ANIMATION_BESIDE, [(path, size)])
            videos = []
        found += [Found(path, size) for path, size in videos]
        if videos:
            _reject(rejects, IMAGE_BESIDE, images)
        elif images and folder:
            found.append(Found(folder, sum(size for _, size in images), folder=True))
        elif images:
            loose = images
    if found:
        _reject(rejects, IMAGE_BESIDE, loose)
    elif loose:
        found.append(Found(".", sum(size for _, size in loose), folder=True))
    found.sort(key=lambda each: natural_key(each.path))
    return found, _in_order(rejects), _in_order(others)


def may_be_preview(path: str) -> bool:
    """Whether a video by this name may be a preview of what lies beside it: a GIF, or an image file with several pictures."""
    return os.path.splitext(path)[1].lower() in (".gif", *IMAGE_EXTENSIONS)


def namesakes(paths: Iterable[str]) -> list[str]:
    """Those of some files that share folder and name with another, but for the extension: perhaps one video in two formats."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(without_extension(path), []).append(path)
    return [path for group in groups.values() if len(group) > 1 for path in group]


def _sort_files(
    root: Path, folder: str, files: list[tuple[str, int, int]], media: str, rejects: Rejects, others: Rejects
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """A folder's videos and images, as (path, size); what only claims to be one is rejected, anything else counted."""
    videos: list[tuple[str, int]] = []
    images: list[tuple[str, int]] = []
    proved = media == "image"  # there each file is looked into anyway, one by one
    for name, size, _ in sorted(files):
        path = f"{folder}/{name}" if folder else name
        extension = os.path.splitext(name)[1].lower()
        if proved and is_believed(name):
            images.append((path, size))
            continue
        try:
            kind = kind_of(root / path)
        except OSError as error:
            rejects.setdefault(f"cannot be opened ({error.strerror})", []).append(path)
            continue
        if kind == "image" or (kind is None and proved and extension in IMAGE_EXTENSIONS):
            images.append((path, size))
            proved = proved or extension in IMAGE_EXTENSIONS
        elif kind is not None or (size and extension in VIDEO_EXTENSIONS and holds_video(root / path)):
            videos.append((path, size))
        elif extension in VIDEO_EXTENSIONS + IMAGE_EXTENSIONS:
            what = "video" if extension in VIDEO_EXTENSIONS else "image"
            rejects.setdefault(f"no {what} by its content" if size else "empty file (0 bytes)", []).append(path)
        else:
            reason = other_layout(root / path) if extension in ARRAY_EXTENSIONS else None
            others.setdefault(reason or f"no video or image: {extension or 'without extension'}", []).append(path)
    return videos, images


def _in_order(by_reason: Rejects) -> Rejects:
    return {reason: sorted(paths, key=natural_key) for reason, paths in by_reason.items()}


def _reject(rejects: Rejects, reason: str, files: list[tuple[str, int]]) -> None:
    if files:
        rejects.setdefault(reason, []).extend(path for path, _ in files)


def _signature(folders: dict[str, list[tuple[str, int, int]]], rejects: Rejects) -> str:
    digest = hashlib.sha256()
    for folder in sorted(folders):
        for name, size, time in sorted(folders[folder]):
            digest.update(f"{folder}/{name}\0{size}\0{time}\n".encode("utf-8", "surrogateescape"))
    for reason in sorted(rejects):
        for path in sorted(rejects[reason]):
            digest.update(f"{reason}\0{path}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
