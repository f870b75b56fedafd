"""Files that players show and that differ from what most files are: they are read as a decode from the start gives them."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from einops import rearrange
from videos.made import moving_pictures, sequential, write_video

from sparsevid.data.tree.manifest import build_manifest
from sparsevid.data.tree.probing import CUT_SHORT
from sparsevid.videos.decode_file import BEGINS_LATE
from sparsevid.videos.read import BACKENDS, DecodeError, iter_frames, probe, read_frames


def assert_read(path, backend="pyav"):
    """Every frame by itself, and all in order, stored as they are."""
    reference = sequential(path)
    assert probe(path).frames == len(reference)
    for i, expected in enumerate(reference):
        (frame,) = read_frames(path, [i], backend, display=False)
        assert np.array_equal(rearrange(frame, "c h w -> h w c"), expected), i
    whole = torch.cat(list(iter_frames(path, display=False)))
    assert np.array_equal(rearrange(whole, "t c h w -> t h w c"), np.stack(reference))


@pytest.mark.parametrize(("codec", "suffix"), [("msmpeg4", "avi"), ("wmv2", "avi"), ("svq1", "mov")])
def test_rows_may_be_padded(tmp_path, codec, suffix):
    """100 pixels of RGB are no multiple of what FFmpeg aligns rows to."""
    pixels = "yuv410p" if codec == "svq1" else "yuv420p"
    assert_read(write_video(tmp_path / f"v.{suffix}", codec, 20, size=(80, 100), gop=6, pixels=pixels))


def without_beginning(path, packets, target):
    """A copy of a video without its first packets, as a recording that begins between key frames."""
    with av.open(str(path)) as source, av.open(str(target), "w") as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for i, packet in enumerate(packet for packet in source.demux(stream) if packet.size):
            if i >= packets:
                packet.stream = copy
                output.mux(packet)
    return target


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mp4"), ("libx264", "mkv"), ("libx265", "mkv")])
def test_a_recording_may_begin_between_key_frames(tmp_path, codec, suffix):
    """Of HEVC some versions of FFmpeg give the frames before the first key frame, too: then none is lost."""
    write_video(tmp_path / f"whole.{suffix}", codec, options={"x265-params": "log-level=none"} if codec == "libx265" else None)
    root = tmp_path / "data"
    root.mkdir()
    path = without_beginning(tmp_path / f"whole.{suffix}", 5, root / f"v.{suffix}")
    assert_read(path)
    frames = probe(path).frames
    assert 0 < frames < 35 or (codec, frames) == ("libx265", 35)
    manifest = build_manifest(root, strict=True, full_scan=True)
    assert manifest.notes == ({BEGINS_LATE: [path.name]} if frames < 35 else {}) and manifest.videos[0].frames == frames


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_two_video_streams_both_decoders_read_one(tmp_path, suffix, backend):
    path = tmp_path / f"v.{suffix}"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 96, 96, "yuv420p"
        for picture in moving_pictures(12, 96, 96):
            for stream, pixels in zip(streams, (picture, 255 - picture), strict=True):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    assert_read(path, backend)


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("tick", [1, 40])
def test_a_frame_of_avi_may_take_many_ticks(tmp_path, tick, b_frames):
    path = tmp_path / "data" / "v.avi"
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25 * tick)
        stream.codec_context.max_b_frames = b_frames
        for i, picture in enumerate(moving_pictures(30, 48, 64)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = tick * i, Fraction(1, 25 * tick)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = probe(path)
    assert (info.frames, info.fps, info.variable_rate) == (30, pytest.approx(25), False) and info.notes == ()
    assert_read(path)
    assert len(build_manifest(path.parent, strict=True).videos) == 1


def test_the_cover_of_a_sound_file_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("aac", rate=44100), container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 48, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(moving_pictures(1, 48, 48)[0], format="rgb24")))
        container.mux(cover.encode(None))
        frame = av.AudioFrame("fltp", "stereo", 1024)
        frame.sample_rate = 44100
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    with pytest.raises(DecodeError, match="no video stream"):
        probe(path)


@pytest.mark.parametrize("shape", [(16, 12, 14, 3), (4, 4, 12, 14, 3)], ids=["clip", "stack"])
def test_an_array_that_breaks_off_has_the_frames_that_are_there(tmp_path, shape):
    root = tmp_path / "data"
    root.mkdir()
    clip = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(root / "v.npy", clip)
    with (root / "v.npy").open("r+b") as file:
        file.truncate(128 + 9 * 12 * 14 * 3 + 5)
    manifest = build_manifest(root)
    assert manifest.notes == {CUT_SHORT: ["v.npy"]} and sum(video.frames for video in manifest.videos) == 9
    assert all(video.frames > 0 for video in manifest.videos)
    frames = rearrange(read_frames(root / "v.npy", range(9)), "t c h w -> t h w c")
    assert np.array_equal(frames, clip.reshape(16, 12, 14, 3)[:9])
    with pytest.raises(DecodeError, match=CUT_SHORT):
        build_manifest(root, strict=True)


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_what_is_left_of_a_damaged_stream_is_one_video_for_all_readers(tmp_path, damage):
    root = tmp_path / "data"
    path = write_video(root / ("v.ts" if damage == "cut" else "v.flv"), "libx264" if damage == "cut" else "flv1", 60)
    content = path.read_bytes()
    place = 61 * len(content) // 100
    if damage == "cut":
        path.write_bytes(content[:place])
    else:
        path.write_bytes(
            content[:place] + bytes(np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8)) + content[place + 300 :]
        )
    frames = probe(path).frames
    assert 0 < frames <= 60
    assert len(torch.cat(list(iter_frames(path)))) == len(read_frames(path, range(frames))) == frames
    plain, scanned = build_manifest(root), build_manifest(root, full_scan=True)
    assert [video.frames for video in plain.videos] == [video.frames for video in scanned.videos] == [frames]
