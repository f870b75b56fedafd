"""No first stage: latents are the pixels, −1 … 1."""

from pathlib import Path

import torch
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder, to_uint8, to_unit_range, write_header


class Pixels(Autoencoder):
    """The identity, up to the range. Its moments are the uint8 frames themselves."""

    kind = "pixels"
    channels = 3
    factor = 1
    cache_dtypes = (torch.uint8,)
    moment_channels = 3

    def encode(self, clips: Tensor) -> Tensor:
        return self.latents(self.moments(clips))

    def moments(self, clips: Tensor) -> Tensor:
        self.check_clips(clips)
        return clips

    def latents(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """−1 … 1; nothing is random in them, so the generator is left alone."""
        return to_unit_range(moments)

    def decode(self, latents: Tensor) -> Tensor:
        return to_uint8(latents)

    def save(self, folder: Path) -> None:
        write_header(folder, {"kind": self.kind})
