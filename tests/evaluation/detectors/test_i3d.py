"""I3D from a state dict, against the network and the preprocessing of content-debiased FVD (package cd-fvd)."""

import json
import math
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsevid.evaluation.detectors import build_detector, detector_class
from sparsevid.evaluation.detectors.i3d import I3D, preprocess_cd_fvd, preprocess_videogpt, same_padding
from sparsevid.system.checksums import file_sha256


def cd_fvd(module: str) -> ModuleType:
    """A module of cd-fvd's I3D."""
    return pytest.importorskip(f"cdfvd.third_party.i3d.{module}", reason="needs cd-fvd (extra `test`)")


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """cd-fvd's network with random weights and batch statistics."""
    torch.manual_seed(0)
    network = cd_fvd("pytorch_i3d").InceptionI3d(400, in_channels=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(std=0.1)
            # Small, as in trained networks: only beside such variances does eps matter.
            module.running_var.uniform_(0.005, 0.05)
            module.weight.data.uniform_(0.05, 0.15)
            module.bias.data.normal_(std=0.1)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def weights(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "random.pt"
    torch.save(reference.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def detector(weights):
    return build_detector("i3d", path=weights)


def draw_clips(batch: int, frames: int, height: int, width: int) -> Tensor:
    """Smooth, moving uint8 clips."""
    generator = torch.Generator().manual_seed(frames)
    coarse = torch.rand(batch, 3, max(frames // 2, 1), 4, 5, generator=generator)
    clips = F.interpolate(coarse, (frames, height, width), mode="trilinear")
    return (clips * 255).round().to(torch.uint8)


def reference_logits(reference: nn.Module, clips: Tensor) -> Tensor:
    return reference(cd_fvd("utils").preprocess_i3d(clips.permute(0, 2, 3, 4, 1).numpy()))


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [
        (9, 60, 84),
        pytest.param(9, 224, 224, marks=pytest.mark.slow),
        pytest.param(16, 224, 224, marks=pytest.mark.slow),
        pytest.param(17, 224, 224, marks=pytest.mark.slow),
        pytest.param(16, 128, 128, marks=pytest.mark.slow),
        pytest.param(17, 300, 180, marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_cd_fvd_to_the_last_bit(detector, reference, frames, height, width):
    clips = draw_clips(1, frames, height, width)
    logits = detector(clips)
    assert logits.shape == (1, 400) and logits.dtype == torch.float32
    assert torch.equal(logits, reference_logits(reference, clips))
    assert logits.std() > 0.01


@pytest.mark.slow
def test_a_batch_of_clips_has_the_logits_of_cd_fvd(detector, reference):
    clips = draw_clips(2, 16, 224, 224)
    assert torch.equal(detector(clips), reference_logits(reference, clips))


def test_eps_is_a_setting_that_matters(weights, detector, reference, monkeypatch):
    other = build_detector("i3d", path=weights, options={"eps": "1e-3"})  # as text, from a command line
    assert (other.settings["eps"], detector.settings["eps"]) == (1e-3, 1e-5)
    norms = [module for module in reference.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm in norms:
        monkeypatch.setattr(norm, "eps", 1e-3)
    clips = draw_clips(1, 9, 48, 48)
    logits = other(clips)
    assert torch.equal(logits, reference_logits(reference, clips))
    assert (logits - detector(clips)).norm() > 1e-2 * logits.norm()


def test_names_order_and_number_of_weights(reference):
    own = I3D(1e-5).state_dict()
    assert list(own) == list(reference.state_dict())
    assert [tensor.shape for tensor in own.values()] == [tensor.shape for tensor in reference.state_dict().values()]
    assert len(own) == 344
    assert (next(iter(own)), list(own)[-1]) == ("logits.conv3d.weight", "Mixed_5c.b3b.bn.num_batches_tracked")
    assert sum(tensor.numel() for tensor in I3D(1e-5).parameters()) == 12_697_264


def test_a_state_dict_without_counters_is_complete(tmp_path, reference, detector):
    state = {name: tensor for name, tensor in reference.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert len(state) == 287
    torch.save(state, tmp_path / "converted.pt")
    found = build_detector("i3d", path=tmp_path / "converted.pt").network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in detector.network.state_dict().items())


def test_same_padding_follows_the_formula():
    for n in range(1, 40):
        for k in range(1, 9):
            for s in range(1, 5):
                total = max(k - s, 0) if n % s == 0 else max(k - n % s, 0)
                front, back = same_padding(n, k, s)
                assert (front, back) == (total // 2, total - total // 2)
                if k >= s:  # else no padding is needed, and a stride may pass over the end
                    assert (n + front + back - k) // s + 1 == math.ceil(n / s)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (128, 128), (240, 320), (90, 50), (301, 299)])
def test_preprocessing_is_that_of_cd_fvd_to_the_last_bit(height, width):
    clips = draw_clips(2, 3, height, width)
    expected = cd_fvd("utils").preprocess_i3d(clips.permute(0, 2, 3, 4, 1).numpy())
    assert torch.equal(preprocess_cd_fvd(clips), expected)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (320, 240), (224, 224), (100, 100), (64, 99)])
def test_preprocessing_is_that_of_videogpt_to_the_last_bit(height, width):
    clips = draw_clips(2, 3, height, width)
    expected = []
    for clip in clips:
        frames = clip.permute(1, 0, 2, 3).float() / 255
        scale = 224 / min(height, width)
        size = (224, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), 224)
        frames = F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
        top, left = (size[0] - 224) // 2, (size[1] - 224) // 2
        expected.append((frames[:, :, top : top + 224, left : left + 224].permute(1, 0, 2, 3) - 0.5) * 2)
    assert torch.equal(preprocess_videogpt(clips), torch.stack(expected))


def test_a_square_clip_of_its_own_size_is_only_scaled():
    clips = draw_clips(1, 3, 224, 224)
    for preprocess in (preprocess_cd_fvd, preprocess_videogpt):
        torch.testing.assert_close(preprocess(clips), clips / 127.5 - 1, rtol=0, atol=3e-7)


def test_the_detector_says_what_it_is(weights, detector):
    assert (detector.name, detector.dim, detector.kind, detector.min_frames) == ("i3d", 400, "features", 9)
    assert detector.fingerprint == file_sha256(weights)
    assert json.loads(json.dumps(detector.settings)) == {"eps": 1e-5, "preprocessing": "cd-fvd"}
    assert detector.settings == detector_class("i3d").OPTIONS
    other = build_detector("i3d", path=weights, options={"preprocessing": "videogpt"})
    assert other.settings == {"eps": 1e-5, "preprocessing": "videogpt"}
    assert "stretched" in detector.preprocessing and "centre crop" in other.preprocessing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 1e-4}, "detector 'i3d': eps=0.0001; accepted: 1e-05, 0.001"),
        ({"eps": "small"}, "eps='small'; accepted"),
        ({"preprocessing": "none"}, "preprocessing='none'; accepted: cd-fvd, videogpt"),
        ({"size": 224}, "has no option 'size'; accepted: eps, preprocessing"),
    ],
)
def test_options_are_checked(weights, options, message):
    with pytest.raises(ValueError, match=message):
        build_detector("i3d", path=weights, options=options)


def test_other_weights_are_refused_by_name(tmp_path, reference):
    path, state = tmp_path / "other.pt", reference.state_dict()
    torch.save({name: tensor for name, tensor in state.items() if "Mixed_3b.b0" not in name}, path)
    with pytest.raises(ValueError, match=r"other.pt holds no weights of I3D.*5 missing: Mixed_3b.b0.bn.bias"):
        build_detector("i3d", path=path)
    torch.save({**state, "fc.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="1 unexpected: fc.weight"):
        build_detector("i3d", path=path)
    torch.save({**state, "logits.conv3d.bias": torch.zeros(600)}, path)
    with pytest.raises(ValueError, match=r"logits.conv3d.bias \(600,\) instead of \(400,\)"):
        build_detector("i3d", path=path)


def test_truncated_weights_are_refused(tmp_path, weights):
    path = tmp_path / "cut.pt"
    path.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cut.pt is damaged"):
        build_detector("i3d", path=path)


def test_too_few_frames_are_refused(detector):
    with pytest.raises(ValueError, match="'i3d' needs at least 9 frames, got 8"):
        detector(torch.zeros(1, 3, 8, 32, 32, dtype=torch.uint8))
