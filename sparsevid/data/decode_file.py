"""Frames of a video file, with PyAV: the only file that reads through it.

Dimensions: H height, W width, C = 3 channels (RGB).

The packets of a file are walked once (`packet_index`), and what they say is kept for the next read of the file. Frames are
recognised by their time, or in AVI by the packet that gives them.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from sparsevid.data.packet_index import PacketIndex, decode, index_packets, intact_packets
from sparsevid.data.reading import DecodeError, SizedCache, VideoInfo

VARIABLE_RATE = "variable frame rate"

# Only self-contained files. Left out is what could make FFmpeg open other addresses or files (hls, dash, concat, imf, sdp,
# image2), run a script (avisynth, lavfi), or take any bytes for a video (rawvideo, tty, subtitles, mjpeg).
_FORMATS = (
    "mov", "avi", "matroska", "gif", "mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc", "flv", "asf", "ogg", "mxf", "dv",
    "ivf", "rm", "nut", "yuv4mpegpipe", "wtv",
)  # fmt: skip
_OPEN_OPTIONS = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file"}
NO_VIDEO = "no video stream"
_DEEP_CHANNELS = {"gray16be": 1, "ya16be": 2, "rgb48be": 3, "rgba64be": 4}
LOSSLESS_CODECS = ("ffv1", "png", "rawvideo", "huffyuv", "ffvhuff", "utvideo", "qtrle")
_CACHED_FRAMES = 4_000_000  # at most 24 bytes each
_SEEKS = 3  # for one frame

_indexes: SizedCache[PacketIndex] = SizedCache(_CACHED_FRAMES)


def probe_file(path: Path) -> VideoInfo:
    """`decode.probe` of a file."""
    index = packet_index(path)
    if not index.width or not index.frames:
        raise DecodeError(path, "no frame can be decoded")
    rate, variable = index.rate, index.variable_rate
    if not rate:
        raise DecodeError(path, "no frame rate")
    return VideoInfo(
        frames=index.frames,
        fps=rate,
        width=index.width,
        height=index.height,
        header_frames=index.header_frames,
        seconds=index.seconds[-1] if index.times else None,
        variable_rate=variable,
        notes=(VARIABLE_RATE,) if variable else (),
    )


def packet_index(path: Path) -> PacketIndex:
    """The packets of a file, walked unless this process remembers them.

    Raises:
        DecodeError: the file is unreadable.
    """
    kept = _indexes.get(_state_of(path))
    if kept is not None:
        return kept
    with _open(path) as (container, stream):
        return _remembered_index(path, container, stream)


def is_lossless(path: Path) -> bool:
    """Whether a file keeps RGB pixels as they were, by what its header says.

    Raises:
        DecodeError: it is missing, or no video.
    """
    with _open(path) as (_, stream):
        return stream.codec_context.name in LOSSLESS_CODECS and stream.codec_context.format.is_rgb


def holds_video(path: Path) -> bool:
    """Whether FFmpeg opens a file as a video, whatever it begins with."""
    try:
        with _open(path) as (_, stream):
            return stream.codec_context.width > 0
    except DecodeError:
        return False


def read_numbered(path: Path, wanted: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Frames by number.

    Args:
        path: a video file.
        wanted: frame numbers, ascending.

    Yields:
        Number and uint8 frame (H,W,C). A frame that does not turn up is left out.

    Raises:
        DecodeError: the file is unreadable, a frame does not exist or is damaged.
    """
    with _open(path) as (container, stream):
        index = _remembered_index(path, container, stream)
        check_exists(path, index, wanted[-1])
        if index.keys:
            yield from _take(path, container, stream, index, wanted)
            return
    chosen = set(wanted)
    for i, frame in _numbered(path):
        if i in chosen:
            yield i, _to_tensor(path, frame)
        if i == wanted[-1]:
            return


def all_frames(path: Path) -> Iterator[tuple[int, Tensor]]:
    """All frames in order, with their numbers, as uint8 (H,W,C).

    Raises:
        DecodeError: the file is unreadable, or a frame is damaged.
    """
    for i, frame in _numbered(path):
        yield i, _to_tensor(path, frame)


def decode_deep_png(content: bytes) -> np.ndarray:
    """Decode a PNG of 16 bits a channel.

    Args:
        content: the file's bytes.

    Returns:
        uint16 (H,W,C), with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).

    Raises:
        ValueError: it cannot be decoded to that.
    """
    decoder = av.CodecContext.create("png", "r")
    try:
        frame = [*decoder.decode(av.Packet(content)), *decoder.decode(None)][0]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"a PNG that FFmpeg cannot decode ({error})") from error
    channels = _DEEP_CHANNELS.get(frame.format.name)
    if channels is None or frame.is_corrupt:
        raise ValueError(f"a damaged PNG, or pixels {frame.format.name}; accepted: {', '.join(_DEEP_CHANNELS)}")
    plane = frame.planes[0]  # `to_ndarray` does not know grey with alpha
    rows = np.frombuffer(plane, ">u2").reshape(frame.height, plane.line_size // 2)[:, : frame.width * channels]
    return rows.reshape(frame.height, frame.width, channels).astype(np.uint16)


def check_exists(path: Path, index: PacketIndex, frame: int) -> None:
    """Raise a DecodeError if the file has no frame of this number."""
    if frame >= index.frames:
        held = f"{index.frames} frames can be read, {index.header_frames or 'no number'} by the header"
        raise DecodeError(path, f"frame {frame} does not exist: {held}")


def _state_of(path: Path) -> tuple[str, int, int]:
    """What the cache knows a file by: it is walked anew once it is changed."""
    try:
        state = path.stat()
    except OSError as error:
        raise DecodeError(path, f"cannot be opened ({error.strerror})") from error
    return str(path.absolute()), state.st_size, state.st_mtime_ns


def _remembered_index(path: Path, container: av.container.InputContainer, stream: av.VideoStream) -> PacketIndex:
    state = _state_of(path)
    index = _indexes.get(state)
    if index is None:
        index = index_packets(container, stream)
        _indexes.put(state, index)
    return index


@contextmanager
def _open(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file and give its main video stream. FFmpeg's errors inside become `DecodeError`s."""
    if _state_of(path)[1] == 0:
        raise DecodeError(path, "empty file (0 bytes)")
    try:
        # An absolute name cannot be taken for a protocol, whatever it begins with.
        with av.open(str(path.absolute()), options=_OPEN_OPTIONS, metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise DecodeError(path, NO_VIDEO)
            if stream.codec_context is None:
                raise DecodeError(path, "no decoder for its video codec")
            stream.codec_context.thread_count = 1  # the workers of a loader are the parallel part
            yield container, stream
    except (av.FFmpegError, UnicodeError) as error:
        raise DecodeError(path, f"not readable as a video ({getattr(error, 'strerror', None) or error})") from error


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Frames from the current position on, in order of presentation."""
    flushed = False
    for packet in intact_packets(container, stream):
        flushed = not packet.size
        yield from decode(stream, packet)
    if not flushed:  # the file broke off: its last frames are still inside the decoder
        yield from decode(stream, None)


def _numbered(path: Path) -> Iterator[tuple[int, av.VideoFrame]]:
    """All frames of a file from its beginning."""
    with _open(path) as (container, stream):
        yield from enumerate(_decoded(container, stream))


def _to_tensor(path: Path, frame: av.VideoFrame) -> Tensor:
    """An intact frame as uint8 (H,W,C)."""
    if frame.is_corrupt:
        raise DecodeError(path, f"the frame at {frame.time} s is damaged")
    return torch.from_numpy(frame.to_ndarray(format="rgb24"))


def _take(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    index: PacketIndex,
    wanted: list[int],
) -> Iterator[tuple[int, Tensor]]:
    """Decode from the key frame before each wanted one on; seek only where a key frame lies between the position and it.

    A frame that does not turn up is left out, never replaced by a neighbour.
    """
    frames, position = iter(()), None
    for i in wanted:
        key = max(0, bisect_right(index.keys, i) - 1)
        if position is not None and index.keys[key] <= position:
            if position >= i:
                continue  # an earlier search ran past it
            position, found = _search(frames, i, position)
        else:
            found = None
            # In AVI a frame that is stored after a key frame may be shown before it; then it needs an earlier one.
            for start in range(key, max(-1, key - (_SEEKS if index.by_packet else 1)), -1):
                container.seek(index.seeks[start], stream=stream)
                frames = _recognised(container, stream, index)
                position, found = _search(frames, i, position)
                if found is not None:
                    break
        if found is not None:
            yield i, _to_tensor(path, found)


def _search(
    frames: Iterator[tuple[int, av.VideoFrame]], wanted: int, position: int | None
) -> tuple[int | None, av.VideoFrame | None]:
    """Walk to the wanted frame or past it: the number of the last frame seen, and the frame."""
    for position, frame in frames:
        if position >= wanted:
            return position, frame if position == wanted else None
    return position, None


def _recognised(
    container: av.container.InputContainer, stream: av.VideoStream, index: PacketIndex
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames from the current position on, with their numbers."""
    frames = _decoded(container, stream)
    for frame in frames:
        time = frame.dts if index.by_packet else frame.pts
        if index.by_packet and time is None:  # no packet is left: these are the last frames of the file
            last = [frame, *frames]
            yield from enumerate(last, index.frames - len(last))
        elif time is not None:
            i = bisect_left(index.times, time)
            if i < len(index.times) and index.times[i] == time:
                yield i, frame
