"""Frames of a video, by index. A video is a file, a folder of images (`frame_folder`), one image: a video of one frame, an
image file that holds several (`animations`), or an array (`array_files`), whose clips are counted through.

Dimensions: T frames, C = 3 channels (RGB), H height, W width.

Frame i is the i-th frame in the order of presentation, whatever a header says about their number: the packets of a file are
counted. Both backends return the same frames; they concern files only (`decode_file`, `decode_decord`).

Frames come as a player shows them, or as they are stored (`display`).

PyAV is the default: it is frame-accurate on every container and codec that the tests write. decord is not, and is passed
over for PyAV, with a warning, where that shows before decoding or where it fails on a frame.

A reader lives inside one call, so nothing is shared between worker processes or left open.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from sparsevid.videos import BACKENDS, animations, array_files, decode_decord, decode_file, frame_folder
from sparsevid.videos.display import Display
from sparsevid.videos.kinds import Kind, kind_of
from sparsevid.videos.reading import DecodeError, VideoInfo, count_decoded, stack
from sparsevid.videos.seeking import tried_runs

__all__ = [
    "BACKENDS",
    "DEFAULT_BACKEND",
    "DecodeError",
    "VideoInfo",
    "count_decoded",
    "describe_decoder",
    "frame_times",
    "holds_parts",
    "iter_frames",
    "probe",
    "read_frames",
    "sought_runs",
]

DEFAULT_BACKEND = "pyav"


def probe(path: str | Path, *, display: bool = True) -> VideoInfo:
    """Read what a video holds: the packets of a file or the names in a folder, and its first frame, decoded.

    Args:
        path: a file in a container that `decode_file` opens, whatever its extension; an array of clips; a frame folder; an
            image.
        display: give the size that a player shows, see `display`; else that of the stored pixels.

    Returns:
        The video's `VideoInfo`; `frames` is the number of intact packets, not the header's.

    Raises:
        DecodeError: the video is missing, empty, no video, or its first frame cannot be decoded.
    """
    path = Path(path)
    probes = {
        "image": frame_folder.probe_images,
        "animation": animations.probe_animation,
        "array": array_files.probe_array,
        "video": decode_file.probe_file,
    }
    info = probes[_kind(path)](path)
    return info if display else info.as_stored()


def read_frames(
    path: str | Path, indices: Sequence[int], backend: str = DEFAULT_BACKEND, *, seek: bool = True, display: bool = True
) -> Tensor:
    """Decode frames by index: in a file starting at the key frame before each run of them, in a folder nothing else.

    Key frames that are none, and frames that cannot be decoded from the key frame on, are decoded from the start of the file.

    Args:
        path: a video file, a frame folder, or an image.
        indices: T frame numbers from 0, in any order, repeats allowed.
        backend: "pyav" or "decord"; `decode_decord` names the files that PyAV reads in either case.
        seek: whether to start at key frames; if not, PyAV decodes the file from its start (see `Video.from_start`).
        display: frames as a player shows them: pixels made square, then turned or mirrored as the file says, see `display`;
            else as they are stored.

    Returns:
        uint8 frames (T,C,H,W), RGB, in the order of `indices`.

    Raises:
        ValueError: no index, a negative index, or an unknown backend.
        DecodeError: the video is unreadable, or a frame does not exist or cannot be decoded.
        ImportError: the backend is not installed.
    """
    path, indices = Path(path), [int(i) for i in indices]
    if backend not in BACKENDS:
        raise ValueError(f"unknown decoding backend {backend!r}; accepted: {', '.join(BACKENDS)}")
    if not indices or min(indices) < 0:
        raise ValueError(f"{path}: frame indices must be one or more numbers from 0, got {indices}")
    kind = _kind(path)
    if kind == "image":
        return frame_folder.read_images(path, indices, display)
    if kind == "animation":
        return animations.read_animation(path, indices)
    return array_files.read_array(path, indices) if kind == "array" else _read_file(path, indices, backend, seek, display)


def iter_frames(path: str | Path, chunk: int = 32, *, display: bool = True) -> Iterator[Tensor]:
    """Decode a whole video in order, with PyAV, never holding more than `chunk` frames.

    Args:
        path: a video file, a frame folder, or an image.
        chunk: frames per tensor.
        display: as for `read_frames`.

    Yields:
        uint8 frames (t,C,H,W), RGB, t = `chunk` but for the last.

    Raises:
        DecodeError: the video is unreadable, or a frame is damaged.
    """
    path, kind = Path(path), _kind(Path(path))
    if kind in ("image", "array"):
        count = len(frame_folder.image_paths(path)) if kind == "image" else array_files.probe_array(path).frames
        for start in range(0, count, chunk):
            yield read_frames(path, range(start, min(start + chunk, count)), display=display)
        return
    how = decode_file.packet_index(path).display if display and kind == "video" else Display()
    batch: list[tuple[int, Tensor]] = []
    for i, frame in decode_file.all_frames(path) if kind == "video" else enumerate(animations.animation_frames(path)):
        batch.append((i, how.shown(frame)))
        if len(batch) == chunk:
            yield stack(path, batch)
            batch = []
    if batch:
        yield stack(path, batch)


def frame_times(path: str | Path) -> list[float]:
    """When each frame of a file is shown.

    Args:
        path: a video file.

    Returns:
        Seconds of each frame, ascending; the first frame shown is at 0.

    Raises:
        DecodeError: the file is unreadable or holds no times, or the path is a frame folder, image or array, which have none.
    """
    path, kind = Path(path), _kind(Path(path))
    if kind in ("image", "array"):
        raise DecodeError(path, "arrays and images hold no times; accepted: a video file")
    seconds = animations.animation_times(path) if kind == "animation" else decode_file.packet_index(path).seconds
    if not seconds:
        raise DecodeError(path, "the file holds no presentation times")
    return seconds


def describe_decoder(backend: str = DEFAULT_BACKEND) -> str:
    """What decodes video files, with versions, for records of pixels: the last bits of some files depend on it."""
    pyav = decode_file.describe()
    return pyav if backend == "pyav" else f"{decode_decord.describe()}; where that errs, {pyav}"


def sought_runs(path: Path) -> list[range]:
    """Runs of frames, spread over a video, that tell whether random access to it is right; none where nothing is sought.

    Raises:
        DecodeError: the video is missing or unreadable.
    """
    if _kind(path) != "video":
        return []
    index = decode_file.packet_index(path)
    return list(tried_runs(index.keys, index.frames).values())


def holds_parts(path: Path) -> bool:
    """Whether this may hold several videos, one behind the other: a frame folder cut at gaps, or a stack of clips.

    Raises:
        DecodeError: the video is missing or cannot be opened.
    """
    return path.is_dir() or _kind(path) == "array"


def _kind(path: Path) -> Kind:
    """What this is by its content: a frame folder counts as an image, and what is none of all as what its name claims."""
    if path.is_dir():
        return "image"
    if not path.is_file():
        raise DecodeError(path, "no such file")
    try:
        return kind_of(path) or ("array" if path.suffix.lower() in array_files.ARRAY_EXTENSIONS else "video")
    except OSError as error:
        raise DecodeError(path, f"cannot be opened ({error.strerror})") from error


def _read_file(path: Path, indices: list[int], backend: str, seek: bool, display: bool) -> Tensor:
    wanted = sorted(set(indices))
    numbered: Iterable[tuple[int, Tensor]] = []
    if backend == "decord" and seek:
        index = decode_file.packet_index(path)
        decode_file.check_exists(path, index, wanted[-1])
        numbered = decode_decord.read_numbered(path, index, wanted)
    numbered = numbered or decode_file.read_numbered(path, wanted, seek)
    frames: dict[int, Tensor] = {}
    try:
        for i, frame in numbered:
            frames[i] = frame
    except DecodeError as error:
        if not frames:
            raise
        raise DecodeError(path, f"{error.reason}; {len(frames)} of {len(wanted)} frames were decoded", error.detail) from error
    missing = [i for i in wanted if i not in frames]
    if missing:
        number = f"{len(frames)} of {len(wanted)} frames were decoded"
        raise DecodeError(path, f"frame {missing[0]} cannot be decoded; {number}")
    how = decode_file.packet_index(path).display if display else Display()  # remembered from the reading
    for i in wanted:
        frames[i] = how.shown(frames[i])
    return stack(path, [(i, frames[i]) for i in indices])
