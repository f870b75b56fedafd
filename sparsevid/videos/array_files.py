"""Videos in NumPy files: a clip (T,H,W,3) or a stack of clips (N,T,H,W,3), uint8, in an .npy or an .npz file.

Dimensions: N clips of a stack, T frames of a clip, H height, W width, C = 3 channels (RGB).

The frames of a file are counted through, clip after clip: a stack has N·T. Only frames that are asked for are held in memory.
In an .npy file they are found at once. A compressed .npz archive is inflated up to the frame once in each process, so a large
stack that is read in random order belongs into an .npy file. Nothing is unpickled: an array of objects is no video.
"""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
import torch
from torch import Tensor

from sparsevid.videos.archive_members import Member
from sparsevid.videos.reading import DecodeError, SizedCache, VideoInfo, add_decoded, stack

ARRAY_EXTENSIONS = (".npy", ".npz")
ARRAY_HEAD = b"\x93NUMPY"
ARCHIVE_HEAD = b"PK\x03\x04"  # of a zip archive
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_BROKEN = (OSError, ValueError, EOFError, SyntaxError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
_MEMBER = ".npy"
ACCEPTED = "uint8 clips (T,H,W,3) or (N,T,H,W,3)"
OTHER_LAYOUT = "an array "  # how the reason of one that is not accepted begins
_PICTURE_AXES = 3  # from here on an array may be meant as pictures: grey (T,H,W)
_CACHED_BYTES = 100_000_000

# (offset, size) → bytes of an array's file
Read = Callable[[int, int], bytes]
_members: SizedCache[Member] = SizedCache(_CACHED_BYTES)


@dataclass(frozen=True)
class _Header:
    """What an .npy file says of its array, and where its first byte is."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int

    @property
    def claims_video(self) -> bool:
        """Whether the array has the axes of clips in colour, whatever its values are."""
        return len(self.shape) in (4, 5) and self.shape[-1] == 3

    def __str__(self) -> str:
        return f"{OTHER_LAYOUT}{self.dtype} {self.shape}; accepted: {ACCEPTED}"


def claims_clips(path: Path) -> bool:
    """Whether an array file is to be read as a video; labels, features and the like are none.

    What is damaged counts as one, so that whoever reads it can say so.
    """
    try:
        with path.open("rb") as file:
            if _is_plain(file):
                return _read_header(file).claims_video
            with zipfile.ZipFile(file) as archive:
                return bool(_clip_members(archive))
    except _BROKEN:
        return path.suffix.lower() in ARRAY_EXTENSIONS


def other_layout(path: Path) -> str | None:
    """What an array file holds that may be meant as clips and is none, as the reason to pass it over; None if nothing is.

    Labels and features, of two axes at most, are not meant so.
    """
    try:
        with path.open("rb") as file:
            headers = [_read_header(file)] if _is_plain(file) else [header for _, header in _headers(zipfile.ZipFile(file))]
    except _BROKEN:
        return None
    meant = (str(header) for header in headers if len(header.shape) >= _PICTURE_AXES or header.dtype.hasobject)
    return next(meant, None)


def probe_array(path: Path) -> VideoInfo:
    """`read.probe` of an array file; `frames` counts those of all its clips that are there."""
    with _clips(path) as (_, header), path.open("rb") as file:
        frames, size = math.prod(header.shape[:-3]), math.prod(header.shape[-3:])
        # An archive says by itself that it is cut short.
        whole = max(0, path.stat().st_size - header.offset) // size if _is_plain(file) else frames
    if not whole:
        raise DecodeError(path, "the file ends before its first frame")
    return VideoInfo(min(frames, whole), None, header.shape[-2], header.shape[-3], header_frames=frames)


def clip_cuts(path: Path) -> tuple[int, ...]:
    """Numbers of the frames with which the second and every further clip of a stack begin.

    Raises:
        DecodeError: the file holds no clips.
    """
    with _clips(path) as (_, header):
        length = header.shape[-4]
        return tuple(range(length, math.prod(header.shape[:-3]), length))


def read_array(path: Path, indices: Sequence[int]) -> Tensor:
    """Frames by number, uint8 (T,C,H,W).

    Args:
        path: an array file.
        indices: frame numbers from 0, in any order, repeats allowed.

    Raises:
        DecodeError: the file holds no clips, ends early, or has no such frame.
    """
    frames: dict[int, Tensor] = {}
    with _clips(path) as (read, header):
        count = math.prod(header.shape[:-3])
        if max(indices) >= count:
            raise DecodeError(path, f"frame {max(indices)} does not exist: the array holds {count}")
        size = math.prod(header.shape[-3:])
        for index in sorted(set(indices)):
            content = read(header.offset + index * size, size)
            if len(content) < size:
                raise DecodeError(path, f"the file ends before frame {index} of {count}")
            frames[index] = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(header.shape[-3:]).copy())
    add_decoded(len(frames))
    return stack(path, [(index, frames[index]) for index in indices])


@contextmanager
def _clips(path: Path) -> Iterator[tuple[Read, _Header]]:
    """The opened array of a file that holds clips."""
    with _array(path) as (read, header):
        if not header.claims_video or header.dtype != np.uint8 or 0 in header.shape:
            raise DecodeError(path, str(header))
        if header.fortran:
            raise DecodeError(path, "an array in Fortran order; accepted: C order (np.ascontiguousarray)")
        yield read, header


@contextmanager
def _array(path: Path) -> Iterator[tuple[Read, _Header]]:
    """Open the array of an .npy file, or the one of an archive that has the axes of clips; errors become `DecodeError`s."""
    try:
        with path.open("rb") as file:
            if _is_plain(file):
                yield lambda offset, size: file.read(size) if file.seek(offset) >= 0 else b"", _read_header(file)
                return
            with zipfile.ZipFile(file) as archive:
                members = _clip_members(archive)
            if len(members) != 1:
                names = ", ".join(info.filename for info, _ in members) or "none"
                raise ValueError(f"an archive holds one array of {ACCEPTED}, found: {names}")
            ((info, header),) = members
            member = archive_member(path, file, info)
            yield lambda offset, size: member.read(file, offset, size), header
    except DecodeError:
        raise
    except _BROKEN as error:
        raise DecodeError(path, f"not readable as an array ({error})") from error


def _is_plain(file: BinaryIO) -> bool:
    """Whether this is an .npy file, told by its first bytes; it is left at its start."""
    head = file.read(len(ARRAY_HEAD))
    file.seek(0)
    return head == ARRAY_HEAD


def archive_member(path: Path, file: BinaryIO, info: zipfile.ZipInfo) -> Member:
    """A member of an archive, which this process remembers with the way through it.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    state = path.stat()
    key = (str(path.absolute()), state.st_size, state.st_mtime_ns, info.filename)
    return _members.get(key, lambda: Member(file, info))


def _clip_members(archive: zipfile.ZipFile) -> list[tuple[zipfile.ZipInfo, _Header]]:
    """The members of an archive that have the axes of clips; labels and the like may lie beside them."""
    return [(info, header) for info, header in _headers(archive) if header.claims_video]


def _headers(archive: zipfile.ZipFile) -> Iterator[tuple[zipfile.ZipInfo, _Header]]:
    for info in archive.infolist():
        if info.filename.endswith(_MEMBER):
            with archive.open(info) as member:
                yield info, _read_header(member)


def _read_header(file: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format; accepted: 1.0 and 2.0")
    shape, fortran, dtype = _HEADERS[version](file)
    return _Header(shape, dtype, fortran, file.tell())
