"""VideoMAE v2 against cd-fvd's network and preprocessing, with random weights."""

from functools import partial

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from sparsevid.evaluation.detectors import build_detector, detector_class
from sparsevid.evaluation.detectors.videomae import (
    VideoMAE,
    VideoMAEDetector,
    VideoMAESpec,
    load_network,
    position_table,
    preprocess,
)

public = pytest.importorskip("cdfvd.third_party.VideoMAEv2.videomaev2_finetune", reason="needs cd-fvd (extra `test`)")
from cdfvd.third_party.VideoMAEv2.utils import preprocess_videomae  # noqa: E402 (after the skip)

SMALL = VideoMAESpec(size=32, patch=8, width=32, depth=3, heads=2, mlp_width=48, classes=5)
# cd-fvd resamples positions for 16×16 tokens a frame only.
WIDE_GRID = VideoMAESpec(size=32, patch=2, width=16, depth=1, heads=2, mlp_width=24, classes=5)


def public_network(spec: VideoMAESpec) -> nn.Module:
    """cd-fvd's network with weights large enough that each of them counts."""
    network = public.VisionTransformer(
        img_size=spec.size,
        patch_size=spec.patch,
        num_classes=spec.classes,
        embed_dim=spec.width,
        depth=spec.depth,
        num_heads=spec.heads,
        mlp_ratio=spec.mlp_width / spec.width,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        all_frames=spec.frames,
        tubelet_size=2,
        use_mean_pooling=True,
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return network.eval()


def draw_video(frames: int, size: int) -> Tensor:
    return torch.rand(2, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


def draw_clips(frames: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (2, 3, frames, height, width), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def compare(spec: VideoMAESpec, frames: int) -> float:
    """Largest difference of our features from cd-fvd's."""
    theirs = public_network(spec)
    ours = load_network(theirs.state_dict(), spec)
    video = draw_video(frames, spec.size)
    return (ours(video) - theirs.forward_features(video)).abs().max().item()


def test_features_are_those_of_cd_fvd():
    assert compare(SMALL, frames=16) <= 1e-5


@pytest.mark.parametrize("frames", [8, 10, 24])
def test_other_lengths_are_resampled_as_by_cd_fvd(frames):
    assert compare(WIDE_GRID, frames) <= 1e-5


def test_positions_are_those_of_cd_fvd():
    ours = rearrange(position_table(SMALL), "t h w d -> 1 (t h w) d")
    torch.testing.assert_close(ours, public.get_sinusoid_encoding_table(128, 32), rtol=0, atol=1e-7)


def test_positions_keep_their_values_where_the_network_is_built_without_memory():
    with torch.device("meta"):
        network = VideoMAE(SMALL)
    assert network.positions.equal(position_table(SMALL))


def test_keys_are_those_of_the_public_file(monkeypatch):
    # cd-fvd's constructor reads its rates of dropped paths, so they need memory; what only fills tensors takes half a minute.
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
    monkeypatch.setattr(public, "trunc_normal_", lambda tensor, **_: tensor)
    monkeypatch.setattr(public, "get_sinusoid_encoding_table", lambda positions, width: None)
    with torch.device("meta"):
        ours, theirs = VideoMAE(VideoMAESpec()), public.vit_giant_patch14_224(num_classes=174)
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert list(shapes) == list(theirs.state_dict())
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
    assert len(shapes) == 526
    assert sum(value.numel() for value in ours.parameters()) == 1_011_855_918


@pytest.mark.parametrize(("height", "width"), [(240, 320), (128, 128), (224, 224), (300, 180)])
def test_preprocessing_is_that_of_cd_fvd_to_the_last_bit(height, width):
    clips = draw_clips(3, height, width)
    theirs = preprocess_videomae(rearrange(clips, "b c t h w -> b t h w c").contiguous().numpy())
    assert preprocess(clips, 224).equal(theirs)


@pytest.fixture
def small_public_file(tmp_path, monkeypatch):
    """A file of the public form with shrunken weights, and the detector expecting their shapes."""
    monkeypatch.setattr("sparsevid.evaluation.detectors.videomae.VideoMAESpec", lambda: SMALL)
    state = public_network(SMALL).state_dict()
    path = tmp_path / "small.pth"
    torch.save({"module": state}, path)
    return path, state


def test_detector_reads_the_public_file(small_public_file):
    path, state = small_public_file
    detector = build_detector("videomae-v2", path=path)
    clips = draw_clips(4, 40, 52)
    expected = load_network(state, SMALL)(preprocess(clips, SMALL.size))
    assert detector(clips).equal(expected.detach())
    assert len(detector.fingerprint) == 64


def test_half_precision_weights_are_computed_in_float32(small_public_file):
    path, state = small_public_file
    torch.save({name: value.half() for name, value in state.items()}, path)
    assert detector_class("videomae-v2").from_weights(path)(draw_clips(2, 16, 16)).dtype == torch.float32


def test_an_odd_number_of_frames_is_refused(small_public_file):
    detector = VideoMAEDetector.from_weights(small_public_file[0])
    with pytest.raises(ValueError, match="even number of frames, got 5"):
        detector(draw_clips(5, 16, 16))


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match="no option 'eps'"):
        build_detector("videomae-v2", options={"eps": 1e-5})


def test_weights_of_another_network_are_named(small_public_file):
    path, state = small_public_file
    torch.save({"module": {"conv.weight": torch.zeros(1)} | {k: v for k, v in state.items() if k != "head.bias"}}, path)
    with pytest.raises(ValueError, match=r"VideoMAE v2.*missing: head\.bias.*unexpected: conv\.weight"):
        VideoMAEDetector.from_weights(path)


def test_a_truncated_file_is_refused(small_public_file):
    path, _ = small_public_file
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="damaged"):
        VideoMAEDetector.from_weights(path)


def test_building_leaves_random_numbers_alone(small_public_file):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    VideoMAEDetector.from_weights(small_public_file[0])
    assert torch.get_rng_state().equal(before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
