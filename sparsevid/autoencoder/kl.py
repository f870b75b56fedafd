"""The variational autoencoder of latent diffusion: diffusers' `AutoencoderKL`, frame by frame."""

from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder, to_uint8, to_unit_range, write_header

FRAMES_AT_ONCE = 16  # decoded together, which bounds memory


class KLAutoencoder(Autoencoder):
    """`AutoencoderKL` with its own scaling factor; `encode` gives the mean of the posterior.

    Args:
        vae: a diffusers `AutoencoderKL`.
        source: where it came from, a folder or a hub id; saved in place of the weights.
    """

    kind = "kl"

    def __init__(self, vae: torch.nn.Module, source: str) -> None:
        super().__init__()
        self.vae, self.source = vae.eval().requires_grad_(False), source
        self.channels = vae.config.latent_channels
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @classmethod
    def from_source(cls, source: str | None) -> "KLAutoencoder":
        """Load from a local folder, else from the hub by its id.

        Raises:
            FileNotFoundError: neither; the message says what to get and where to put it.
        """
        from diffusers import AutoencoderKL

        if not source:
            raise FileNotFoundError(
                "autoencoder.kind=kl needs autoencoder.source: a local folder or a hub id such as stabilityai/sd-vae-ft-ema"
            )
        try:
            vae = AutoencoderKL.from_pretrained(source)
        except OSError as error:
            raise FileNotFoundError(
                f"cannot load an AutoencoderKL from {source!r} ({str(error).splitlines()[0]}). Get config.json and "
                "diffusion_pytorch_model.safetensors of, for example, stabilityai/sd-vae-ft-ema, put them into a folder, "
                "and pass it: autoencoder.source=FOLDER"
            ) from error
        return cls(vae, source)

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        self.check_clips(clips)
        frames = rearrange(to_unit_range(clips), "b c t h w -> (b t) c h w").to(self.vae.dtype)
        means = torch.cat([self.vae.encode(part).latent_dist.mean for part in frames.split(FRAMES_AT_ONCE)])
        return rearrange(means.float() * self.vae.config.scaling_factor, "(b t) c h w -> b c t h w", b=len(clips))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        frames = rearrange(latents / self.vae.config.scaling_factor, "b c t h w -> (b t) c h w").to(self.vae.dtype)
        pixels = torch.cat([to_uint8(self.vae.decode(part).sample) for part in frames.split(FRAMES_AT_ONCE)])
        return rearrange(pixels, "(b t) c h w -> b c t h w", b=len(latents))

    def save(self, folder: Path) -> None:
        write_header(folder, {"kind": self.kind, "source": self.source})
