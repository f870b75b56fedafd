"""The self-test: it passes on this installation, and sees a distance or a detector that is wrong."""

import numpy as np
import pytest
import torch
from evaluation.feature_ranks import SmallNetwork
from torch import Tensor

from sparsevid.evaluation import selftest
from sparsevid.evaluation.metrics.distances import frechet_distance
from sparsevid.evaluation.selftest import GOLDEN, Check, Golden, GoldenValue, detector_checks, golden_checks, synthetic_checks


def test_the_synthetic_checks_pass():
    checks = synthetic_checks()
    assert len(checks) == 9 and all(each.passed for each in checks)


@pytest.mark.parametrize("wrong", [lambda value: 1.001 * value + 1e-3, lambda value: float("nan")])
def test_a_wrong_distance_fails_every_check_that_has_a_value_of_its_own(wrong, monkeypatch):
    monkeypatch.setattr(selftest, "frechet_distance", lambda *args, **options: wrong(frechet_distance(*args, **options)))
    failed = {each.name for each in synthetic_checks() if not each.passed}
    assert {"a set against itself", "against scipy's matrix square root, N > D", "Gaussians with known moments"} <= failed


def test_a_value_passes_within_its_tolerance():
    assert Check("x", 10.0, 10.5, 0.5).passed and not Check("x", 10.0, 10.6, 0.5).passed
    assert not Check("x", 10.0, float("nan"), 1e9).passed


def test_a_sound_detector_passes_and_one_with_memory_does_not():
    assert all(each.passed for each in detector_checks(SmallNetwork()))

    class WithMemory(SmallNetwork):
        calls = 0

        def extract(self, clips: Tensor) -> Tensor:
            self.calls += 1
            return super().extract(clips) * self.calls

    failed = [each.name for each in detector_checks(WithMemory()) if not each.passed]
    assert "the same clips twice" in failed


def test_published_clips_are_drawn_in_parts_as_at_once():
    """Their first batch, with one clip of the published size, is what one draw gives."""
    once = np.random.RandomState(3).rand(2, 16, 224, 224, 3).astype(np.float32)
    parts = torch.cat(list(selftest._uniform(3, count=2)))
    assert torch.equal(parts, torch.from_numpy(once).permute(0, 4, 1, 2, 3))
    many = np.random.RandomState(3).rand(6, 2)
    state = np.random.RandomState(3)
    assert np.array_equal(np.concatenate([state.rand(4, 2), state.rand(2, 2)]), many)


def test_golden_values_go_past_the_preprocessing_of_the_detector():
    """With a network that averages, the distance of zeros and ones is known."""

    def sets():
        return tuple(iter([torch.full((2, 3, 4, 8, 8), value)]) for value in (-1.0, 1.0))

    def network(detector: SmallNetwork, clips: Tensor) -> Tensor:
        return clips.mean(dim=(2, 3, 4))

    golden = Golden(network, (GoldenValue("right", 12.0, 1e-6, sets), GoldenValue("wrong", 13.0, 1e-6, sets)), {})
    right, wrong = golden_checks(golden, SmallNetwork())
    assert right.passed and not wrong.passed and right.found == pytest.approx(12.0)


def test_the_published_values_are_those_of_both_i3d():
    assert set(GOLDEN) == {"i3d", "i3d-torchscript"}
    for golden in GOLDEN.values():
        assert [value.expected for value in golden.values] == [10.1380848, 151.2565]
