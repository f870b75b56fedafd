"""Autoencoders of diffusers: what their latents are, decoding by tiles and slices, clips that are coded as a whole."""

import json

import pytest
import torch
from autoencoder.tiny_vaes import tiny_vae
from einops import rearrange

from sparsevid.autoencoder.base import latent_size, to_uint8, to_unit_range
from sparsevid.autoencoder.load import CACHEABLE, KINDS, PRETRAINED, load_autoencoder
from sparsevid.autoencoder.pixels import Pixels
from sparsevid.runs.config import ConfigError, load_config
from sparsevid.runs.values import CHOICES, TAKEN_BY


@pytest.fixture(scope="module")
def clips():
    """Smooth random clips, uint8 (2, 3, 5, 32, 48)."""
    coarse = torch.rand(2, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, size=(5, 32, 48), mode="trilinear") * 255).to(torch.uint8)


def test_kinds_are_those_that_a_config_accepts():
    assert set(KINDS) == set(CHOICES["autoencoder.kind"])
    assert set(PRETRAINED) >= {kind for kinds in TAKEN_BY.values() for kind in kinds}
    assert set(TAKEN_BY["tiling"]) == {kind for kind, each in PRETRAINED.items() if each.can_tile}
    assert "wan" not in CACHEABLE and "temporal" in CACHEABLE


@pytest.mark.parametrize("kind", ["temporal", "wan"])
def test_latents_are_those_of_the_library_and_come_back_from_a_folder(kind, clips, tmp_path):
    vae = tiny_vae(kind).eval()
    vae.save_pretrained(tmp_path / "pipeline" / "vae")  # of a whole pipeline its folder is found
    autoencoder = PRETRAINED[kind].from_source(str(tmp_path / "pipeline"))
    found = PRETRAINED[kind].latents_of(str(tmp_path / "pipeline"))
    assert found == (autoencoder.time_factor, autoencoder.factor, autoencoder.channels, autoencoder.causal)
    size = latent_size(clips.shape[2:], found.time_factor, found.factor, causal=found.causal)
    latents = autoencoder.encode(clips)
    assert latents.shape == (2, 4, *size) and autoencoder.clip_size(size) == clips.shape[2:]
    values = to_unit_range(clips)
    with torch.no_grad():
        if kind == "wan":
            mean, deviation = (torch.tensor(vae.config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
            expected = (vae.encode(values).latent_dist.mode() - mean) / deviation
            decoded = vae.decode(expected * deviation + mean).sample
        else:
            frames = rearrange(values, "b c t h w -> (b t) c h w")
            expected = vae.encode(frames).latent_dist.mode() * vae.config.scaling_factor
            decoded = vae.decode(expected / vae.config.scaling_factor, num_frames=5).sample
            expected, decoded = (rearrange(each, "(b t) c h w -> b c t h w", b=2) for each in (expected, decoded))
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
    assert (autoencoder.decode(latents).int() - to_uint8(decoded).int()).abs().max() <= 1
    autoencoder.save(tmp_path / "saved")
    again = load_autoencoder(tmp_path / "saved")
    assert torch.equal(again.encode(clips), latents) and again.fingerprint() == autoencoder.fingerprint()


def test_the_variant_fp16_is_read_where_a_folder_has_no_other(tmp_path):
    vae = tiny_vae("kl")
    vae.half().save_pretrained(tmp_path / "pipeline" / "vae", variant="fp16")
    found = PRETRAINED["kl"].from_source(str(tmp_path / "pipeline"))
    assert all(value.equal(vae.state_dict()[name].float()) for name, value in found.vae.state_dict().items())


def test_latents_of_wan_look_back_and_never_ahead(clips):
    autoencoder = PRETRAINED["wan"](tiny_vae("wan"), "here")
    whole, first = autoencoder.encode(clips), autoencoder.encode(clips[:, :, :1])
    torch.testing.assert_close(whole[:, :, :1], first, rtol=1e-4, atol=1e-4)
    later = clips.clone()
    later[:, :, :1] = 255 - later[:, :, :1]
    assert not torch.allclose(autoencoder.encode(later)[:, :, 1:], whole[:, :, 1:], atol=1e-3)


def test_clips_of_wan_have_one_frame_more_than_a_multiple(clips):
    autoencoder = PRETRAINED["wan"](tiny_vae("wan"), "here")
    with pytest.raises(ValueError, match="4 frames are no multiple of 4 and one more"):
        autoencoder.encode(clips[:, :, :4])
    assert [latent_size((frames, 8, 8), 4, 8, causal=True)[0] for frames in (1, 5, 17)] == [1, 2, 5]
    with pytest.raises(ValueError, match="its latents depend on the frames before them; accepted kinds: kl, temporal, pixels"):
        autoencoder.moments(clips)


def test_a_cache_of_temporal_keeps_what_its_frames_need(clips):
    autoencoder = PRETRAINED["temporal"](tiny_vae("temporal"), "here")
    moments = autoencoder.moments(clips)
    assert moments.shape == (2, autoencoder.moment_channels, 5, 16, 24)
    assert torch.equal(autoencoder.latents(moments), autoencoder.encode(clips))
    torch.testing.assert_close(moments[:, :, 2:3], autoencoder.moments(clips[:, :, 2:3]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["kl", "wan"])
def test_slices_decode_alike_and_tiles_nearly_and_neither_touches_encoding(kind, clips, tmp_path):
    vae = tiny_vae(kind)
    if kind == "wan":
        vae.tile_sample_min_height = vae.tile_sample_min_width = 16
        vae.tile_sample_stride_height = vae.tile_sample_stride_width = 8
    autoencoder = PRETRAINED[kind](vae, "here")
    latents, clips = autoencoder.encode(clips), clips[:1]
    whole = autoencoder.decode(latents)
    autoencoder.slicing = True
    assert (autoencoder.decode(latents).int() - whole.int()).abs().max() <= 1
    autoencoder.tiling = True
    tiled = autoencoder.decode(latents)
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    torch.testing.assert_close(autoencoder.encode(clips), latents[:1], rtol=1e-4, atol=1e-4)
    assert not vae.use_tiling
    autoencoder.save(tmp_path)
    header = json.loads((tmp_path / "autoencoder.json").read_text(encoding="utf-8"))
    assert header == {"kind": kind, "source": "here", "tiling": True, "slicing": True}


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["autoencoder.kind=temporal", "autoencoder.tiling=true"], "autoencoder.tiling goes with autoencoder.kind kl and wan"),
        (["autoencoder.slicing=true"], "goes with autoencoder.kind kl and wan, not linear"),
        (["autoencoder.kind=wan", "data.images=2"], "no stills"),
    ],
)
def test_options_that_a_kind_does_not_have_are_refused(overrides, reason):
    with pytest.raises(ConfigError, match=reason):
        load_config(None, overrides)


def test_pixels_are_as_they_were(clips):
    assert Pixels().clip_size(Pixels().encode(clips).shape[2:]) == clips.shape[2:]
