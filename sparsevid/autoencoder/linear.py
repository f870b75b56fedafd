"""A linear first stage that needs no weights: principal components of patches, fitted in closed form.

Dimensions: B clips, T frames, g a patch's frames, p its side, P = 3·g·p·p its values, C latent channels.
"""

import math
from pathlib import Path

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder, latent_size, to_uint8, to_unit_range, write_header


class LinearAutoencoder(Autoencoder):
    """PCA of g×p×p patches to C channels of unit variance on the mean, on the clips it was fitted to.

    How far the channels' own variances are made equal is `whitening`. Wholly (1), faint components weigh as much as the first,
    in the loss and in when they are decided; not at all (0), the first components are decided next to pure noise, where times
    are drawn seldom.

    Args:
        mean: (P,) mean patch, in −1 … 1.
        basis: (C, P) orthonormal principal components.
        scale: (C,) what each component is divided by.
        time_factor: g.
    """

    kind = "linear"
    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, basis: Tensor, scale: Tensor, time_factor: int = 1) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        self.register_buffer("scale", scale)
        self.channels = basis.shape[0]
        self.time_factor = time_factor
        self.factor = round((basis.shape[1] / (3 * time_factor)) ** 0.5)

    @classmethod
    def fit(
        cls, clips: Tensor, *, patch: int = 8, patch_frames: int = 1, channels: int = 16, whitening: float = 1.0
    ) -> "LinearAutoencoder":
        """Fit to uint8 clips (B, 3, T, H, W).

        Args:
            patch: p.
            patch_frames: g; from 2 on, what moves and what stays have components of their own.
            channels: C.
            whitening: w in 0 … 1; components are divided by a common factor times their standard deviation to the power w.

        Raises:
            ValueError: more channels than values of a patch, frames or sides that the patch does not divide, or fewer patches
                than channels.
        """
        shape = (patch_frames, patch, patch)
        if not 1 <= channels <= 3 * math.prod(shape):
            raise ValueError(f"a patch of {'×'.join(map(str, shape))} has 1 to {3 * math.prod(shape)} channels, got {channels}")
        latent_size(clips.shape[2:], patch_frames, patch)
        patches = _patches(clips, patch_frames, patch).flatten(0, 3).double()
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
        return cls(mean.float(), (vectors * signs).T.contiguous().float(), scale.float(), patch_frames)

    def encode(self, clips: Tensor) -> Tensor:
        self.check_clips(clips)
        patches = _patches(clips, self.time_factor, self.factor)
        latents = (patches - self.mean) @ self.basis.T / self.scale  # (B, T/g, H/p, W/p, C)
        return rearrange(latents, "b t h w c -> b c t h w").contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        patches = rearrange(latents.float(), "b c t h w -> b t h w c") * self.scale @ self.basis + self.mean
        sides = {"g": self.time_factor, "p": self.factor, "q": self.factor}
        return to_uint8(rearrange(patches, "b t h w (c g p q) -> b c (t g) (h p) (w q)", **sides))

    def save(self, folder: Path) -> None:
        header = {"kind": self.kind, "channels": self.channels, "patch": self.factor, "patch_frames": self.time_factor}
        write_header(folder, header)
        save_file(dict(self.state_dict()), folder / "autoencoder.safetensors")

    @classmethod
    def load(cls, folder: Path, header: dict) -> "LinearAutoencoder":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no weights there.
            ValueError: a damaged file, or weights that are not of the size that the header says.
        """
        channels, patch, frames = header.get("channels"), header.get("patch"), header.get("patch_frames", 1)  # not in old ones
        if not (isinstance(channels, int) and isinstance(patch, int) and isinstance(frames, int)):
            said = f"channels = {channels!r}, patch = {patch!r}, patch_frames = {frames!r}"
            raise ValueError(f"{folder / 'autoencoder.json'} is damaged: {said}")
        try:
            weights = load_file(folder / "autoencoder.safetensors")
        except SafetensorError as error:
            raise ValueError(f"{folder / 'autoencoder.safetensors'} is damaged: {error}") from error
        if "std" in weights:  # its name while whitening was always 1
            weights["scale"] = weights.pop("std")
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        values = 3 * frames * patch**2
        expected = {"mean": (values,), "basis": (channels, values), "scale": (channels,)}
        if shapes != expected:
            raise ValueError(f"{folder}: weights of shapes {shapes}, but autoencoder.json says {expected}")
        return cls(**weights, time_factor=frames)


def _patches(clips: Tensor, frames: int, side: int) -> Tensor:
    """uint8 (B, 3, T, H, W) → (B, T/g, H/p, W/p, P) in −1 … 1."""
    return rearrange(to_unit_range(clips), "b c (t g) (h p) (w q) -> b t h w (c g p q)", g=frames, p=side, q=side)
