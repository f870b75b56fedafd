"""Stable Video Diffusion's autoencoder: the encoder of single frames, and a decoder that looks over frames."""

import torch
from einops import rearrange
from torch import Tensor

from sparsevid.autoencoder.base import to_uint8
from sparsevid.autoencoder.kl import KLAutoencoder


class TemporalAutoencoder(KLAutoencoder):
    """diffusers' `AutoencoderKLTemporalDecoder`. Clips are decoded whole: single frames would come out otherwise."""

    kind = "temporal"
    library_class = "AutoencoderKLTemporalDecoder"
    example = "stabilityai/stable-video-diffusion-img2vid"
    settings = ("block_out_channels", "down_block_types", "latent_channels", "layers_per_block", "scaling_factor")
    can_tile = False

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        frames = rearrange(latents / self.vae.config.scaling_factor, "b c t h w -> b t c h w").to(self.vae.dtype)
        pixels = torch.stack([to_uint8(self.vae.decode(clip, num_frames=len(clip)).sample) for clip in frames])
        return rearrange(pixels, "b t c h w -> b c t h w")
