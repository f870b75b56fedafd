"""First stages: round trips, unit scale, saving."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL
from fake_gpu import fake_gpu
from safetensors.torch import load_file, save_file

from sparsevid.autoencoder.base import to_uint8, to_unit_range
from sparsevid.autoencoder.kl import KLAutoencoder
from sparsevid.autoencoder.linear import LinearAutoencoder
from sparsevid.autoencoder.load import load_autoencoder
from sparsevid.autoencoder.pixels import Pixels
from sparsevid.evaluation.metrics.likeness import psnr


@pytest.fixture(scope="module")
def clips():
    """Smooth random clips, uint8 (4, 3, 4, 32, 48)."""
    coarse = torch.rand(4, 3, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=(4, 32, 48), mode="trilinear")
    return (smooth * 255).to(torch.uint8)


@pytest.fixture
def vae():
    """A small randomly initialised AutoencoderKL of factor 2."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)


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


def test_patches_of_several_frames_share_channels(clips):
    still = clips[:, :, :1].expand_as(clips)
    one, two = (LinearAutoencoder.fit(still, patch_frames=frames, channels=48) for frames in (1, 2))
    latents = two.encode(still)
    assert latents.shape == (4, 48, 2, 4, 6) and two.clip_size(latents.shape[2:]) == still.shape[2:]
    assert torch.equal(latents[:, :, 0], latents[:, :, 1])
    # What does not move costs no channel.
    torch.testing.assert_close(psnr(two.decode(latents), still), psnr(one.decode(one.encode(still)), still), atol=0.05, rtol=0)
    whole = LinearAutoencoder.fit(clips.repeat(2, 1, 1, 1, 1), patch=4, patch_frames=2, channels=96)
    assert psnr(whole.decode(whole.encode(clips)), clips) > 50  # as many channels as values


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_whitening_decides_how_far_variances_are_made_equal(whitening, clips):
    plain, white = (LinearAutoencoder.fit(clips, whitening=each) for each in (0.0, whitening))
    deviations, own = (each.encode(clips).double().std(dim=(0, 2, 3, 4)) for each in (white, plain))
    torch.testing.assert_close(deviations.square().mean().sqrt().item(), 1.0, atol=0.02, rtol=0)
    torch.testing.assert_close(deviations / deviations[0], (own / own[0]) ** (1 - whitening), atol=2e-3, rtol=1e-3)
    assert psnr(white.decode(white.encode(clips)), plain.decode(plain.encode(clips))) > 50


def test_a_saved_linear_fit_of_before_whitening_is_read(clips, tmp_path):
    autoencoder = LinearAutoencoder.fit(clips)
    autoencoder.save(tmp_path)
    weights = load_file(tmp_path / "autoencoder.safetensors")
    save_file(
        {"std" if name == "scale" else name: value for name, value in weights.items()}, tmp_path / "autoencoder.safetensors"
    )
    assert torch.equal(load_autoencoder(tmp_path).encode(clips), autoencoder.encode(clips))


def test_linear_fit_is_the_optimal_projection(clips):
    """No rank-C linear map reconstructs better than the principal components: compare with the SVD's remainder."""
    autoencoder = LinearAutoencoder.fit(clips, patch=8, channels=8)
    patches = torch.nn.functional.unfold(to_unit_range(clips).transpose(1, 2).flatten(0, 1), 8, stride=8)
    patches = patches.transpose(1, 2).flatten(0, 1).double()
    values = torch.linalg.svdvals(patches - patches.mean(0))
    x = patches - autoencoder.mean.double()
    remainder = (x - x @ autoencoder.basis.double().T @ autoencoder.basis.double()).square().sum()
    torch.testing.assert_close(remainder, values[8:].square().sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "frames", "pixels", "kl"])
def test_saved_and_loaded_decodes_the_same(kind, clips, vae, tmp_path):
    if kind == "kl":
        vae.save_pretrained(tmp_path / "vae")
        autoencoder = KLAutoencoder.from_source(str(tmp_path / "vae"))
    else:
        autoencoder = Pixels() if kind == "pixels" else LinearAutoencoder.fit(clips, patch_frames=2 if kind == "frames" else 1)
    latents = autoencoder.encode(clips)
    assert latents.shape[:2] == (4, autoencoder.channels) and autoencoder.clip_size(latents.shape[2:]) == clips.shape[2:]
    autoencoder.save(tmp_path / "saved")
    again = load_autoencoder(tmp_path / "saved")
    assert torch.equal(again.encode(clips), latents)
    decoded = again.decode(latents)
    assert decoded.shape == clips.shape and decoded.dtype == torch.uint8
    assert torch.equal(decoded, autoencoder.decode(latents))


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        (lambda c, t: LinearAutoencoder.fit(c, patch=7), ValueError, "32×48 are no multiples of 7"),
        (lambda c, t: LinearAutoencoder.fit(c, patch=2, channels=13), ValueError, "1 to 12 channels"),
        (lambda c, t: LinearAutoencoder.fit(c, patch_frames=3), ValueError, "4 frames are no multiple of 3"),
        (lambda c, t: LinearAutoencoder.fit(c, patch_frames=2).encode(c[:, :, 1:]), ValueError, "3 frames are no multiple of"),
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


@pytest.mark.parametrize("kind", ["kl", "pixels"])
def test_moments_hold_all_that_encoding_needs(kind, clips, vae):
    autoencoder = KLAutoencoder(vae, "here") if kind == "kl" else Pixels()
    moments = autoencoder.moments(clips)
    sides = (32 // autoencoder.factor, 48 // autoencoder.factor)
    assert moments.shape == (4, autoencoder.moment_channels, 4, *sides)
    assert torch.equal(autoencoder.latents(moments), autoencoder.encode(clips))
    assert autoencoder.cacheable
    whole = moments.to(autoencoder.cache_dtypes[0])
    torch.testing.assert_close(autoencoder.latents(whole), autoencoder.encode(clips), rtol=1e-3, atol=1e-3)


def test_kl_draws_are_those_of_diffusers(clips, vae):
    autoencoder = KLAutoencoder(vae, "here")
    still = clips[:1, :, :1]
    drawn = autoencoder.latents(autoencoder.moments(still), torch.Generator().manual_seed(3))
    posterior = vae.encode(to_unit_range(still[:, :, 0])).latent_dist
    expected = posterior.sample(torch.Generator().manual_seed(3)) * vae.config.scaling_factor
    torch.testing.assert_close(drawn[:, :, 0], expected, rtol=0, atol=0)


def test_kl_draws_scatter_around_the_mean_as_the_posterior_says(clips, vae):
    autoencoder = KLAutoencoder(vae, "here")
    moments = autoencoder.moments(clips)
    mean, logvar = moments.chunk(2, dim=1)
    drawn = autoencoder.latents(moments, torch.Generator().manual_seed(0)) / vae.config.scaling_factor
    scaled = (drawn - mean) / torch.exp(0.5 * logvar)
    assert abs(scaled.mean().item()) < 0.02 and abs(scaled.std().item() - 1) < 0.02
    assert not torch.equal(drawn, autoencoder.latents(moments, torch.Generator().manual_seed(1)) / vae.config.scaling_factor)


def test_frames_of_a_forward_pass_do_not_change_moments(clips, vae):
    one, all_at_once = (KLAutoencoder(vae, "here", frames_at_once=count).moments(clips) for count in (1, 16))
    torch.testing.assert_close(one, all_at_once, rtol=1e-5, atol=1e-5)


def test_fingerprints_tell_autoencoders_apart(clips, vae, tmp_path):
    kl = KLAutoencoder(vae, "here")
    vae.save_pretrained(tmp_path)
    moved = KLAutoencoder.from_source(str(tmp_path))
    assert moved.fingerprint() == kl.fingerprint(), "where the weights lie is not what they are"
    seen = {kl.fingerprint(), Pixels().fingerprint()}
    seen |= {LinearAutoencoder.fit(part).fingerprint() for part in (clips[:2], clips[2:])}
    moved.vae.register_to_config(scaling_factor=1.0)
    seen.add(moved.fingerprint())
    moved.vae.quant_conv.bias[0] += 1
    seen.add(moved.fingerprint())
    assert len(seen) == 6


def test_an_autoencoder_that_each_run_fits_has_no_moments(clips):
    linear = LinearAutoencoder.fit(clips)
    assert not linear.cacheable
    for method in (linear.moments, linear.latents):
        with pytest.raises(ValueError, match="'linear'.*accepted kinds: kl, temporal, pixels"):
            method(clips)


def test_latents_of_a_posterior_are_drawn_without_a_wait(vae):
    """Their noise is drawn on the host, and a GPU does not have to be waited for to get it."""
    autoencoder = KLAutoencoder(vae, "here")
    with fake_gpu() as traffic:
        moments = torch.randn(2, 8, 4, 4, 4, device="cuda")
        autoencoder.latents(moments, torch.Generator().manual_seed(0))
        assert [event.kind for event in traffic.events] == ["to device"] and not traffic.waits


def test_bfloat16_encodes_nearly_as_float32_does(vae, clips):
    """A copy in bfloat16 gives float32 latents; the one it was made of stays exact."""
    exact = KLAutoencoder(vae, "here")
    expected = exact.encode(clips)
    rounded = copy.deepcopy(exact).place(torch.device("cpu"), torch.bfloat16).encode(clips)
    assert rounded.dtype == torch.float32 and torch.equal(exact.encode(clips), expected)
    assert 1e-4 < (rounded - expected).norm() / expected.norm() < 2e-2
