"""Random access equals a sequential decode; the header is not believed; damage is an error that says what was found."""

import pickle
import random
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from einops import rearrange
from videos.made import REAL, moving_pictures, sequential, write_video

from sparsevid.videos import decode_file
from sparsevid.videos.read import (
    BACKENDS,
    DEFAULT_BACKEND,
    DecodeError,
    count_decoded,
    frame_times,
    iter_frames,
    probe,
    read_frames,
)

FAMILIES = {
    "h264.mp4": {"gop": 12},
    "h264_b.mkv": {"gop": 12, "b_frames": 2},
    "h264_open.mp4": {"options": {"x264-params": "open-gop=1:keyint=12:bframes=3"}},
    "h264.avi": {"gop": 12, "b_frames": 2},
    "xvid.avi": {"codec": "mpeg4"},
    "xvid_b.avi": {"codec": "mpeg4", "b_frames": 2},
    "mpeg2_b.mkv": {"codec": "mpeg2video", "b_frames": 2},
    "intra.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "vp9.webm": {"codec": "libvpx-vp9", "frames": 30},
    "palette.gif": {"codec": "gif", "pixels": "rgb8"},
    "odd.mkv": {"codec": "ffv1", "size": (47, 113)},
    "odd_width.mkv": {"codec": "ffv1", "size": (48, 113)},
    "narrow.mp4": {"size": (48, 48)},
    "grey.mkv": {"codec": "ffv1", "pixels": "gray"},
    "deep.mkv": {"codec": "ffv1", "pixels": "yuv420p10le"},
}


def assert_equals_sequential(path, backend, rounds):
    reference = sequential(path)
    draw = random.Random(path.name)
    for _ in range(rounds):
        indices = [draw.randrange(len(reference)) for _ in range(6)]
        indices += [indices[0], len(reference) - 1, 0]
        expected = rearrange(torch.from_numpy(np.stack([reference[i] for i in indices])), "t h w c -> t c h w")
        frames = read_frames(path, indices, backend, display=False)
        assert frames.dtype == torch.uint8 and frames.is_contiguous()
        assert torch.equal(frames, expected), f"{path.name} by {backend}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", REAL)
def test_real_clips_are_frame_accurate(real_videos, name, backend):
    assert_equals_sequential(real_videos / name, backend, rounds=2 if "carphone" in name else 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_containers_and_codecs_are_frame_accurate(tmp_path, name, backend):
    path = write_video(tmp_path / name, **FAMILIES[name])
    assert_equals_sequential(path, backend, rounds=5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_single_frame_of_xvid_with_b_frames(tmp_path, backend):
    """The kind of UCF101's files, where decord alone returns neighbours."""
    path = write_video(tmp_path / "v.avi", "mpeg4", b_frames=2)
    reference = sequential(path)
    for i in range(len(reference)):
        assert np.array_equal(rearrange(read_frames(path, [i], backend)[0], "c h w -> h w c").numpy(), reference[i]), i


@pytest.mark.parametrize("name", ["h264.mp4", "xvid_b.avi", "palette.gif"])
def test_chunks_make_the_whole(tmp_path, name):
    path = write_video(tmp_path / name, **FAMILIES[name])
    chunks = list(iter_frames(path, chunk=7))
    assert [len(chunk) for chunk in chunks] == [7, 7, 7, 7, 7, 5]
    assert torch.equal(torch.cat(chunks), read_frames(path, range(40)))


def test_probe(real_videos, tmp_path):
    info = probe(real_videos / "carphone_pristine.mp4")
    assert (info.frames, info.width, info.height) == (120, 193, 144)  # its pixels are 128:117
    assert probe(real_videos / "carphone_pristine.mp4", display=False).width == 176
    assert info.fps == pytest.approx(30000 / 1001)
    assert probe(write_video(tmp_path / "a.mkv")).frames == 40  # Matroska's header holds no number of frames


def write_at(path, times, codec="libx264", rate=Fraction(25), b_frames=0):
    """Write one frame at each of `times`, ascending whole numbers, in steps of 1 / rate seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = 48, 112, "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.max_b_frames = b_frames
        for picture, time in zip(moving_pictures(len(times)), times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


CONSTANT = tuple(range(60))
VARIABLE = tuple(i + 3 * (i // 10) for i in range(60))  # three places are left out after every tenth frame
TIMED = {  # name → (codec, frames a second, B-frames, rounding of the container's times in seconds)
    "a.mp4": ("libx264", Fraction(30000, 1001), 0, 0),
    "b.mp4": ("libx264", Fraction(25), 2, 0),
    "a.mkv": ("libx264", Fraction(30000, 1001), 2, 1e-3),
    "b.mkv": ("libx264", Fraction(60), 0, 1e-3),
    "a.avi": ("mpeg4", Fraction(30000, 1001), 2, 0),
    "h264.avi": ("libx264", Fraction(25), 0, 0),
    "a.webm": ("libvpx-vp9", Fraction(24000, 1001), 0, 1e-3),
    "a.gif": ("gif", Fraction(30), 0, 1e-2),
}


@pytest.mark.parametrize("times", [CONSTANT, VARIABLE], ids=["constant", "variable"])
@pytest.mark.parametrize("name", TIMED)
def test_times_are_those_that_were_written(tmp_path, name, times):
    """Rounding to the container's ticks is no variable rate; places without a frame are."""
    codec, rate, b_frames, rounding = TIMED[name]
    path = write_at(tmp_path / name, times, codec, rate, b_frames)
    expected = [float(time / rate) for time in times]
    assert frame_times(path) == pytest.approx(expected, abs=rounding + 1e-9)
    info = probe(path)
    assert info.frames == 60 and info.seconds == pytest.approx(expected[-1], abs=rounding + 1e-9)
    assert info.variable_rate == (times is VARIABLE)
    assert info.notes == (("variable frame rate",) if times is VARIABLE else ())
    assert info.fps == pytest.approx(59 / expected[-1], rel=1e-2 if rounding == 1e-2 else 1e-3)


def test_h264_with_b_frames_in_avi_has_times(tmp_path):
    """AVI stores no presentation times for it, but that each frame fills one place."""
    path = write_at(tmp_path / "v.avi", CONSTANT, "libx264", Fraction(25), 2)
    assert frame_times(path) == pytest.approx([i / 25 for i in range(60)])
    assert not probe(path).variable_rate


def test_one_frame_has_one_time(tmp_path):
    path = write_video(tmp_path / "v.mp4", frames=1)
    info = probe(path)
    assert frame_times(path) == [0.0] and (info.frames, info.seconds, info.variable_rate) == (1, 0.0, False)


def test_times_ripple_through_a_copy(tmp_path):
    """MP4 copied out of Matroska has fine ticks, but times of whole milliseconds: still a constant rate."""
    source_path = write_at(tmp_path / "v.mkv", CONSTANT, rate=Fraction(30000, 1001))
    with av.open(str(source_path)) as source, av.open(str(tmp_path / "v.mp4"), "w") as container:
        copied = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copied
                container.mux(packet)
    assert len(frame_times(tmp_path / "v.mp4")) == 60
    assert not probe(tmp_path / "v.mp4").variable_rate


def test_times_of_real_clips(real_videos):
    for name in REAL:
        info = probe(real_videos / name)
        assert not info.variable_rate and info.seconds == pytest.approx((info.frames - 1) / info.fps, rel=1e-3)


@pytest.mark.parametrize("name", ["h264.mp4", "h264_b.mkv", "xvid.avi", "vp9.webm"])
def test_a_clip_of_a_long_file_decodes_its_span_and_the_lead_of_its_key_frame(tmp_path, name):
    family = {**FAMILIES[name], "gop": 50, "frames": 300 if name != "vp9.webm" else 120}
    path = write_video(tmp_path / name, **family)
    probe(path)
    draw = random.Random(name)
    for start in [0, 49, 50, *(draw.randrange(family["frames"] - 46) for _ in range(6))]:
        with count_decoded() as count:
            read_frames(path, range(start, start + 46, 3))
        assert 16 <= count.frames <= 46 + 49
    with count_decoded() as outer, count_decoded() as inner:
        read_frames(path, [0])
    assert inner.frames == outer.frames <= 3  # a decoder may give two frames for a packet


def test_distant_frames_are_sought_one_by_one(tmp_path):
    path = write_video(tmp_path / "v.mp4", frames=300, gop=25)
    with count_decoded() as count:
        read_frames(path, [0, 150, 299])
    assert count.frames <= 3 * 25


def test_packets_are_walked_once_and_anew_when_the_file_changes(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", frames=40)
    walks = []
    walk = decode_file.index_packets
    monkeypatch.setattr(decode_file, "index_packets", lambda *given: walks.append(path) or walk(*given))
    for start in (0, 5, 20):
        first = read_frames(path, range(start, start + 16))
    frame_times(path)
    assert len(walks) == 1
    write_video(path, frames=30)
    assert len(frame_times(path)) == 30 and len(walks) == 2
    write_video(path, frames=40)
    assert torch.equal(read_frames(path, range(20, 36)), first)


def write_xvid(path, packed):
    """Sixty frames as Xvid's own encoder stores them: with each B-frame in the packet before, followed by a placeholder, or
    with placeholders alone, for frames that equal the one before."""
    vop, placeholder = b"\x00\x00\x01\xb6", b"\x00\x00\x01\xb6\x50\x4f"  # P-frame, marker, time 0 of 25, marker, not coded
    path.parent.mkdir(exist_ok=True)
    with av.open(str(write_video(path.with_name("plain.avi"), "mpeg4", b_frames=1, frames=60, gop=20))) as source:
        packets = [(bytes(packet), packet.is_keyframe) for packet in source.demux(video=0) if packet.size]
        stored = []
        # FFmpeg unpacks where this line of the encoder says so: its "p".
        packets[0] = (packets[0][0].replace(vop, b"\x00\x00\x01\xb2DivX503b1393p" + vop, 1), True)
        for content, is_key in packets:
            is_b = content.startswith(vop) and content[4] >> 6 == 2
            if packed and is_b:
                stored[-1] = (stored[-1][0] + content, stored[-1][1])
            else:
                stored.append((content, is_key))
            if is_b:
                stored.append((placeholder, False))
        with av.open(str(path), "w") as container:
            stream = container.add_stream_from_template(source.streams.video[0])
            for time, (content, is_key) in enumerate(stored):
                packet = av.Packet(content)
                packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), is_key
                packet.pts = packet.dts = time
                container.mux(packet)
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("packed", [True, False])
def test_xvid_with_placeholders_is_frame_accurate(tmp_path, packed, backend):
    path = write_xvid(tmp_path / "v.avi", packed)
    assert probe(path).frames == len(sequential(path)) == 60
    assert_equals_sequential(path, backend, rounds=5)
    with count_decoded() as count:
        read_frames(path, [50])
    assert count.frames <= 30


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(("name", "codec"), [("v.avi", "mpeg4"), ("v.mkv", "libx264")])
def test_random_access_in_a_file_that_breaks_off(tmp_path, name, codec, share):
    """Its table of key frames, at the end, is lost; also with the packets remembered."""
    path = cut(write_video(tmp_path / name, codec, frames=240), share)
    frames = probe(path).frames
    whole = read_frames(path, range(frames))
    for start in (frames - 1, frames // 2, 0):
        assert torch.equal(read_frames(path, [start])[0], whole[start])


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "codec", "movflags"), [("v.avi", "mpeg4", ""), ("v.mp4", "libx264", "faststart")])
def test_header_is_not_believed(tmp_path, name, codec, movflags, backend):
    """A file that breaks off says 120 frames; what is left is counted and all of it can be read."""
    path = cut(write_video(tmp_path / name, codec, frames=120, movflags=movflags), 0.6)
    info = probe(path)
    assert info.header_frames == 120 and 10 < info.frames < 100
    assert len(read_frames(path, range(info.frames), backend)) == info.frames
    with pytest.raises(DecodeError, match=f"{info.frames} does not exist: {info.frames} frames can be read, 120 by"):
        read_frames(path, [0, info.frames], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_that_an_edit_list_cuts_away_do_not_count(tmp_path, backend):
    """The first five of forty frames lie before time 0; decord counts them."""
    path = tmp_path / "cut.mp4"
    with av.open(str(write_video(tmp_path / "v.mp4", gop=20))) as source, av.open(str(path), "w") as container:
        copied = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                earlier = int(5 / 25 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - earlier, packet.dts - earlier, copied
                container.mux(packet)
    info = probe(path)
    assert info.frames == info.header_frames == 35
    assert_equals_sequential(path, backend, rounds=3)
    with pytest.raises(DecodeError, match="frame 35 does not exist"):
        read_frames(path, [35], backend)


def test_a_frame_marked_as_damaged_is_refused(tmp_path):
    """Matroska finds its way back after damage: FFmpeg gives a guessed picture and says so."""
    path = write_video(tmp_path / "v.mkv", frames=120)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = random.Random(1).randbytes(400)
    path.write_bytes(content)
    with pytest.raises(DecodeError, match="is damaged"):
        read_frames(path, range(probe(path).frames), "pyav")


@pytest.mark.parametrize("backend", BACKENDS)
def test_damage_says_how_many_frames_were_decoded(tmp_path, backend):
    path = write_video(tmp_path / "v.mp4", frames=120)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = random.Random(0).randbytes(400)
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"\d+ of 120 frames were decoded") as caught:
        read_frames(path, range(120), backend)
    assert caught.value.path == path
    # Whatever the threads of decord make of it, and when: the first frames can be read, and the verdict is PyAV's.
    with pytest.raises(DecodeError) as verdict:
        read_frames(path, range(120), "pyav")
    assert str(caught.value) == str(verdict.value)
    for _ in range(5):
        assert len(read_frames(path, range(12), backend)) == 12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"not a video at all\n" * 50, "not readable as a video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nother.mp4\n#EXT-X-ENDLIST\n", "not readable as a video"),
        (b"ffconcat version 1.0\nfile other.mp4\n", "not readable as a video"),
    ],
)
def test_no_video(tmp_path, content, reason, backend):
    """Playlists too: a file in a dataset must not make the reader open other files."""
    write_video(tmp_path / "other.mp4")
    path = tmp_path / "v.mp4"
    path.write_bytes(content)
    for read in (probe, lambda p: read_frames(p, [0], backend)):
        with pytest.raises(DecodeError, match=reason):
            read(path)


def test_missing_file(tmp_path):
    with pytest.raises(DecodeError, match="no such file"):
        probe(tmp_path / "absent.mp4")


@pytest.mark.parametrize("backend", BACKENDS)
def test_names_are_taken_literally(tmp_path, monkeypatch, backend):
    monkeypatch.chdir(tmp_path)
    for name in ("-i.mp4", "a #1 b.mp4", "größe 影.mp4", "pipe:1.mp4", "%03d.mp4", "[x]*.mp4"):
        (tmp_path / name).write_bytes(write_video(tmp_path / "plain.mp4", frames=5).read_bytes())
        assert read_frames(name, [4], backend).shape == (1, 3, 48, 112)


def test_changing_size_names_the_frame(tmp_path):
    """Pictures of two sizes in one track: each JPEG says its own."""
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 112, 48, "yuvj420p"
        packets = []
        for size in ((48, 112), (32, 32)):
            part = write_video(tmp_path / f"{size[0]}.avi", "mjpeg", frames=3, pixels="yuvj420p", size=size)
            with av.open(str(part)) as source:
                packets += [bytes(packet) for packet in source.demux(video=0) if packet.size]
        for time, content in enumerate(packets):
            packet = av.Packet(content)
            packet.pts = packet.dts = 40 * time
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 1000), True
            container.mux(packet)
    with pytest.raises(DecodeError, match="frame 3 is 32x32, frame 1 is 112x48"):
        read_frames(path, [1, 3], "pyav")


@pytest.mark.parametrize("indices", [[], [-1], [3, -2]])
def test_bad_indices(tmp_path, indices):
    with pytest.raises(ValueError, match="frame indices must be"):
        read_frames(write_video(tmp_path / "v.mp4", frames=5), indices)


def test_unknown_backend(tmp_path):
    with pytest.raises(ValueError, match="unknown decoding backend 'cv2'; accepted: pyav, decord"):
        read_frames(tmp_path / "v.mp4", [0], "cv2")


def test_missing_decord_names_the_other_backend(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", frames=5)
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ImportError, match="use backend 'pyav'"):
        read_frames(path, [0], "decord")
    assert len(read_frames(path, [0], "pyav")) == 1


def test_default_backend_is_accepted():
    assert DEFAULT_BACKEND in BACKENDS


def test_error_survives_a_worker_process():
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "broken")))
    assert str(error) == "a.mp4: broken" and error.reason == "broken"
