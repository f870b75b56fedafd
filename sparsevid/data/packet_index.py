"""What the packets of a video stream say: how many frames there are, when each is shown, where to start decoding for it.

AVI stores the order of packets alone. FFmpeg guesses presentation times for it, wrongly for H.264 and for Xvid with packed
B-frames. There a frame is recognised by the packet on whose arrival the decoder gives it: from the first frame on, one packet
gives one frame, `delay` packets later than in a stream without B-frames.

MPEG-4 (Xvid, DivX) has packets without a frame of their own: placeholders that say "not coded". Where two frames were packed
into one packet, the placeholder that follows stands for the second; alone it repeats a frame, and FFmpeg gives none for it.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import av

from sparsevid.data.reading import add_decoded
from sparsevid.logging import get_logger

# A container rounds times to its ticks; one that was copied out of Matroska keeps that one's, of a thousandth of a second.
_TICK = 0.001
# Containers in which FFmpeg finds the packet of a time. In others it searches (MPEG streams, ASF, FLV: some frames were not
# found, others were wrong), and packets need not be frames: a recording may begin between key frames.
_INDEXED = ("mov", "avi", "matroska", "gif")
_FRAME_START = b"\x00\x00\x01\xb6"  # of a frame in MPEG-4
_PLACEHOLDER_BYTES = 8  # at most, with the 4 of its start; a coded frame of 64x64 pixels or more is longer

logger = get_logger(__name__)


@dataclass(frozen=True)
class PacketIndex:
    """What the packets of a video stream say.

    Attributes:
        frames: number of packets that hold a frame that is shown.
        header_frames: the header's number, without frames that an edit list cuts away; 0 if it says none.
        width: in pixels, of the first frame; 0 if no frame can be decoded.
        height: likewise.
        declared_rate: frames a second by the header; 0 if it says none.
        times: in ticks, ascending, when each frame is shown; in AVI, decoding times of the packets that give it. Empty where
            times are missing or there twice.
        tick: seconds.
        keys: numbers of the key frames, ascending (in AVI of packets, not later than the frame); empty with `times`, and where
            the container cannot be trusted to find them: such a file is read from its start.
        seeks: where to seek to for each key frame, in ticks.
        by_packet: whether frames are recognised by packets, as in AVI, not by presentation time.
        delay: number of packets, in AVI, that are decoded before the first frame is given; else 0.
        leading: whether frames shown before a key frame are stored after it.
        plain: whether pixels have 8 bits and the height is even.
    """

    frames: int
    header_frames: int
    width: int
    height: int
    declared_rate: float
    times: array
    tick: float
    keys: array
    seeks: array
    by_packet: bool
    delay: int
    leading: bool
    plain: bool

    def __len__(self) -> int:
        return max(1, len(self.times) + 2 * len(self.keys))  # numbers held

    @property
    def seconds(self) -> list[float]:
        """When each frame is shown, from 0 at the first; empty if unknown."""
        return [(time - self.times[0]) * self.tick for time in self.times]

    @property
    def rounding(self) -> float:
        """Seconds by which a frame may miss its place at a constant rate: half a tick at each end, and 1% for floats."""
        return 1.01 * max(self.tick, _TICK)

    @property
    def variable_rate(self) -> bool:
        """Whether some frame is further from its place at a constant rate than times are rounded."""
        seconds = self.seconds
        step = seconds[-1] / max(1, len(seconds) - 1) if seconds else 0.0
        return any(abs(time - i * step) > self.rounding for i, time in enumerate(seconds))

    @property
    def rate(self) -> float:
        """Frames a second: what the header declares, if that puts the last frame where it is, else the mean; 0 if unknown."""
        steps, seconds = len(self.times) - 1, self.seconds[-1] if self.times else 0.0
        if seconds == 0 or (self.declared_rate and abs(steps / self.declared_rate - seconds) <= self.rounding):
            return self.declared_rate
        return steps / seconds


class _Packing:
    """Which packets of MPEG-4 give a frame."""

    def __init__(self) -> None:
        self._waiting = False  # a second frame, for the place of a placeholder

    def gives_frame(self, packet: bytes) -> bool:
        """Whether the next packet of the stream gives one."""
        if packet.count(_FRAME_START) > 1:
            self._waiting = True
        elif len(packet) <= _PLACEHOLDER_BYTES:
            given, self._waiting = self._waiting, False
            return given
        return True


def index_packets(container: av.container.InputContainer, stream: av.VideoStream) -> PacketIndex:
    """Walk the packets; the first frame is decoded on the way, which saves to open the file twice."""
    if container.format.name.split(",")[0] not in _INDEXED:
        return index_frames(container, stream)
    shown: list[tuple[int | None, int | None]] = []  # (presentation time, decoding time) of packets
    keys: list[tuple[int, int]] = []  # likewise
    first: list[av.VideoFrame] = []
    leading, cut, delay = False, 0, 0
    packing = _Packing() if stream.codec_context.name == "mpeg4" else None
    for packet in intact_packets(container, stream):
        if not first:
            first += decode(stream, packet)[:1]
            delay = len(shown)
        if not packet.size or (packing and not packing.gives_frame(bytes(packet))):
            continue
        if packet.is_keyframe and packet.pts is not None:
            keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
        elif keys and packet.pts is not None and packet.pts < keys[-1][0]:
            leading = True
        if packet.is_discard:  # an edit list cuts the frame away: it is decoded but not shown
            cut += 1
        else:
            shown.append((packet.pts, packet.dts))
    if not first:  # the file broke off: its frames are still inside the decoder
        first += decode(stream, None)[:1]
        delay = len(shown)
    pixels = stream.codec_context.format
    by_packet = "avi" in container.format.name
    times = _ascending([dts if by_packet else pts for pts, dts in shown])
    numbers, seeks = _key_frames(times, keys, by_packet)
    return PacketIndex(
        frames=len(shown),
        header_frames=max(0, stream.frames - cut),
        width=first[0].width if first else 0,
        height=first[0].height if first else 0,
        declared_rate=float(stream.average_rate or stream.guessed_rate or 0),
        # In AVI a tick is one frame; the frames that are still in the decoder at the end follow in steps of it.
        times=times[delay:] + array("q", range(times[-1] + 1, times[-1] + delay + 1)) if by_packet and times else times,
        tick=float(stream.time_base),
        keys=numbers,
        seeks=seeks,
        by_packet=by_packet,
        delay=delay if by_packet else 0,
        leading=leading,
        plain=pixels is not None and all(part.bits <= 8 for part in pixels.components) and pixels.height % 2 == 0,
    )


def index_frames(container: av.container.InputContainer, stream: av.VideoStream) -> PacketIndex:
    """What decoding all of a stream says, for containers that are read from their start."""
    first: av.VideoFrame | None = None
    shown: list[tuple[int | None, bool]] = []  # presentation time, whether it is damaged
    for packet in _flushed(intact_packets(container, stream)):
        for frame in decode(stream, packet):
            first = first or frame
            shown.append((frame.pts, frame.is_corrupt))
    while shown and shown[-1][1]:  # the frame in which it broke off
        shown.pop()
    times = [time for time, _ in shown]
    in_order = _ascending(times)
    return PacketIndex(
        frames=len(times),
        header_frames=stream.frames,
        width=first.width if first else 0,
        height=first.height if first else 0,
        declared_rate=float(stream.average_rate or stream.guessed_rate or 0),
        times=in_order if list(in_order) == times else array("q"),  # a recording may start its clock again
        tick=float(stream.time_base),
        keys=array("q"),
        seeks=array("q"),
        by_packet=False,
        delay=0,
        leading=False,
        plain=False,
    )


def _flushed(packets: Iterator[av.Packet]) -> Iterator[av.Packet | None]:
    """Packets, and what flushes the decoder if the file broke off: its last frames are still inside."""
    packet = None
    for packet in packets:
        yield packet
    if packet is not None and packet.size:
        yield None


def _key_frames(times: array, keys: list[tuple[int, int]], by_packet: bool) -> tuple[array, array]:
    """Numbers of key frames, ascending, and where to seek to; FFmpeg seeks in AVI by decoding time, elsewhere by the other."""
    clock = sorted(dts if by_packet else pts for pts, dts in keys) if times else []
    return array("q", [bisect_left(times, time) for time in clock]), array("q", clock)


def _ascending(times: list[int | None]) -> array:
    """Times in order; none at all if one is missing or there twice."""
    usable = None not in times and len(set(times)) == len(times)
    return array("q", sorted(times) if usable else [])


def intact_packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Packets from the current position to the end, or to where the file breaks off; the empty last one flushes.

    What FFmpeg marks as damaged is left out; of streams only the last packet, in which they break off: there a gap in the
    counters is marked too, as where recordings were joined.
    """
    packets, last = container.demux(stream), None
    whole = container.format.name.split(",")[0] in _INDEXED
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            logger.debug("%s: packets end early: %s", container.name, error)
            return
        if packet is None:
            return
        if last is not None and packet.size:
            yield last
        last = None if whole or not packet.is_corrupt else packet
        if not packet.is_corrupt:
            yield packet


def decode(stream: av.VideoStream, packet: av.Packet | None) -> list[av.VideoFrame]:
    """What the decoder gives for a packet; for None, what is left in it."""
    frames = stream.codec_context.decode(packet)
    add_decoded(len(frames))
    return frames
