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
    """PCA of p×p patches to C channels of unit variance on the mean, on the clips it was fitted to.

    How far the channels' own variances are made equal is `whitening`. Wholly (1), faint components weigh as much as the first,
    in the loss and in when they are decided; not at all (0), the first components are decided next to pure noise, where times
    are drawn seldom.

    Args:
        mean: (P,) mean patch, in −1 … 1.
        basis: (C, P) orthonormal principal components.
        scale: (C,) what each component is divided by.
    """

    kind = "linear"

    def __init__(self, mean: Tensor, basis: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        self.register_buffer("scale", scale)
        self.channels = basis.shape[0]
        self.factor = round((basis.shape[1] / 3) ** 0.5)

    @classmethod
    def fit(cls, clips: Tensor, *, patch: int = 8, channels: int = 16, whitening: float = 1.0) -> "LinearAutoencoder":
        """Fit to uint8 clips (B, 3, T, H, W).

        Args:
            whitening: w in 0 … 1; components are divided by a common factor times their standard deviation to the power w.

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
        scale = std**whitening
        scale *= (std / scale).square().mean().sqrt()  # unit variance over all channels
        return cls(mean.float(), (vectors * signs).T.contiguous().float(), scale.float())

    def encode(self, clips: Tensor) -> Tensor:
        self.check_clips(clips)
        p = self.factor
        patches = rearrange(to_unit_range(clips), "b c t (h p) (w q) -> b t h w (c p q)", p=p, q=p)
        latents = (patches - self.mean) @ self.basis.T / self.scale  # (B, T, H/p, W/p, C)
        return rearrange(latents, "b t h w c -> b c t h w").contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        p = self.factor
        patches = rearrange(latents.float(), "b c t h w -> b t h w c") * self.scale @ self.basis + self.mean
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
        if "std" in weights:  # its name while whitening was always 1
            weights["scale"] = weights.pop("std")
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        expected = {"mean": (3 * patch**2,), "basis": (channels, 3 * patch**2), "scale": (channels,)}
        if shapes != expected:
            raise ValueError(f"{folder}: weights of shapes {shapes}, but autoencoder.json says {expected}")
        return cls(**weights)
