"""The TorchScript detector, with a small network that has the call of the public file."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsevid.evaluation.detectors import build_detector
from sparsevid.evaluation.detectors.i3d_torchscript import WEIGHTS, I3DTorchScriptDetector
from sparsevid.system.checksums import file_sha256

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")


class PublicCall(nn.Module):
    """A small network with the public file's call; `rescale` and `resize` do what they do there."""

    def __init__(self, width: int = 400) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(3, 8, 3, stride=(2, 16, 16))
        self.logits = nn.Linear(8, width)

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        if rescale:
            x = x / 255 * 2 - 1
        if resize:
            b, c, t, h, w = x.shape
            frames = x.permute(0, 2, 1, 3, 4).reshape(b * t, c, h, w)
            frames = F.interpolate(frames, size=(224, 224), mode="bilinear", align_corners=False)
            x = frames.view(b, t, c, 224, 224).permute(0, 2, 1, 3, 4)
        x = self.logits(self.conv(x).relu().mean(dim=(2, 3, 4)))
        if return_features:
            return x
        return x.softmax(dim=1)


class OtherCall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(3, 400)

    def forward(self, x: Tensor, resize: bool = False) -> Tensor:
        return self.logits(x.float().mean(dim=(2, 3, 4)))


class WithoutWeights(nn.Module):
    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        return x.float().mean(dim=(2, 3, 4))


class TakesBytes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(1, 400)

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        assert x.dtype == torch.uint8
        return torch.ones(len(x), 400)


def saved(network: nn.Module, path: Path) -> Path:
    torch.jit.script(network.eval()).save(str(path))
    return path


def draw_clips(batch: int, frames: int, height: int = 40, width: int = 52) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (batch, 3, frames, height, width), dtype=torch.uint8, generator=generator)


def build_trusted(path: Path):
    return build_detector("i3d-torchscript", path=path, trust=True)


def test_the_whole_path_gives_the_scripts_features(tmp_path):
    network = PublicCall()
    path = saved(network, tmp_path / "i3d.pt")
    detector = build_trusted(path)
    assert (detector.name, detector.metric, detector.dim, detector.settings) == ("i3d-torchscript", "FVD", 400, {})
    assert detector.fingerprint == file_sha256(path)
    clips = draw_clips(2, 9)
    features = detector(clips)
    with torch.no_grad():
        expected = network(clips, rescale=True, resize=True, return_features=True)
    assert features.shape == (2, 400) and features.dtype == torch.float32 and not features.requires_grad
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)


def test_features_do_not_depend_on_what_was_seen_before(tmp_path):
    path = saved(PublicCall(), tmp_path / "i3d.pt")
    clips, fresh, used = draw_clips(2, 9), build_trusted(path), build_trusted(path)
    for frames in (10, 9, 12, 9):
        used(draw_clips(1, frames, 60, 60))
    first = fresh(clips)
    assert torch.equal(used(clips), first)
    assert all(torch.equal(fresh(clips), first) for _ in range(3))


def test_the_script_gets_the_bytes_themselves(tmp_path):
    assert build_trusted(saved(TakesBytes(), tmp_path / "i3d.pt"))(draw_clips(2, 9)).sum() == 800


def test_an_unknown_script_is_refused_unless_trusted(tmp_path, monkeypatch):
    path = saved(PublicCall(), tmp_path / "i3d.pt")
    with pytest.raises(
        ValueError, match=f"is a program, and its SHA-256 {file_sha256(path)} is not a known one.*{WEIGHTS.sha256[0]}"
    ):
        build_detector("i3d-torchscript", path=path)
    monkeypatch.setattr(I3DTorchScriptDetector, "WEIGHTS", replace(WEIGHTS, sha256=(file_sha256(path),)))
    assert build_detector("i3d-torchscript", path=path)(draw_clips(1, 9)).shape == (1, 400)


def test_a_script_with_another_call_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"of another kind: its call is forward\(self, x, resize\); accepted.*rescale, resize"):
        build_trusted(saved(OtherCall(), tmp_path / "other.pt"))
    with pytest.raises(ValueError, match="of another kind: it has no weights"):
        build_trusted(saved(WithoutWeights(), tmp_path / "empty.pt"))


def test_a_script_of_another_width_is_refused(tmp_path):
    detector = build_trusted(saved(PublicCall(width=600), tmp_path / "i3d-600.pt"))
    with pytest.raises(ValueError, match=r"of another kind: it gives \(2, 600\) for 2 clips; accepted: \(2, 400\)"):
        detector(draw_clips(2, 9))


@pytest.mark.parametrize("part", [0.0, 0.5, 0.95])
def test_a_truncated_script_is_refused(tmp_path, part):
    path = saved(PublicCall(), tmp_path / "i3d.pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match="i3d.pt is damaged, or is no TorchScript file"):
        build_trusted(path)


def test_a_state_dict_is_no_script(tmp_path):
    path = tmp_path / "state.pt"
    torch.save(PublicCall().state_dict(), path)
    with pytest.raises(ValueError, match="state.pt is damaged, or is no TorchScript file"):
        build_trusted(path)


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file that looks like a TorchScript archive:UserWarning")
def test_a_script_is_no_state_dict(tmp_path):
    with pytest.raises(ValueError, match="i3d.pt is damaged, or holds more than tensors and plain data"):
        build_detector("i3d", path=saved(PublicCall(), tmp_path / "i3d.pt"))


def test_there_are_no_options(tmp_path):
    path = saved(PublicCall(), tmp_path / "i3d.pt")
    with pytest.raises(ValueError, match="'i3d-torchscript' has no option 'eps'; accepted: none"):
        build_detector("i3d-torchscript", path=path, trust=True, options={"eps": 1e-3})
