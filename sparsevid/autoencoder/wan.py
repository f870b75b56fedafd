"""Wan's causal autoencoder over space and time: diffusers' `AutoencoderKLWan`.

Dimensions: B clips of T = 1 + g·(t − 1) frames, t latents in time: the first stands for the first frame, each other for g.
"""

from typing import Any

import torch
from torch import Tensor

from sparsevid.autoencoder.base import to_uint8, to_unit_range
from sparsevid.autoencoder.pretrained import LatentsOf, PretrainedAutoencoder


class WanAutoencoder(PretrainedAutoencoder):
    """`AutoencoderKLWan`, whose latents are brought to zero mean and unit variance by its configuration.

    A latent depends on all frames before it, so that no cache of single frames can hold what clips need.
    """

    kind = "wan"
    library_class = "AutoencoderKLWan"
    example = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    usual = LatentsOf(4, 8, 16, causal=True)
    settings = ("base_dim", "dim_mult", "num_res_blocks", "attn_scales", "temperal_downsample", "z_dim", "latents_mean",
                "latents_std", "is_residual", "patch_size")  # fmt: skip
    uncached = "its latents depend on the frames before them"

    @staticmethod
    def latents_by(config: Any) -> LatentsOf:
        side = 2 ** (len(config["dim_mult"]) - 1) * (config.get("patch_size") or 1)
        return LatentsOf(2 ** sum(config["temperal_downsample"]), side, config["z_dim"], causal=True)

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        self.check_clips(clips)
        mean, deviation = self._scale(clips.device)
        # One after the other: the encoder keeps what it has seen of a clip between its frames.
        parts = [self.vae.encode(to_unit_range(clip).to(self.vae.dtype)).latent_dist.mean for clip in clips.split(1)]
        return (torch.cat(parts).float() - mean) / deviation

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        mean, deviation = self._scale(latents.device)
        values = (latents.float() * deviation + mean).to(self.vae.dtype)
        with self._decoding():
            return torch.cat(
                [to_uint8(self.vae.decode(part).sample) for part in values.split(1 if self.slicing else len(values))]
            )

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents, (C, 1, 1, 1)."""
        values = (self.vae.config.latents_mean, self.vae.config.latents_std)
        mean, deviation = (torch.tensor(each, device=device).view(-1, 1, 1, 1) for each in values)
        return mean, deviation
