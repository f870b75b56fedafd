"""Frames of an open file from some key frame on, each with its number, and whether a file's key frames are what they say.

A mark is not believed: after a seek, the first picture must need no other. Containers and codecs in which random access is not
known to be right are tried out on a few key frames of each file.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence

import av
from av.video.frame import PictureType

from sparsevid.videos.packet_index import PacketIndex, decode, intact_packets

_TRIED = 3  # key frames, spread over what is looked at
_FRAMES_TRIED = 4  # from each of them on
_MARKS = 32  # key frames, spread over a file, whose first picture is looked at for those who believe marks
_LOOKED_AT = 256  # frames from the beginning, for a file that is tried out when it is first used
_BETWEEN = (PictureType.B, PictureType.BI)
_INDEPENDENT = (PictureType.I, PictureType.SI)


def decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Frames from the current position on, in order of presentation."""
    flushed = False
    for packet in intact_packets(container, stream):
        flushed = not packet.size
        yield from decode(stream, packet)
    if not flushed:  # the file broke off: its last frames are still inside the decoder
        yield from decode(stream, None)


def recognised(
    container: av.container.InputContainer, stream: av.VideoStream, index: PacketIndex
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames from the current position on, with their numbers."""
    frames = decoded(container, stream)
    for frame in frames:
        time = frame.dts if index.by_packet else frame.pts
        if index.by_packet and time is None:  # no packet is left: these are the last frames of the file
            last = [frame, *frames]
            yield from enumerate(last, index.frames - len(last))
        elif time is not None:
            i = bisect_left(index.times, time)
            if i < len(index.times) and index.times[i] == time:
                yield i, frame


def from_key_frame(
    container: av.container.InputContainer, stream: av.VideoStream, index: PacketIndex, key: int
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Seek to the key frame `index.keys[key]`: it and the frames after it, or nothing where it turns out to be none."""
    container.seek(index.seeks[key], stream=stream)
    held: list[tuple[int, av.VideoFrame]] | None = []  # B-frames that come before the picture that they need
    for i, frame in recognised(container, stream, index):
        if i < index.keys[key]:
            continue
        if held is None:
            yield i, frame
        elif frame.pict_type in _BETWEEN:
            held.append((i, frame))
        elif frame.pict_type in _INDEPENDENT or (frame.pict_type == PictureType.NONE and frame.key_frame):
            yield from (*held, (i, frame))
            held = None
        else:
            return


def tried_runs(keys: Sequence[int], frames: int) -> dict[int, range]:
    """Where to try random access: key frames spread over the first `frames` frames, by position in `keys`, each with the
    numbers of the frames to compare from it on.
    """
    return {key: range(keys[key], min(keys[key] + _FRAMES_TRIED, frames)) for key in _spread(keys, frames, _TRIED)}


def marks_hold(container: av.container.InputContainer, stream: av.VideoStream, index: PacketIndex) -> bool:
    """Whether seeks to key frames spread over the file give what can be decoded by itself, and nothing before it.

    Args:
        container: just opened.
        stream: of it.
        index: of its packets.
    """
    for key in _spread(index.keys, index.frames, _MARKS):
        first = next(from_key_frame(container, stream, index, key), None)
        if first is None or first[0] != index.keys[key]:
            return False
    return True


def _spread(keys: Sequence[int], frames: int, count: int) -> list[int]:
    """Positions of so many key frames, or fewer, among those after the first frame and within `frames`."""
    later = [position for position, number in enumerate(keys) if 0 < number < frames]
    count = min(count, len(later))
    return [later[(i + 1) * len(later) // count - 1] for i in range(count)]


def seeks_agree(container: av.container.InputContainer, stream: av.VideoStream, index: PacketIndex) -> bool:
    """Whether seeks to a few key frames near the beginning give the frames that a decode from the start gives.

    Args:
        container: just opened.
        stream: of it.
        index: of its packets.
    """
    frames = min(index.frames, _LOOKED_AT)
    runs = tried_runs(index.keys, frames)
    if not runs:
        return True
    numbers = {number for run in runs.values() for number in run}
    try:
        expected = _digests(recognised(container, stream, index), numbers)
        return all(
            _digests(from_key_frame(container, stream, index, key), run) == {i: expected.get(i) for i in run}
            for key, run in runs.items()
        )
    except av.FFmpegError:
        return False


def _digests(frames: Iterator[tuple[int, av.VideoFrame]], wanted: Sequence[int] | set[int]) -> dict[int, bytes]:
    """SHA-256 of the pixels of those frames that are wanted, as far as they come."""
    digests: dict[int, bytes] = {}
    last = max(wanted)
    for i, frame in frames:
        if i in wanted:
            digests[i] = hashlib.sha256(frame.to_ndarray(format="rgb24").tobytes()).digest()
        if i >= last:
            break
    return digests
