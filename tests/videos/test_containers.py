"""Every container that FFmpeg opens as a video is one: random access equals a sequential decode, and nothing goes uncounted."""

import random
import tempfile
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from data.trees import numbered, plant_frames, plant_video
from einops import rearrange
from videos.made import moving_pictures, sequential

from sparsevid.data.tree.manifest import build_manifest, open_manifest
from sparsevid.videos.kinds import kind_of
from sparsevid.videos.read import BACKENDS, DecodeError, frame_times, iter_frames, probe, read_frames

# name → (FFmpeg's name of the container, encoder, B-frames)
CONTAINERS = {
    "h264.ts": ("mpegts", "libx264", 2),
    "mpeg2.ts": ("mpegts", "mpeg2video", 2),
    "mpeg1.mpg": ("mpeg", "mpeg1video", 2),
    "mpeg2.vob": ("vob", "mpeg2video", 2),
    "h264.ps": ("mpeg", "libx264", 2),
    "old.flv": ("flv", "flv1", 0),
    "h264.flv": ("flv", "libx264", 2),
    "wmv2.wmv": ("asf", "wmv2", 0),
    "h264.asf": ("asf", "libx264", 2),
    "vp8.ogv": ("ogg", "libvpx", 0),
    "h263.3gp": ("3gp", "h263", 0),
    "mpeg4.3g2": ("3g2", "mpeg4", 0),
    "h264.mxf": ("mxf", "libx264", 2),
    "mpeg4.nut": ("nut", "mpeg4", 2),
    "vp8.ivf": ("ivf", "libvpx", 0),
    "rv20.rm": ("rm", "rv20", 0),
    "raw.y4m": ("yuv4mpegpipe", "wrapped_avframe", 0),
    "bare.h264": ("h264", "libx264", 2),
    "bare.m2v": ("mpeg2video", "mpeg2video", 2),
    "bare.m4v": ("m4v", "mpeg4", 0),
    "mpeg2.wtv": ("wtv", "mpeg2video", 2),
}
STREAMS = ("h264.ts", "mpeg2.ts", "mpeg2.vob", "bare.m2v")
FRAMES, SIZE = 40, (144, 176)  # a size of H.263


def write(path: Path, name: str) -> Path:
    """A file in one of CONTAINERS, with a key frame every 12 frames at most."""
    path.write_bytes(encoded(name))
    return path


@cache
def encoded(name: str) -> bytes:
    container, codec, b_frames = CONTAINERS[name]
    with tempfile.TemporaryDirectory() as folder, av.open(f"{folder}/{name}", "w", format=container) as output:
        stream = output.add_stream(codec, rate=25, options={"deadline": "realtime"} if codec == "libvpx" else {})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 12, b_frames
        for picture in moving_pictures(FRAMES, *SIZE):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
        output.close()
        return Path(folder, name).read_bytes()


def write_sound(path: Path, container: str, codec: str) -> Path:
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=44100)
        stream.bit_rate = 64_000
        frame = av.AudioFrame(stream.codec_context.format.name, "stereo", 1024)
        frame.sample_rate = 44100
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        stream.codec_context.layout = "stereo"
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def as_array(frames):
    return rearrange(frames, "t c h w -> t h w c").numpy()


def assert_random_access(path, backend, rounds):
    reference = sequential(path)
    assert probe(path).frames == len(reference)
    draw = random.Random(path.name)
    for _ in range(rounds):
        indices = [draw.randrange(len(reference)) for _ in range(3)]
        frames = as_array(read_frames(path, indices, backend, display=False))
        assert all(np.array_equal(frame, reference[i]) for i, frame in zip(indices, frames, strict=True)), indices
    for i in (0, 1, 2, len(reference) - 1):
        assert np.array_equal(as_array(read_frames(path, [i], backend, display=False))[0], reference[i]), i


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CONTAINERS)
def test_random_access_equals_a_sequential_decode(tmp_path, name, backend):
    path = write(tmp_path / name, name)
    assert kind_of(path) == "video" and len(sequential(path)) == FRAMES
    assert_random_access(path, backend, rounds=3)
    assert np.array_equal(np.concatenate([as_array(each) for each in iter_frames(path, 16, display=False)]), sequential(path))


@pytest.mark.parametrize("name", STREAMS)
def test_a_recording_that_begins_between_key_frames(tmp_path, name):
    """Its first packets cannot be decoded, and are no frames."""
    path = write(tmp_path / name, name)
    content = path.read_bytes()
    path.write_bytes(content[len(content) // 3 :])
    assert 10 < probe(path).frames < FRAMES
    assert_random_access(path, "pyav", rounds=3)
    assert [video.path for video in build_manifest(tmp_path, full_scan=True, strict=True).videos] == [name]


@pytest.mark.parametrize("name", ["h264.ts", "mpeg2.ts", "mpeg2.vob", "old.flv"])
def test_a_clock_that_starts_again_orders_no_frames(tmp_path, name):
    """Two recordings in one file, the later frames with the earlier times: they stay in the order in which they are shown."""
    path = write(tmp_path / name, name)
    path.write_bytes(path.read_bytes() * 2)
    assert_random_access(path, "pyav", rounds=3)
    if len(sequential(path)) > FRAMES:
        with pytest.raises(DecodeError, match="no presentation times"):
            frame_times(path)


@pytest.mark.parametrize("name", STREAMS)
def test_a_recording_that_breaks_off_gives_all_but_the_frame_in_which_it_does(tmp_path, name):
    path = write(tmp_path / name, name)
    whole = sequential(path)
    content = path.read_bytes()
    path.write_bytes(content[: 2 * len(content) // 3])
    frames = as_array(read_frames(path, range(probe(path).frames)))
    assert len(sequential(path)) - 2 <= len(frames) < FRAMES
    assert all(np.array_equal(frame, other) for frame, other in zip(frames[:-1], whole, strict=False))


def test_every_video_of_a_mixed_set_is_found_and_the_rest_counted(tmp_path, caplog):
    for name in CONTAINERS:
        write(tmp_path / name, name)
    write(tmp_path / "named otherwise.bin", "mpeg2.ts")
    plant_video(tmp_path / "a.mp4")
    for name in ("text.mpg", "text.ts", "text.wmv", "text.ogv"):
        (tmp_path / name).write_text("no video\n" * 100)
    (tmp_path / "empty.flv").write_bytes(b"")
    (tmp_path / "classes.txt").write_text("1 owl\n")
    (tmp_path / "README").write_text("of owls\n")
    manifest = build_manifest(tmp_path)
    assert {video.path for video in manifest.videos} == {*CONTAINERS, "named otherwise.bin", "a.mp4"}
    assert manifest.rejects == {
        "empty file (0 bytes)": ["empty.flv"],
        "no video by its content": ["text.mpg", "text.ogv", "text.ts", "text.wmv"],
    }
    assert manifest.others == {"no video or image: without extension": ["README"], "no video or image: .txt": ["classes.txt"]}
    assert open_manifest(tmp_path) == open_manifest(tmp_path) == manifest
    for name in (*CONTAINERS, "named otherwise.bin", "a.mp4"):
        (tmp_path / name).unlink()
    said = r"no usable video.*no video by its content: 4.*no video or image: without extension: 1, \.txt: 1"
    with pytest.raises(ValueError, match=said):
        build_manifest(tmp_path)


@pytest.mark.parametrize("extension", [".ts", ".mpg", ".wmv", ".mp4"])
@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nother.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile other.mp4\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-main:2011"/>',
        '<asx version="3.0"><entry><ref href="other.mp4"/></entry></asx>',
        "[Reference]\nRef1=http://127.0.0.1/other.mp4\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    ],
)
def test_playlists_open_nothing_whatever_they_are_called(tmp_path, extension, content):
    plant_video(tmp_path / "other.mp4")
    (tmp_path / f"list{extension}").write_text(content)
    manifest = build_manifest(tmp_path)
    assert [video.path for video in manifest.videos] == ["other.mp4"]
    assert manifest.rejects == {"no video by its content": [f"list{extension}"]}
    with pytest.raises(DecodeError, match="not readable as a video|no video stream"):
        read_frames(tmp_path / f"list{extension}", [0])


@pytest.mark.parametrize(
    ("name", "container", "codec"), [("s.ogg", "ogg", "flac"), ("s.wma", "asf", "wmav2"), ("s.m4a", "ipod", "aac")]
)
def test_sound_beside_frames_is_no_video(tmp_path, name, container, codec):
    """Ogg, ASF and MP4 hold either."""
    folder = plant_frames(tmp_path / "clip", numbered(3))
    write_sound(folder / name, container, codec)
    manifest = build_manifest(tmp_path, strict=True)
    assert [(video.path, video.frames) for video in manifest.videos] == [("clip", 3)]
    assert list(manifest.others.values()) == [[f"clip/{name}"]]


def test_sound_in_a_container_that_does_not_say_so_is_no_fault(tmp_path):
    plant_video(tmp_path / "a.mp4")
    write_sound(tmp_path / "a.mka", "matroska", "flac")
    manifest = build_manifest(tmp_path, strict=True)
    assert manifest.others == {"no video stream": ["a.mka"]} and len(manifest.videos) == 1


@pytest.mark.parametrize("beside", ["meta/list.txt", "a/b/labels.npy"])
def test_images_in_the_root_are_a_video_whatever_else_lies_below(tmp_path, beside):
    plant_frames(tmp_path, numbered(3))
    (tmp_path / beside).parent.mkdir(parents=True)
    (tmp_path / beside).write_bytes(b"something else")
    manifest = build_manifest(tmp_path)
    assert [(video.path, video.frames) for video in manifest.videos] == [(".", 3)]
    assert list(manifest.others.values()) == [[beside]]


def test_two_files_of_one_name_are_noted(tmp_path):
    plant_video(tmp_path / "x" / "a.mp4")
    plant_video(tmp_path / "x" / "a.avi")
    plant_video(tmp_path / "y" / "a.mp4")
    for folder in ("v1.0", "v1.1"):
        plant_frames(tmp_path / folder, numbered(2))
    assert build_manifest(tmp_path).notes == {"another video of the same name in its folder": ["x/a.avi", "x/a.mp4"]}
