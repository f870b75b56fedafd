"""Frame rates are the files' own, also where a data set is said to have one; a target rate takes frames by time."""

from fractions import Fraction

import av
import pytest
import torch
from data.trees import plant_frames
from videos.made import moving_pictures

from sparsevid.data.clips import ClipDataset
from sparsevid.data.sources import VideoFrames
from sparsevid.data.tree.cards import load_card, resolve_root
from sparsevid.data.tree.clip_rule import ClipRule, counted_frames, own_frames
from sparsevid.data.tree.manifest import build_manifest
from sparsevid.videos.read import read_frames

NTSC = Fraction(30000, 1001)


def write_avi(path, rate, frames=60):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for picture in moving_pictures(frames, 32, 48):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def check_target_rate(manifest, video, target):
    """Frame j of a clip at the target rate is the one on show at its time."""
    rule = ClipRule(16, 3, target_fps=target)
    count = counted_frames(rule, video)
    assert count == pytest.approx(video.seconds * target + 1, abs=1)
    for j, own in enumerate(own_frames(rule, video, range(count))):
        assert own / video.fps <= j / target + 1e-6 and j / target < (own + 1) / video.fps + 1e-6


def test_files_have_their_own_rates_whatever_the_card_says(tmp_path):
    write_avi(tmp_path / "UCF-101" / "Archery" / "v_Archery_g01_c01.avi", 25)
    write_avi(tmp_path / "UCF-101" / "Archery" / "v_Archery_g08_c01.avi", NTSC)
    plant_frames(tmp_path / "UCF-101" / "Archery" / "v_Archery_g09_c01", ["1.jpg", "2.jpg"])
    manifest = build_manifest(tmp_path, load_card("ucf101").rules())
    assert [video.fps for video in manifest.videos] == pytest.approx([25, float(NTSC), 25])
    for target in (10.0, 25.0):
        check_target_rate(manifest, manifest.videos[1], target)


def test_clips_at_a_target_rate_span_one_time(tmp_path):
    write_avi(tmp_path / "a.avi", 25)
    write_avi(tmp_path / "b.avi", NTSC)
    manifest = build_manifest(tmp_path)
    rule = ClipRule(8, 3, target_fps=25)
    dataset = ClipDataset(manifest, rule, VideoFrames(manifest.root, (32, 48)))
    for index, video in enumerate(manifest.videos):
        sample = dataset[index]
        numbers = own_frames(rule, video, [sample["start"] + 3 * j for j in range(8)])
        assert (numbers[-1] - numbers[0]) / video.fps == pytest.approx(21 / 25, abs=1 / video.fps)
        assert torch.equal(sample["clip"].transpose(0, 1), read_frames(manifest.root / video.path, numbers))


def test_real_files_of_ucf101_have_two_rates(real_ucf101):
    card = load_card("ucf101", ["split.max_missing=1"])
    manifest = build_manifest(resolve_root(card, real_ucf101), card.rules())
    rates = {round(video.fps, 2) for video in manifest.videos}
    assert rates == {25.0, 29.97}
    for video in manifest.videos:
        assert video.seconds == pytest.approx((video.frames - 1) / video.fps, rel=0.01)
        check_target_rate(manifest, video, 25.0)
