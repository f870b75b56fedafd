"""The variational autoencoder of latent diffusion: diffusers' `AutoencoderKL`, frame by frame."""

from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from sparsevid.autoencoder.base import to_uint8, to_unit_range
from sparsevid.autoencoder.pretrained import LatentsOf, PretrainedAutoencoder
from sparsevid.system.transfer import to_device


class KLAutoencoder(PretrainedAutoencoder):
    """`AutoencoderKL` with its own scaling factor; `encode` gives the mean of the posterior.

    Its moments are the posterior's mean and log-variance, M = 2C channels, before scaling.
    """

    kind = "kl"
    cache_dtypes = (torch.float16, torch.float32)
    library_class = "AutoencoderKL"
    example = "stabilityai/sd-vae-ft-ema"
    usual = LatentsOf(1, 8, 4)
    settings: ClassVar[tuple[str, ...]] = (
        "act_fn", "block_out_channels", "down_block_types", "latent_channels", "layers_per_block", "mid_block_add_attention",
        "norm_num_groups", "scaling_factor", "use_quant_conv",
    )  # fmt: skip

    @staticmethod
    def latents_by(config: Any) -> LatentsOf:
        return LatentsOf(1, 2 ** (len(config["block_out_channels"]) - 1), config["latent_channels"])

    def encode(self, clips: Tensor) -> Tensor:
        return self.latents(self.moments(clips))

    @torch.no_grad()
    def moments(self, clips: Tensor) -> Tensor:
        """Posterior mean and log-variance, float32 (B, 2C, T, H/f, W/f); the log-variance is clamped as in diffusers."""
        self.check_clips(clips)
        frames = rearrange(to_unit_range(clips), "b c t h w -> (b t) c h w").to(self.vae.dtype)
        posteriors = [self.vae.encode(part).latent_dist for part in frames.split(self.frames_at_once)]
        moments = torch.cat([torch.cat([posterior.mean, posterior.logvar], dim=1) for posterior in posteriors])
        return rearrange(moments.float(), "(b t) m h w -> b m t h w", b=len(clips))

    def latents(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, logvar = moments.float().chunk(2, dim=1)
        if generator is not None:
            # Drawn on the CPU: one generator gives the same noise on every device.
            noise = to_device(torch.randn(mean.shape, generator=generator), mean.device)
            mean = mean + torch.exp(0.5 * logvar) * noise
        return mean * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        frames = rearrange(latents / self.vae.config.scaling_factor, "b c t h w -> (b t) c h w").to(self.vae.dtype)
        parts = frames.split(1 if self.slicing else self.frames_at_once)
        with self._decoding():
            pixels = torch.cat([to_uint8(self.vae.decode(part).sample) for part in parts])
        return rearrange(pixels, "(b t) c h w -> b c t h w", b=len(latents))
