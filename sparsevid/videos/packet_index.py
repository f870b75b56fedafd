"""What the packets of a video stream say: how many frames there are, when each is shown, where to start decoding for it.

AVI stores the order of packets alone. FFmpeg guesses presentation times for it, wrongly for H.264 and for Xvid with packed
B-frames. There a frame is recognised by the packet on whose arrival the decoder gives it: from the first frame on, one packet
gives one frame, `delay` packets later than in a stream without B-frames. Packets of no bytes, for frames that a camera dropped,
are not given by FFmpeg: they show as ticks without a packet.

Some packets have no frame of their own (`shown_packets`): they count as none.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median_low

import av
from av.stream import Disposition

from sparsevid.system.logging import get_logger
from sparsevid.videos.display import Display, display_of
from sparsevid.videos.reading import add_decoded
from sparsevid.videos.shown_packets import shows_frame

# A container rounds times to its ticks; one that was copied out of Matroska keeps that one's, of a thousandth of a second.
_TICK = 0.001
_NEIGHBOURS = 4  # frames at the end that may be stored in another order than they are shown
_SOUGHT_BY_PTS = ("mov", "matroska", "gif")  # where FFmpeg seeks by presentation time; elsewhere by decoding time
# Containers in which FFmpeg finds the packet of a time. In others it searches (MPEG streams, ASF, FLV: some frames were not
# found, others were wrong), and packets need not be frames: a recording may begin between key frames.
_INDEXED = ("mov", "avi", "matroska", "gif")
# Where a decoder says of a picture whether it needs others.
_KNOWN_CODECS = ("h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg1video", "mpeg2video", "ffv1", "png", "gif")

logger = get_logger(__name__)


@dataclass(frozen=True)
class PacketIndex:
    """What the packets of a video stream say.

    Attributes:
        frames: number of packets that hold a frame that is shown.
        header_frames: the header's number, without packets that show no frame; 0 if it says none.
        empty: number of packets that hold something and no frame: placeholders.
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
        lost: number of frames before the first that can be decoded, in a recording that begins between key frames.
        streams: number of video streams, cover pictures apart.
        leading: whether frames shown before a key frame are stored after it.
        plain: whether pixels have 8 bits, the height is even, and the first frame is not interlaced.
        display: how a player shows frames.
        codec: FFmpeg's name of it.
        full_chroma: whether each pixel has its own colour, as in 4:4:4.
        known: whether random access is known to be right in this codec; if not, it has to be tried out.
        from_start: whether frames are decoded from the start alone: in containers without an index, and where random access
            was tried out and gave other frames; then `keys` is empty.
        indexed: whether the container says where its packets are.
    """

    frames: int
    header_frames: int
    empty: int
    width: int
    height: int
    declared_rate: float
    times: array
    tick: float
    keys: array
    seeks: array
    by_packet: bool
    delay: int
    lost: int
    streams: int
    leading: bool
    plain: bool
    display: Display
    codec: str
    full_chroma: bool
    known: bool
    from_start: bool = False
    indexed: bool = True

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


def index_packets(container: av.container.InputContainer, stream: av.VideoStream) -> PacketIndex:
    """Walk the packets; the first frame is decoded on the way, which saves to open the file twice."""
    if container.format.name.split(",")[0] not in _INDEXED:
        return index_frames(container, stream)
    shown: list[tuple[int | None, int | None]] = []  # (presentation time, decoding time) of packets
    keys: list[tuple[int, int]] = []  # likewise
    first: list[av.VideoFrame] = []
    leading, cut, frameless, delay = False, 0, 0, 0
    codec = stream.codec_context.codec
    shows = shows_frame(codec.canonical_name)
    for packet in intact_packets(container, stream):
        if not first:
            first += decode(stream, packet)[:1]
            delay = len(shown)
        if not packet.size:
            continue
        if shows and not shows(bytes(packet)):
            frameless += 1
            continue
        if keys and packet.pts is not None and packet.pts < keys[-1][0]:
            leading = True
        if packet.is_keyframe and packet.pts is not None:
            keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
        if packet.is_discard:  # an edit list cuts the frame away: it is decoded but not shown
            cut += 1
        else:
            shown.append((packet.pts, packet.dts))
    if not first:  # the file broke off: its frames are still inside the decoder
        first += decode(stream, None)[:1]
        delay = len(shown)
    found, shown = len(shown), _from_first(shown, first, container)
    lost = found - len(shown)
    pixels = stream.codec_context.format
    kind = container.format.name.split(",")[0]
    by_packet = kind == "avi"
    times = _ascending([dts if by_packet else pts for pts, dts in shown])
    # The header of AVI counts ticks, which mostly are frames, also those of packets of no bytes, which FFmpeg does not give.
    step = _usual_step(times)
    without = times[-1] - times[0] + step - len(times) if by_packet and times else frameless
    numbers, seeks = _key_frames(times, keys, kind)
    return PacketIndex(
        frames=len(shown),
        header_frames=max(0, stream.frames - cut - lost - without),
        empty=frameless if codec.canonical_name == "mpeg4" else 0,  # hidden frames of VP8 and VP9 hold something
        width=first[0].width if first else 0,
        height=first[0].height if first else 0,
        declared_rate=float(stream.average_rate or stream.guessed_rate or 0),
        times=_given_later(times, step, delay) if by_packet else times,
        tick=_tick(stream),
        keys=numbers,
        seeks=seeks,
        by_packet=by_packet,
        delay=delay if by_packet else 0,
        lost=lost,
        streams=_videos(container),
        leading=leading,
        plain=pixels is not None
        and all(part.bits <= 8 for part in pixels.components)
        and pixels.height % 2 == 0
        and not any(frame.interlaced_frame for frame in first),
        display=display_of(stream, first[0]) if first else Display(),
        codec=codec.canonical_name,
        full_chroma=pixels is not None and pixels.chroma_width(64) == pixels.chroma_height(64) == 64,
        known=codec.intra_only or codec.canonical_name in _KNOWN_CODECS,
    )


def _key_frames(times: array, keys: list[tuple[int, int]], kind: str) -> tuple[array, array]:
    """Numbers of key frames, ascending, and where to seek to."""
    if not times:
        return array("q"), array("q")
    places = sorted((dts if kind == "avi" else pts, pts if kind in _SOUGHT_BY_PTS else dts) for pts, dts in keys)
    return array("q", [bisect_left(times, time) for time, _ in places]), array("q", [place for _, place in places])


def index_frames(container: av.container.InputContainer, stream: av.VideoStream) -> PacketIndex:
    """What decoding all of a stream says, for containers that are read from their start."""
    first: av.VideoFrame | None = None
    shown: list[tuple[int | None, bool]] = []  # presentation time, whether it is damaged
    try:
        for packet in _flushed(intact_packets(container, stream)):
            for frame in decode(stream, packet):
                first = first or frame
                shown.append((frame.pts, frame.is_corrupt))
    except av.FFmpegError as error:  # what lies before can be read
        logger.debug("%s: frames end early: %s", container.name, error)
    # The frame in which it broke off; those that are shown next to it may have been stored before it, and be whole.
    broken = next((i for i in range(max(0, len(shown) - _NEIGHBOURS), len(shown)) if shown[i][1]), len(shown))
    shown = shown[:broken]
    times = [time for time, _ in shown]
    in_order = _ascending(times)
    return PacketIndex(
        frames=len(times),
        header_frames=stream.frames,
        empty=0,
        width=first.width if first else 0,
        height=first.height if first else 0,
        declared_rate=float(stream.average_rate or stream.guessed_rate or 0),
        times=in_order if list(in_order) == times else array("q"),  # a recording may start its clock again
        tick=_tick(stream),
        keys=array("q"),
        seeks=array("q"),
        by_packet=False,
        delay=0,
        lost=0,
        streams=_videos(container),
        leading=False,
        plain=False,
        display=display_of(stream, first) if first else Display(),
        codec=stream.codec_context.codec.canonical_name,
        full_chroma=False,
        known=True,
        from_start=True,
        indexed=False,
    )


def _flushed(packets: Iterator[av.Packet]) -> Iterator[av.Packet | None]:
    """Packets, and what flushes the decoder if the file broke off: its last frames are still inside."""
    packet = None
    for packet in packets:
        yield packet
    if packet is not None and packet.size:
        yield None


def _from_first(
    shown: list[tuple[int | None, int | None]], first: list[av.VideoFrame], container: av.container.InputContainer
) -> list[tuple[int | None, int | None]]:
    """The packets from the first frame on that can be decoded, but for AVI, where presentation times are guesses."""
    start = first[0].pts if first and not container.format.name.startswith("avi") else None
    return shown if start is None else [(pts, dts) for pts, dts in shown if pts is None or pts >= start]


def _given_later(times: array, step: int, delay: int) -> array:
    """Times of the packets on whose arrival frames come; those still in the decoder at the end follow in the usual step."""
    return times[delay:] + array("q", [times[-1] + step * (i + 1) for i in range(delay)]) if times else times


def _usual_step(times: array) -> int:
    """Ticks from a frame to the next, the median; 1 if there is no next."""
    return int(median_low([later - time for time, later in pairwise(times)])) if len(times) > 1 else 1


def _tick(stream: av.VideoStream) -> float:
    """Seconds of a tick."""
    assert stream.time_base is not None  # FFmpeg gives one to every stream that it opens
    return float(stream.time_base)


def _videos(container: av.container.InputContainer) -> int:
    """Number of video streams; the picture on a cover is none."""
    return sum(not stream.disposition & Disposition.attached_pic for stream in container.streams.video)


def _ascending(times: list[int | None]) -> array:
    """Times in order; none at all if one is missing or there twice."""
    known = sorted({time for time in times if time is not None})
    return array("q", known if len(known) == len(times) else [])


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
