"""Files whose random access goes wrong where a container is believed: what stands in their first packets alone, frames that are
hidden, edit lists that cut between key frames, and marks of key frames that are none.
"""

import re
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from videos.made import write_video

Stored = list[tuple[bytes, bool]]  # content and mark of each packet
OLD_GOP = 4
X265 = "log-level=none:keyint=20:bframes={}:open-gop={}"


def decoded(path: Path, start: int | None = None) -> list[np.ndarray | None]:
    """All frames (H,W,3) in order, or those after a mere seek to `start` ticks; None for one that is marked as damaged."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        if start is not None:
            container.seek(start, stream=stream)
        return [None if frame.is_corrupt else frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


def write_old_x264(path: Path) -> Path:
    """H.264 4:4:4 of 60 frames that names, in its first packet alone, an x264 with a fault that FFmpeg works round.

    It was none, so that some of its groups of `OLD_GOP` frames are damaged; the others tell whether the fault is worked round.
    """
    settings = f"keyint={OLD_GOP}:threads=1:scenecut=0:ref=1:bframes=0:qp=38:weightp=0:8x8dct=1:no-psy=1:subme=1:trellis=0"
    draw = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"x264-params": settings})
        stream.height, stream.width, stream.pix_fmt = 48, 112, "yuv444p"
        for i in range(60):
            noise = 0 if i % OLD_GOP == 0 else draw.integers(-40, 41, (48, 112, 3))
            picture = np.broadcast_to(90 + i + noise, (48, 112, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
    content, notes = re.subn(rb"(?<=x264 - core )[0-9]{3}", b"148", path.read_bytes())
    assert notes == 1
    path.write_bytes(content)
    return path


def rewrite(source: Path, path: Path, change: Callable[[Stored], Stored], **options: str) -> Path:
    """Copy a video without B-frames at 25 frames a second, with other packets; `options` are the muxer's."""
    with av.open(str(source)) as opened, av.open(str(path), "w", options=options) as container:
        stream = container.add_stream_from_template(opened.streams.video[0])
        stored = [(bytes(packet), packet.is_keyframe) for packet in opened.demux(video=0) if packet.size]
        for time, (content, is_key) in enumerate(change(stored)):
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), is_key
            packet.pts = packet.dts = time
            container.mux(packet)
    return path


def write_jpeg_tables(path: Path, changes: Sequence[int] = ()) -> Path:
    """MJPEG of 60 frames with quantisation tables in the first packet alone, and in those of `changes`, where others begin."""
    qualities = {}
    for quality in (4, 8):
        options = {"qmin": str(quality), "qmax": str(quality)}
        part = write_video(path.with_name(f"{quality}.avi"), "mjpeg", frames=60, pixels="yuvj420p", options=options)
        rewrite(part, path, lambda stored, quality=quality: qualities.setdefault(quality, stored))

    def without_tables(packet: bytes) -> bytes:
        start = packet.index(b"\xff\xdb")
        return packet[:start] + packet[start + 2 + int.from_bytes(packet[start + 2 : start + 4], "big") :]

    def change(_: Stored) -> Stored:
        packets, quality = [], 4
        for i, pair in enumerate(zip(qualities[4], qualities[8], strict=True)):
            quality = 12 - quality if i in changes else quality
            content = dict(zip((4, 8), pair, strict=True))[quality][0]
            packets.append((content if i == 0 or i in changes else without_tables(content), True))
        return packets

    return rewrite(path.with_name("4.avi"), path, change)


def write_hidden(path: Path, codec: str, together: bool = False) -> Path:
    """VP8 or VP9 of 60 frames, of which every tenth, or each key frame of VP9, is hidden; `together`: in a superframe with the
    frame that follows.
    """
    options = {"lag-in-frames": "0", "deadline": "realtime", "cpu-used": "8"}
    source = write_video(path.with_name(f"shown{path.suffix}"), codec, frames=60, gop=15, options=options)

    def hide(stored: Stored) -> Stored:
        if codec == "libvpx":  # the bit `show_frame` of the frame tag
            return [(bytes([c[0] & ~0x10]) + c[1:], key) if i % 10 == 5 else (c, key) for i, (c, key) in enumerate(stored)]
        return [(bytes([c[0] & ~0x02]) + c[1:], key) if key and i else (c, key) for i, (c, key) in enumerate(stored)]

    # A muxer left to itself joins hidden frames of VP9 and the next one that is shown.
    return rewrite(source, path, hide, **({} if together else {"fflags": "-autobsf"}))


def write_edited(path: Path, codec: str, edits: Sequence[tuple[int, int]], b_frames: int = 2, open_gop: int = 0) -> Path:
    """Sixty frames with a key frame at each twentieth, of which an edit list shows (first, number) runs."""
    options = {"x265-params": X265.format(b_frames, open_gop)} if codec == "libx265" else {}
    write_video(path, codec, frames=60, gop=20, b_frames=b_frames, size=(96, 128), options=options)
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 4
    version, count, _, media_time, _ = struct.unpack(">IIIiI", content[at : at + 20])
    assert (version, count) == (0, 1)
    scales = {}
    for box in (b"mdhd", b"mvhd"):
        start = content.index(box) + 16
        scales[box] = struct.unpack(">I", content[start : start + 4])[0]
    rows = [
        struct.pack(">IiI", number * scales[b"mvhd"] // 25, media_time + first * scales[b"mdhd"] // 25, 1 << 16)
        for first, number in edits
    ]
    content[at : at + 20] = struct.pack(">II", 0, len(rows)) + b"".join(rows)
    for box in (b"elst", b"edts", b"trak", b"moov"):  # all behind the data, whose places stay
        start = content.index(box) - 4
        size = struct.unpack(">I", content[start : start + 4])[0]
        content[start : start + 4] = struct.pack(">I", size + 12 * (len(rows) - 1))
    path.write_bytes(content)
    return path


def write_marked(path: Path, codec: str) -> Path:
    """Sixty frames without B-frames, every one of them marked as a key frame, though every twentieth alone is one."""
    options = {"x265-params": X265.format(0, 0)} if codec == "libx265" else {}
    size = (144, 176) if codec == "h263" else (96, 128)
    suffix = ".3gp" if codec == "h263" else ".mp4"
    source = write_video(path.with_name(f"plain{suffix}"), codec, frames=60, gop=20, size=size, options=options)
    marked = rewrite(source, path.with_suffix(suffix), lambda stored: [(content, True) for content, _ in stored])
    return marked.rename(path)
