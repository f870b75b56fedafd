"""Where a container or a decoder would lead random access astray, it still equals a sequential decode."""

import logging
import os
import random
import shutil

import av
import numpy as np
import pytest
import torch
from einops import rearrange
from videos.awkward import OLD_GOP, decoded, write_edited, write_hidden, write_jpeg_tables, write_marked, write_old_x264
from videos.made import write_video

from sparsevid.data.open import open_data
from sparsevid.data.sources import VideoFrames
from sparsevid.data.tree.clip_rule import ClipRule
from sparsevid.data.tree.manifest import build_manifest, open_manifest
from sparsevid.evaluation.clips.clip_readers import ClipShape, VideoClips
from sparsevid.runs.config import DataConfig, RunConfig
from sparsevid.videos.read import BACKENDS, count_decoded, describe_decoder, iter_frames, probe, read_frames
from sparsevid.videos.reading import FROM_START


@pytest.fixture(scope="module")
def old_x264(tmp_path_factory):
    """The file, and its frames; None in groups of pictures with damage, where each decoder guesses for itself."""
    path = write_old_x264(tmp_path_factory.mktemp("old") / "v.mp4")
    frames = decoded(path)
    for start in range(0, len(frames), OLD_GOP):
        if any(frame is None for frame in frames[start : start + OLD_GOP]):
            frames[start : start + OLD_GOP] = [None] * OLD_GOP
    return path, frames


def as_frames(reference):
    return rearrange(torch.from_numpy(np.stack(reference)), "t h w c -> t c h w")


def assert_every_frame(path, backend):
    """Each frame by itself, in an order that is not theirs, and all together; as stored, for some pixels are not square."""
    reference = decoded(path)
    assert probe(path).frames == len(reference)
    for i in random.Random(0).sample(range(len(reference)), len(reference)):
        frame = read_frames(path, [i], backend, display=False)
        assert torch.equal(frame, as_frames([reference[i]])), f"frame {i} by {backend}"
    assert torch.equal(read_frames(path, range(len(reference)), backend, display=False), as_frames(reference))
    assert torch.equal(torch.cat(list(iter_frames(path, display=False))), as_frames(reference))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_version_of_x264_is_known_after_a_seek(old_x264, backend):
    """It stands in the first packet alone."""
    path, reference = old_x264
    intact = [i for i, frame in enumerate(reference) if frame is not None]
    for i in random.Random(0).sample(intact, len(intact)):
        assert torch.equal(read_frames(path, [i], backend), as_frames([reference[i]])), f"frame {i} by {backend}"


def misread(path, reference):
    """The frames that a mere seek to their key frame gives otherwise: those that the tests are about."""
    with av.open(str(path)) as container:
        keys = [packet.pts for packet in container.demux(video=0) if packet.is_keyframe]
    wrong = []
    for number, key in enumerate(keys):
        for i, frame in enumerate(decoded(path, key)[:OLD_GOP], number * OLD_GOP):
            if reference[i] is not None and not np.array_equal(frame, reference[i]):
                wrong.append(i)
    return wrong


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_frame_depends_on_nothing_that_was_read_before(old_x264, tmp_path, backend):
    """Copies of one file, each as this process first sees it: read at once, after a probe, and after other frames."""
    path, reference = old_x264
    wrong = misread(path, reference)
    first, second, third = (shutil.copy(path, tmp_path / f"{name}.mp4") for name in "abc")
    probe(second)
    read_frames(third, [0, 1], backend)
    for copy in (first, second, third):
        for i in wrong:
            assert torch.equal(read_frames(copy, [i], backend), as_frames([reference[i]])), (copy.name, i)
    assert wrong


@pytest.mark.parametrize("backend", BACKENDS)
def test_tables_of_the_first_jpeg_are_known_after_a_seek(tmp_path, backend):
    assert_every_frame(write_jpeg_tables(tmp_path / "v.avi"), backend)


HIDDEN = {  # name → (encoder, whether hidden frames share a packet with others, packets in the file, frames shown)
    "vp8.webm": ("libvpx", False, 60, 54),
    "vp8.avi": ("libvpx", False, 60, 54),
    "vp9.webm": ("libvpx-vp9", False, 60, 57),
    "vp9_super.webm": ("libvpx-vp9", True, 57, 57),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_frames_do_not_count(tmp_path, name, backend):
    codec, together, packets, frames = HIDDEN[name]
    path = write_hidden(tmp_path / "data" / name, codec, together)
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == packets
    info = probe(path)
    assert info.frames == frames and info.header_frames in (0, frames)  # WebM's header says none
    assert_every_frame(path, backend)


@pytest.mark.parametrize("name", ["vp8.webm", "vp9.webm"])
def test_a_full_scan_accepts_hidden_frames(tmp_path, name):
    write_hidden(tmp_path / name, HIDDEN[name][0]).rename(tmp_path / f"only_{name}")
    (tmp_path / "shown.webm").unlink()
    manifest = build_manifest(tmp_path, full_scan=True)
    assert [video.frames for video in manifest.videos] == [HIDDEN[name][3]] and not manifest.rejects
    assert not manifest.videos[0].from_start


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_packet_of_av1_shows_one_frame(tmp_path, backend):
    """Its hidden frames stand in the packets of those that are shown."""
    before = os.sched_getscheduler(0)
    path = write_video(tmp_path / "v.mkv", "libsvtav1", frames=40, gop=16, size=(64, 96), options={"preset": "10"})
    assert os.sched_getscheduler(0) == before
    assert_every_frame(path, backend)


EDITS = {  # name → (encoder, runs shown, open groups of pictures)
    "hevc.mp4": ("libx265", [(25, 7), (45, 10)], 1),
    "h264.mp4": ("libx264", [(25, 7), (45, 10)], 0),
    "mpeg4.mp4": ("mpeg4", [(4, 1)], 0),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", EDITS)
def test_edit_lists_that_cut_between_key_frames(tmp_path, name, backend):
    codec, edits, open_gop = EDITS[name]
    path = write_edited(tmp_path / name, codec, edits, open_gop=open_gop)
    assert len(decoded(path)) == sum(frames for _, frames in edits)
    assert_every_frame(path, backend)


def test_what_a_seek_does_not_give_is_told(tmp_path, caplog):
    codec, edits, open_gop = EDITS["hevc.mp4"]
    path = write_edited(tmp_path / "v.mp4", codec, edits, open_gop=open_gop)
    with caplog.at_level(logging.WARNING, "sparsevid"):
        for i in range(7):
            read_frames(path, [i])
    assert [record.message.count("are decoded from the start") for record in caplog.records] == [1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("codec", ["h263", "mpeg4", "libx264", "libx265"])
def test_frames_marked_as_key_frames_that_are_none(tmp_path, codec, backend):
    assert_every_frame(write_marked(tmp_path / "marked.mp4", codec), backend)


def test_a_file_whose_random_access_fails_when_tried_is_noted(tmp_path):
    """H.263 is tried out when it is first used: also by a reader that knows nothing of manifests."""
    (tmp_path / "data").mkdir()
    path = write_marked(tmp_path / "marked.mp4", "h263").rename(tmp_path / "data" / "v.mp4")
    assert probe(path).notes == (FROM_START,)
    manifest = build_manifest(tmp_path / "data")
    assert manifest.notes[FROM_START] == ["v.mp4"] and manifest.videos[0].from_start
    sound = write_video(tmp_path / "v.3gp", "h263", frames=60, gop=20, size=(144, 176))
    assert probe(sound).notes == ()
    with count_decoded() as count:
        read_frames(sound, [59])
    assert count.frames <= 21  # the first and the last group of pictures


def test_a_full_scan_finds_random_access_that_gives_other_frames(tmp_path):
    """Tables that change inside a file: nothing of it shows but the pixels."""
    (tmp_path / "data").mkdir()
    write_jpeg_tables(tmp_path / "v.avi", changes=[30]).rename(tmp_path / "data" / "v.avi")
    write_video(tmp_path / "data" / "sound.mp4", frames=60)
    manifest = open_manifest(tmp_path / "data", full_scan=True)
    assert manifest.notes == {FROM_START: ["v.avi"]} and not manifest.rejects
    again = open_manifest(tmp_path / "data")
    assert again == manifest and [video.from_start for video in again.videos] == [False, True]
    video, reference = again.videos[1], as_frames(decoded(tmp_path / "data" / "v.avi"))
    numbers = [45, 46, 59]
    for backend in BACKENDS:
        frames = VideoFrames(again.root, (48, 112), backend).read(video, numbers, mirrored=False)
        assert torch.equal(frames, reference[numbers]), backend
    clips = VideoClips(again.root, ((video, 40), (video, 44)), ClipShape(ClipRule(4, 1), None, "cover"))
    for start, clip in zip((40, 44), clips.read(0, 2), strict=True):
        assert torch.equal(rearrange(clip, "c t h w -> t c h w"), reference[start : start + 4])


def test_what_decodes_is_named_with_its_version():
    for backend in BACKENDS:
        assert f"PyAV {av.__version__}" in describe_decoder(backend) and "FFmpeg" in describe_decoder(backend)
    assert "decord" in describe_decoder("decord") and "decord" not in describe_decoder("pyav")


@pytest.mark.parametrize("settings", [{}, {"decoder": "decord"}, {"decoder": "decord", "cache_frames": True}])
def test_a_run_records_what_decodes(tmp_path, settings):
    write_video(tmp_path / "data" / "v.mp4")
    card = tmp_path / "card.yaml"
    card.write_text(f"name: small\nroot: {tmp_path / 'data'}\nclip: {{frames: 4, stride: 1, size: [16, 16]}}\n")
    record = open_data(RunConfig(data=DataConfig(card=str(card), **settings))).config.record
    backend = "pyav" if settings.get("cache_frames") else settings.get("decoder", "pyav")
    assert record.versions["decoder"] == describe_decoder(backend)


def in_order(path, backend):
    """All frames of a file from first to last; by decord, where it can be had of the file, within 2 levels of PyAV's."""
    frames = as_frames(decoded(path))
    if backend == "pyav":
        return frames
    other = read_frames(path, range(len(frames)), backend, display=False)
    assert (other.short() - frames.short()).abs().max() <= 2, path.name
    return other


def assert_clips(path, backend, clips):
    reference, draw = in_order(path, backend), random.Random(path.name)
    for _ in range(clips):
        start = draw.randrange(len(reference) - 15)
        clip = read_frames(path, range(start, start + 16), backend, display=False)
        assert torch.equal(clip, reference[start : start + 16]), path.name


def files_of(root):
    return sorted((root / "UCF-101").rglob("*.avi"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_clips_of_some_real_files(real_ucf101, backend):
    for path in files_of(real_ucf101)[::40]:
        assert_clips(path, backend, 3)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_random_clips_of_every_real_file(real_ucf101, backend):
    for path in files_of(real_ucf101):
        assert_clips(path, backend, 30)
