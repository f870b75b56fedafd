"""No first stage: latents are the pixels, −1 … 1."""

from pathlib import Path

from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder, to_uint8, to_unit_range, write_header


class Pixels(Autoencoder):
    """The identity, up to the range."""

    kind = "pixels"
    channels = 3
    factor = 1

    def encode(self, clips: Tensor) -> Tensor:
        self.check_clips(clips)
        return to_unit_range(clips)

    def decode(self, latents: Tensor) -> Tensor:
        return to_uint8(latents)

    def save(self, folder: Path) -> None:
        write_header(folder, {"kind": self.kind})
