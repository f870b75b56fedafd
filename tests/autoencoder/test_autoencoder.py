"""First stages: round trips, unit scale, saving."""

import pytest
import torch
from diffusers import AutoencoderKL

from sparsevid.autoencoder import load_autoencoder
from sparsevid.autoencoder.base import psnr, to_uint8, to_unit_range
from sparsevid.autoencoder.kl import KLAutoencoder
from sparsevid.autoencoder.linear import LinearAutoencoder
from sparsevid.autoencoder.pixels import Pixels


@pytest.fixture(scope="module")
def clips():
    """Smooth random clips, uint8 (4, 3, 4, 32, 48)."""
    coarse = torch.rand(4, 3, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=(4, 32, 48), mode="trilinear")
    return (smooth * 255).to(torch.uint8)


def test_every_level_survives_the_range():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit_range(levels)), levels)


def test_pixels_are_lossless(clips):
    assert torch.equal(Pixels().decode(Pixels().encode(clips)), clips)


def test_linear_latents_have_unit_scale_and_more_channels_reconstruct_better(clips):
    quality = []
    for channels in (4, 16, 192):
        autoencoder = LinearAutoencoder.fit(clips, patch=8, channels=channels)
        latents = autoencoder.encode(clips)
        assert latents.shape == (4, channels, 4, 4, 6)
        scale = latents[:, :4].std(dim=(0, 2, 3, 4))
        torch.testing.assert_close(scale, torch.ones(4), atol=0.02, rtol=0)
        quality.append(psnr(autoencoder.decode(latents), clips))
    assert quality[0] < quality[1] < quality[2] and quality[2] > 50


def test_linear_fit_is_the_optimal_projection(clips):
    """No rank-C linear map reconstructs better than the principal components: compare with the SVD's remainder."""
    autoencoder = LinearAutoencoder.fit(clips, patch=8, channels=8)
    patches = torch.nn.functional.unfold(to_unit_range(clips).transpose(1, 2).flatten(0, 1), 8, stride=8)
    patches = patches.transpose(1, 2).flatten(0, 1).double()
    values = torch.linalg.svdvals(patches - patches.mean(0))
    x = patches - autoencoder.mean.double()
    remainder = (x - x @ autoencoder.basis.double().T @ autoencoder.basis.double()).square().sum()
    torch.testing.assert_close(remainder, values[8:].square().sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "pixels", "kl"])
def test_saved_and_loaded_decodes_the_same(kind, clips, tmp_path):
    if kind == "kl":
        torch.manual_seed(0)
        blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
        vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)
        vae.save_pretrained(tmp_path / "vae")
        autoencoder = KLAutoencoder.from_source(str(tmp_path / "vae"))
    else:
        autoencoder = LinearAutoencoder.fit(clips) if kind == "linear" else Pixels()
    latents = autoencoder.encode(clips)
    assert latents.shape == (4, autoencoder.channels, 4, 32 // autoencoder.factor, 48 // autoencoder.factor)
    autoencoder.save(tmp_path / "saved")
    again = load_autoencoder(tmp_path / "saved")
    assert torch.equal(again.encode(clips), latents)
    decoded = again.decode(latents)
    assert decoded.shape == clips.shape and decoded.dtype == torch.uint8
    assert torch.equal(decoded, autoencoder.decode(latents))


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        (lambda c, t: LinearAutoencoder.fit(c, patch=7), ValueError, "patches of 7×7"),
        (lambda c, t: LinearAutoencoder.fit(c, patch=2, channels=13), ValueError, "1 to 12 channels"),
        (lambda c, t: LinearAutoencoder.fit(c[:1, :, :1, :16, :16]), ValueError, "too few"),
        (lambda c, t: Pixels().encode(c.float()), ValueError, "uint8"),
        (lambda c, t: KLAutoencoder.from_source(str(t / "no")), FileNotFoundError, "stabilityai/sd-vae-ft-ema"),
        (lambda c, t: KLAutoencoder.from_source(None), FileNotFoundError, "autoencoder.source"),
        (lambda c, t: load_autoencoder(t), FileNotFoundError, "autoencoder.json"),
    ],
)
def test_what_cannot_be_is_refused(call, error, reason, clips, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=reason):
        call(clips, tmp_path)
