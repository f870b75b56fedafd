"""V-JEPA with its pooler against the published code, with random weights; files and what is refused."""

from functools import partial

import pytest
import torch
from torch import nn

from sparsevid.evaluation.detectors import build_detector
from sparsevid.evaluation.detectors import vjepa as module
from sparsevid.evaluation.detectors.videomae import VideoMAESpec
from sparsevid.evaluation.detectors.vjepa import Encoder, Pooler, VJEPADetector, load_networks

SMALL = VideoMAESpec(size=32, patch=16, frames=16, width=32, depth=2, heads=2, mlp_width=128)


def random_state(network: nn.Module, prefix: str, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {prefix + name: torch.randn(value.shape, generator=generator) * 0.2 for name, value in network.state_dict().items()}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """An encoder's checkpoint and a probe's, as training leaves them, of a small network."""
    monkeypatch.setattr(module, "SPEC", SMALL)
    monkeypatch.setattr(VJEPADetector, "dim", SMALL.width)
    encoder, pooler = random_state(Encoder(SMALL), "module.backbone.", 0), random_state(Pooler(SMALL), "module.pooler.", 1)
    torch.save({"target_encoder": encoder, "epoch": 3}, tmp_path / "vith16.pth.tar")
    torch.save({"classifier": pooler | {"module.linear.weight": torch.zeros(2, 32)}}, tmp_path / "ssv2-probe.pth.tar")
    return tmp_path / "vith16.pth.tar", encoder, pooler


def clips(frames: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (2, 3, frames, 32, 32), dtype=torch.uint8, generator=generator)


def test_features_are_those_of_the_published_network(files):
    reason = "needs vjepa"
    vit = pytest.importorskip("vjepa.models.vision_transformer", reason=reason)
    probe = pytest.importorskip("vjepa.models.attentive_pooler", reason=reason)
    path, encoder, pooler = files
    theirs = vit.VisionTransformer(
        img_size=32, patch_size=16, num_frames=16, tubelet_size=2, embed_dim=32, depth=2, num_heads=2, mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), uniform_power=True,
    )  # fmt: skip
    theirs.load_state_dict({name.removeprefix("module.backbone."): value for name, value in encoder.items()})
    head = probe.AttentivePooler(num_queries=1, embed_dim=32, num_heads=2, depth=1)
    head.load_state_dict({name.removeprefix("module.pooler."): value for name, value in pooler.items()})
    mean, std = (torch.tensor(each).view(3, 1, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = head(theirs((clips().float() / 255 - mean) / std)).squeeze(1)
    found = build_detector("v-jepa", path=path)(clips())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_files_say_what_they_lack(files, tmp_path):
    path, encoder, _ = files
    detector = build_detector("v-jepa", path=path)
    assert detector(clips()).shape == (2, 32) and detector(clips()).std() > 0
    with pytest.raises(ValueError, match="takes clips of 16 frames, got 18"):
        detector(clips(18))
    with pytest.raises(ValueError, match="missing|lacks|norm"):
        load_networks({name: value for name, value in encoder.items() if "norm.weight" not in name}, {}, SMALL)
    torch.save({"model": encoder}, path)
    with pytest.raises(ValueError, match="no weights under target_encoder or encoder"):
        build_detector("v-jepa", path=path)
    (tmp_path / "ssv2-probe.pth.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weight file .*ssv2-probe\.pth\.tar"):
        build_detector("v-jepa", path=path)
