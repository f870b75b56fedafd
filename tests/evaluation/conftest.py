"""Fixtures of the evaluator's tests."""

import dataclasses
from pathlib import Path

import pytest
from evaluation.feature_ranks import SmallNetwork
from evaluation.small_videos import COUNT, NAME, Logits, Optional, write_clips

from sparsevid.evaluation.detectors import DETECTORS, Detector, build_detector
from sparsevid.evaluation.protocols import Protocol, load_protocol


@pytest.fixture(autouse=True)
def compilable(plain_linear):
    """Some detectors are TorchScript."""


@pytest.fixture(scope="module")
def own_detectors():
    """Detectors of the tests, known by name."""
    with pytest.MonkeyPatch.context() as patch:
        for each in (SmallNetwork, Logits, Optional):
            patch.setitem(DETECTORS, each.name, (each.__module__, each.__name__))
        yield


@pytest.fixture(scope="module")
def detector(own_detectors) -> Detector:
    return build_detector("small")


@pytest.fixture(scope="module")
def protocol(own_detectors) -> Protocol:
    """For short clips of the detector of a few weights."""
    changes = {"real_stride": 1, "frames": 4, "size": (12, 12), "real_count": COUNT, "fake_count": COUNT}
    return dataclasses.replace(load_protocol(NAME), name="test", detector="small", **changes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Real and generated videos."""
    root = tmp_path_factory.mktemp("videos")
    return write_clips(root / "real", 30, 0), write_clips(root / "fake", COUNT, 1, shade=20)
