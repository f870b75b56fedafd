"""A linear first stage that needs no weights: principal components of square patches, fitted in closed form.

Dimensions: B clips, T frames, p the patch's side, P = 3·p·p values of a patch, C latent channels.
"""

from pathlib import Path

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder, to_uint8, to_unit_range, write_header


class LinearAutoencoder(Autoencoder):
    """PCA of p×p patches to C channels, each scaled to unit variance on the clips it was fitted to.

    Unit variance in each channel, rather than over all, lets coarse structure be decided at middling noise levels, where
    times are drawn most often; with one common scale the first components would be decided next to pure noise.

    Args:
        mean: (P,) mean patch, in −1 … 1.
        basis: (C, P) orthonormal principal components.
        std: (C,) standard deviation of each component.
    """

    kind = "linear"

    def __init__(self, mean: Tensor, basis: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        self.register_buffer("std", std)
        self.channels = basis.shape[0]
        self.factor = round((basis.shape[1] / 3) ** 0.5)

    @classmethod
    def fit(cls, clips: Tensor, *, patch: int = 8, channels: int = 16) -> "LinearAutoencoder":
        """Fit to uint8 clips (B, 3, T, H, W).

        Raises:
            ValueError: more channels than values of a patch, sides that the patch does not divide, or fewer patches than
                channels.
        """
        if not 1 <= channels <= 3 * patch * patch:
            raise ValueError(f"a patch of {patch}×{patch} has 1 to {3 * patch * patch} channels, got {channels}")
        if clips.shape[3] % patch or clips.shape[4] % patch:
            raise ValueError(f"clips of {tuple(clips.shape[3:])} cannot be cut into patches of {patch}×{patch}")
        patches = rearrange(to_unit_range(clips), "b c t (h p) (w q) -> (b t h w) (c p q)", p=patch, q=patch).double()
        if len(patches) <= channels:
            raise ValueError(f"{len(patches)} patches are too few to fit {channels} channels: give more or larger clips")
        mean = patches.mean(0)
        centred = patches - mean
        variances, vectors = torch.linalg.eigh(centred.T @ centred / len(patches))  # rising
        variances, vectors = variances.flip(0)[:channels], vectors.flip(1)[:, :channels]
        # An eigenvector's sign is arbitrary: fix it, so that every machine and rank gets the same latents.
        signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        std = variances.clamp(min=1e-8).sqrt()
        return cls(mean.float(), (vectors * signs).T.contiguous().float(), std.float())

    def encode(self, clips: Tensor) -> Tensor:
        self.check_clips(clips)
        p = self.factor
        patches = rearrange(to_unit_range(clips), "b c t (h p) (w q) -> b t h w (c p q)", p=p, q=p)
        latents = (patches - self.mean) @ self.basis.T / self.std  # (B, T, H/p, W/p, C)
        return rearrange(latents, "b t h w c -> b c t h w").contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        p = self.factor
        patches = rearrange(latents.float(), "b c t h w -> b t h w c") * self.std @ self.basis + self.mean
        return to_uint8(rearrange(patches, "b t h w (c p q) -> b c t (h p) (w q)", p=p, q=p))

    def save(self, folder: Path) -> None:
        write_header(folder, {"kind": self.kind, "channels": self.channels, "patch": self.factor})
        save_file(dict(self.state_dict()), folder / "autoencoder.safetensors")

    @classmethod
    def load(cls, folder: Path, header: dict) -> "LinearAutoencoder":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no weights there.
            ValueError: a damaged file, or weights that are not of the size that the header says.
        """
        channels, patch = header.get("channels"), header.get("patch")
        if not isinstance(channels, int) or not isinstance(patch, int):
            raise ValueError(f"{folder / 'autoencoder.json'} is damaged: channels = {channels!r}, patch = {patch!r}")
        try:
            weights = load_file(folder / "autoencoder.safetensors")
        except SafetensorError as error:
            raise ValueError(f"{folder / 'autoencoder.safetensors'} is damaged: {error}") from error
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        expected = {"mean": (3 * patch**2,), "basis": (channels, 3 * patch**2), "std": (channels,)}
        if shapes != expected:
            raise ValueError(f"{folder}: weights of shapes {shapes}, but autoencoder.json says {expected}")
        return cls(**weights)
