"""Features of V-JEPA, STREAM and motion are the same to the last bit, whoever computes which batch."""

import os
from pathlib import Path

import pytest
import torch
from evaluation.detector_ranks import BATCH, CLIPS, detectors
from evaluation.feature_ranks import DrawnClips
from launch import run_all

from sparsevid.evaluation.features import compute_features, load_features

SCRIPT = Path(__file__).with_name("detector_ranks.py")


class Part(DrawnClips):
    """Some of the clips, from a position on."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__(last - first, shape=CLIPS.shape)
        self.first = first

    def read(self, first: int, last: int):
        return CLIPS.read(self.first + first, self.first + last)


FAST, SLOW = ("small-v-jepa",), ("small-stream", "motion-lucas-kanade")


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
def test_a_batch_gives_the_same_bits_alone_and_last_to_first(name):
    if not (detector := {each.name: each for each in detectors()}.get(name)):
        pytest.skip("needs opencv (extra `motion`)")
    whole = compute_features(CLIPS, detector, batch_size=BATCH).features
    assert whole.std(dim=0).max() > 0
    for first in reversed(range(0, len(CLIPS), BATCH)):
        last = min(first + BATCH, len(CLIPS))
        assert torch.equal(compute_features(Part(first, last), detector, batch_size=BATCH).features, whole[first:last])


@pytest.mark.slow
def test_two_ranks_write_the_files_of_one_to_the_last_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SCRIPT.parent.parent), os.environ.get("PYTHONPATH", "")]))
    run_all(SCRIPT, tmp_path, processes=2)
    for detector in detectors():
        two, one = tmp_path / f"{detector.name}.safetensors", tmp_path / f"alone-{detector.name}.safetensors"
        assert two.read_bytes() == one.read_bytes(), detector.name
        assert load_features(two).features.shape == (len(CLIPS), detector.dim)
