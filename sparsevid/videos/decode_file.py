"""Frames of a video file, with PyAV.

Dimensions: H height, W width, C = 3 channels (RGB).

The packets of a file are walked once (`packet_index`), and what they say is kept for the next read of the file. Frames are
recognised by their time, or in AVI by the packet that gives them.

Every read opens the file anew and decodes its first frame before the first seek: some decoders take what they need to know from
the first packets alone (of H.264 the version of x264, whose faults are worked round; of MJPEG the tables). So frames depend on
nothing that was read before. What random access does not give is decoded from the start.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.stream import Disposition
from torch import Tensor

from sparsevid.system.logging import get_logger
from sparsevid.videos.packet_index import PacketIndex, index_packets
from sparsevid.videos.reading import FROM_START, DecodeError, SizedCache, VideoInfo, log_fallback
from sparsevid.videos.seeking import decoded, from_key_frame, marks_hold, recognised, seeks_agree

VARIABLE_RATE = "variable frame rate"
EMPTY_PACKETS = "packets without a frame"
BEGINS_LATE = "begins between key frames: frames before the first one are lost"

# Only self-contained files. Left out is what could make FFmpeg open other addresses or files (hls, dash, concat, imf, sdp,
# image2), run a script (avisynth, lavfi), or take any bytes for a video (rawvideo, tty, subtitles, mjpeg).
_FORMATS = (
    "mov", "avi", "matroska", "gif", "mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc", "flv", "asf", "ogg", "mxf", "dv",
    "ivf", "rm", "nut", "yuv4mpegpipe", "wtv",
)  # fmt: skip
_OPEN_OPTIONS = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file"}
# Titles in other bytes than UTF-8 are no reason to refuse a file; from version 19 on PyAV takes them by itself.
_OF_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
NO_STREAM = "no video stream"
_DEEP_CHANNELS = {"gray16be": 1, "ya16be": 2, "rgb48be": 3, "rgba64be": 4}
LOSSLESS_CODECS = ("ffv1", "png", "rawvideo", "huffyuv", "ffvhuff", "utvideo", "qtrle")
_CACHED_FRAMES = 4_000_000  # at most 24 bytes each
_CACHED_MARKS = 100_000  # files
_SEEKS = 3  # for one frame

logger = get_logger(__name__)
_indexes: SizedCache[PacketIndex] = SizedCache(_CACHED_FRAMES)
_marks: SizedCache[tuple[bool]] = SizedCache(_CACHED_MARKS)


def probe_file(path: Path) -> VideoInfo:
    """`read.probe` of a file."""
    index = packet_index(path)
    if not index.width or not index.frames:
        raise DecodeError(path, "no frame can be decoded")
    rate, variable, display = index.rate, index.variable_rate, index.display
    width, height = display.size(index.width, index.height)
    if not rate:
        raise DecodeError(path, "no frame rate")
    noted = {
        VARIABLE_RATE: variable,
        EMPTY_PACKETS: index.empty,
        BEGINS_LATE: index.lost,
        FROM_START: index.from_start and index.indexed,
    }
    return VideoInfo(
        frames=index.frames,
        fps=rate,
        width=width,
        height=height,
        header_frames=index.header_frames,
        seconds=index.seconds[-1] if index.times else None,
        variable_rate=variable,
        notes=tuple(note for note, holds in noted.items() if holds) + display.notes,
        stored=None if display.plain else (index.width, index.height),
    )


def describe() -> str:
    """PyAV and the FFmpeg inside it, with their versions."""
    return f"PyAV {av.__version__} (FFmpeg {av.ffmpeg_version_info})"


def packet_index(path: Path) -> PacketIndex:
    """The packets of a file, walked unless this process remembers them.

    Raises:
        DecodeError: the file is unreadable.
    """
    return _indexes.get(_state_of(path), partial(_walk, path))


def _walk(path: Path) -> PacketIndex:
    """The packets of a file; where its seeks do not agree with decoding from the start, none of its key frames."""
    with _open(path) as (container, stream):
        index = index_packets(container, stream)
    if not index.known and len(index.keys) > 1:
        with _open(path) as (container, stream):
            agree = seeks_agree(container, stream, index)
        index = index if agree else replace(index, keys=array("q"), seeks=array("q"), from_start=True)
    return index


def marks_are_true(path: Path, index: PacketIndex) -> bool:
    """Whether what is marked as a key frame is one, as far as a few dozen of them tell; it is looked at once in a process.

    Raises:
        DecodeError: the file is unreadable.
    """

    def look() -> tuple[bool]:
        with _open(path) as (container, stream):
            return (marks_hold(container, stream, index),)

    return _marks.get(_state_of(path), look)[0]


def is_lossless(path: Path) -> bool:
    """Whether a file keeps RGB pixels as they were, by what its header says.

    Raises:
        DecodeError: it is missing, or no video.
    """
    with _open(path) as (_, stream):
        pixels = stream.codec_context.format  # None where the header does not say it
        return stream.codec_context.name in LOSSLESS_CODECS and pixels is not None and pixels.is_rgb


def holds_video(path: Path) -> bool:
    """Whether FFmpeg opens a file as a video, whatever it begins with."""
    try:
        with _open(path) as (_, stream):
            return stream.codec_context.width > 0
    except DecodeError:
        return False


def read_numbered(path: Path, wanted: list[int], seek: bool = True) -> Iterator[tuple[int, Tensor]]:
    """Frames by number.

    Args:
        path: a video file.
        wanted: frame numbers, ascending.
        seek: whether to start at key frames, where the file has some that can be trusted; if not, at the first frame.

    Yields:
        Number and uint8 frame (H,W,C). A frame that does not turn up is left out.

    Raises:
        DecodeError: the file is unreadable, a frame does not exist or is damaged.
    """
    index = packet_index(path)
    check_exists(path, index, wanted[-1])
    given = 0
    if seek and index.keys:
        for numbered in _sought(path, index, wanted):
            given += 1
            yield numbered
        if given == len(wanted):
            return
        reason = "frames that cannot be decoded after a seek are decoded from the start"
        if index.by_packet:  # in AVI no fault: a frame behind the second key frame may be shown before it
            logger.debug("%s: %s", path, reason)
        else:
            log_fallback(path, reason)
    chosen = set(wanted[given:])
    with _open(path) as (container, stream):
        # By their times, so that a frame that does not turn up moves no other.
        frames = recognised(container, stream, index) if index.times else enumerate(decoded(container, stream))
        for i, frame in frames:
            if i in chosen:
                chosen.remove(i)
                yield i, _to_tensor(path, frame)
            if not chosen:
                return


def all_frames(path: Path) -> Iterator[tuple[int, Tensor]]:
    """All frames in order, with their numbers, as uint8 (H,W,C).

    Raises:
        DecodeError: the file is unreadable, or a frame is damaged.
    """
    index = packet_index(path)
    with _open(path) as (container, stream):
        # Of a stream without an index, what the file breaks off in is no frame.
        for i, frame in enumerate(islice(decoded(container, stream), None if index.indexed else index.frames)):
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
    rows = np.frombuffer(memoryview(plane), ">u2").reshape(frame.height, plane.line_size // 2)[:, : frame.width * channels]
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


@contextmanager
def _open(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file and give its main video stream. FFmpeg's errors inside become `DecodeError`s."""
    if _state_of(path)[1] == 0:
        raise DecodeError(path, "empty file (0 bytes)")
    try:
        # An absolute name cannot be taken for a protocol, whatever it begins with.
        with av.open(str(path.absolute()), options=_OPEN_OPTIONS, **_OF_METADATA) as container:
            if not len(container.streams):
                raise DecodeError(path, "no stream of any kind: damaged, or cut off before its streams are described")
            stream = container.streams.best("video")
            if stream is None or stream.disposition & Disposition.attached_pic:  # the cover of a sound file
                raise DecodeError(path, NO_STREAM)
            if stream.codec_context is None:
                raise DecodeError(path, "no decoder for its video codec")
            stream.codec_context.thread_count = 1  # the workers of a loader are the parallel part
            yield container, stream
    except (av.FFmpegError, UnicodeError) as error:
        raise DecodeError(path, f"not readable as a video ({getattr(error, 'strerror', None) or error})") from error


def _to_tensor(path: Path, frame: av.VideoFrame) -> Tensor:
    """An intact frame as uint8 (H,W,C)."""
    if frame.is_corrupt:
        raise DecodeError(path, f"the frame at {frame.time} s is damaged")
    return torch.from_numpy(frame.to_ndarray(format="rgb24"))


def _sought(path: Path, index: PacketIndex, wanted: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Frames by random access, up to the first that it does not give undamaged."""
    try:
        with _open(path) as (container, stream):
            for i, frame in _take(container, stream, index, wanted):
                yield i, _to_tensor(path, frame)
    except DecodeError as error:
        logger.debug("random access ends early: %s", error)


def _take(
    container: av.container.InputContainer, stream: av.VideoStream, index: PacketIndex, wanted: list[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode from the key frame before each wanted one on; seek only where a key frame lies between the position and it.

    It ends with the first frame that does not turn up: none is replaced by a neighbour.
    """
    frames, position = recognised(container, stream, index), None
    for i in wanted:
        key = max(0, bisect_right(index.keys, i) - 1)
        if key == 0 or (position is not None and index.keys[key] <= position):
            if position is not None and position >= i:
                return  # an earlier search ran past it
            position, found = _search(frames, i, position)
        else:
            if position is None:
                next(frames, None)  # what the first packets say to the decoder outlasts a seek
            # In AVI a frame that is stored after a key frame may be shown before it; then it needs an earlier one.
            for start in range(key, max(0, key - _SEEKS), -1):
                frames = from_key_frame(container, stream, index, start)
                position, found = _search(frames, i, position)
                if found is not None and not found.is_corrupt:
                    break
        if found is None:
            return
        yield i, found


def _search(
    frames: Iterator[tuple[int, av.VideoFrame]], wanted: int, position: int | None
) -> tuple[int | None, av.VideoFrame | None]:
    """Walk to the wanted frame or past it: the number of the last frame seen, and the frame."""
    for position, frame in frames:
        if position >= wanted:
            return position, frame if position == wanted else None
    return position, None
