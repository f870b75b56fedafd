"""What every first stage offers and shares.

Dimensions: B clips, T frames, C latent channels, f and g the factors between pixels and latents in space and time (1 where
single frames are encoded), M channels of the moments.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Autoencoder(nn.Module, ABC):
    """Base of the first stages.

    Attributes:
        kind: the name in configs.
        channels: C, channels of the latents.
        factor: f, pixels a latent's side; height and width of clips are multiples of it.
        time_factor: g, frames a latent's duration; clips have a multiple of it.
        causal: the first latent stands for the first frame alone, and clips have one frame more than a multiple of g.
        source: where its weights came from, a folder or a hub id; None if it needs none.
        cache_dtypes: data types in which a cache may hold its moments, the usual one first; none, if they cannot be cached.
        moment_channels: M, channels of the moments; 0, if they cannot be cached.
    """

    kind: ClassVar[str]
    channels: int
    factor: int
    time_factor: int = 1
    causal: bool = False
    source: str | None = None
    cache_dtypes: ClassVar[tuple[torch.dtype, ...]] = ()
    moment_channels: int = 0
    uncached: ClassVar[str] = "each run fits its own"  # why moments cannot be cached, where they cannot

    @abstractmethod
    def encode(self, clips: Tensor) -> Tensor:
        """uint8 (B, 3, T, H, W) → float32 latents of about unit variance (B, C, T/g, H/f, W/f)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, T/g, H/f, W/f) → uint8 (B, 3, T, H, W)."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write `autoencoder.json` and, where there are any, weights as safetensors."""

    def place(self, device: torch.device, dtype: torch.dtype) -> "Autoencoder":
        """Move to a device, in place, to decode beside a model of this type.

        Args:
            device: where.
            dtype: of the weights of `kl`; the other kinds are one matrix product, or nothing, and keep theirs.

        Returns:
            Itself.
        """
        return self.to(device)

    @property
    def cacheable(self) -> bool:
        """Whether moments of single frames can be kept on disk in place of the frames."""
        return bool(self.cache_dtypes)

    def moments(self, clips: Tensor) -> Tensor:
        """What a cache keeps of clips: all that `latents` needs, each frame for itself.

        Args:
            clips: uint8 (B, 3, T, H, W).

        Returns:
            (B, M, T, H/f, W/f), with `encode(clips) == latents(moments(clips))`.

        Raises:
            ValueError: this kind cannot be cached, or clips are not as they should be.
        """
        raise ValueError(
            f"moments of the autoencoder {self.kind!r} cannot be cached: {self.uncached}; accepted kinds: kl, temporal, pixels"
        )

    def latents(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents from moments.

        Args:
            moments: (B, M, T, H/f, W/f) of `moments`, in any of `cache_dtypes`.
            generator: on the CPU; draws from the posterior where there is one. None: its mean.

        Returns:
            float32 (B, C, T, H/f, W/f), of about unit variance.

        Raises:
            ValueError: this kind cannot be cached.
        """
        raise ValueError(f"the autoencoder {self.kind!r} has no moments; accepted kinds: kl, temporal, pixels")

    def configuration(self) -> dict[str, Any]:
        """What decides the latents beside kind and weights; plain values."""
        return {}

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over kind, configuration and weights: equal only where latents are."""
        header = {"kind": self.kind, **self.configuration()}
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for name, weight in sorted(self.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def check_clips(self, clips: Tensor) -> None:
        """Raise ValueError unless clips are uint8 (B, 3, T, H, W) with frames and sides that are multiples of the factors."""
        if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[1] != 3:
            raise ValueError(f"clips are uint8 (B, 3, T, H, W), got {clips.dtype} {tuple(clips.shape)}")
        latent_size(clips.shape[2:], self.time_factor, self.factor, causal=self.causal)

    def clip_size(self, latents: Sequence[int]) -> tuple[int, int, int]:
        """(T, H, W) of the clips whose latents are of size (T/g, H/f, W/f); T = 1 + g·(t − 1) if `causal`."""
        frames, height, width = latents
        whole = 1 + (frames - 1) * self.time_factor if self.causal else frames * self.time_factor
        return whole, height * self.factor, width * self.factor


def latent_size(clip: Sequence[int], time_factor: int, factor: int, *, causal: bool = False) -> tuple[int, int, int]:
    """(T/g, H/f, W/f), the size of latents of clips of (T, H, W); (T − 1)/g + 1 in time where the first frame is apart.

    Args:
        clip: frames, height and width in pixels.
        time_factor: g.
        factor: f.
        causal: the first latent stands for the first frame alone.

    Raises:
        ValueError: they are no multiples of the factors.
    """
    frames, height, width = clip
    if (frames - causal) % time_factor:
        more = " and one more" if causal else ""
        raise ValueError(f"{frames} frames are no multiple of {time_factor}{more}, the frames of a patch of the autoencoder")
    if height % factor or width % factor:
        raise ValueError(f"height and width {height}×{width} are no multiples of {factor}, the autoencoder's factor")
    return (frames - causal) // time_factor + causal, height // factor, width // factor


def to_unit_range(clips: Tensor) -> Tensor:
    """uint8 0 … 255 → float32 −1 … 1."""
    return clips.float() / 127.5 - 1.0


def to_uint8(values: Tensor) -> Tensor:
    """−1 … 1 → uint8, rounded (truncation would move a quarter of the levels) and clamped."""
    return ((values.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def write_header(folder: Path, header: dict) -> None:
    """Write `autoencoder.json`, which `sparsevid.autoencoder.load` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "autoencoder.json").write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
