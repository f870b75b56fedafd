"""What every detector is and checks: a fixed network from uint8 clips to one feature vector per clip.

Dimensions: B clips, C = 3 channels (RGB), T frames, H×W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Detector(nn.Module, ABC):
    """A measuring instrument: frozen, always in evaluation mode, float32 without TF32 or autocast.

    Two feature sets may be compared only if `name` and `fingerprint` agree.

    Attributes:
        name: the name under which `build_detector` knows it.
        metric: what a Fréchet distance of its features is called in reports.
        preprocessing: one line that says what happens to a clip before the network.
        dim: size of a clip's feature vector.
        min_frames: the fewest frames a clip may have.
        fingerprint: SHA-256 of the weight file, hexadecimal.
    """

    name: str
    metric: str
    preprocessing: str
    dim: int
    min_frames: int
    fingerprint: str

    @abstractmethod
    def extract(self, clips: Tensor) -> Tensor:
        """Features (B, dim) of checked clips (B, 3, T, H, W), uint8, on the detector's device."""

    def forward(self, clips: Tensor) -> Tensor:
        """Features of a batch of clips.

        Args:
            clips: uint8 (B, 3, T, H, W), RGB, on any device; B ≥ 1, T ≥ `min_frames`.

        Returns:
            float32 (B, dim) on the detector's device.

        Raises:
            ValueError: the clips have another type or shape.
        """
        if clips.dtype != torch.uint8:
            raise ValueError(f"detector {self.name!r} takes uint8 clips, got {clips.dtype}")
        if clips.ndim != 5 or clips.shape[1] != 3 or 0 in clips.shape:
            raise ValueError(f"detector {self.name!r} takes clips (B, 3, T, H, W), got shape {tuple(clips.shape)}")
        if clips.shape[2] < self.min_frames:
            raise ValueError(f"detector {self.name!r} needs at least {self.min_frames} frames, got {clips.shape[2]}")
        device = next(self.parameters()).device
        with torch.inference_mode(), torch.autocast(device.type, enabled=False), _exact_float32():
            return self.extract(clips.to(device))

    def train(self, mode: bool = True) -> "Detector":
        """Stay in evaluation mode whatever `mode` is: batch statistics would make a clip depend on its batch."""
        return super().train(False)


# TF32 is switched per operation since torch 2.9, and by one flag per library before.
if hasattr(torch.backends.cudnn, "conv"):
    _PRECISION_SWITCHES = (
        (torch.backends.cudnn.conv, "fp32_precision", "ieee"),
        (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
    )
else:
    _PRECISION_SWITCHES = (
        (torch.backends.cudnn, "allow_tf32", False),
        (torch.backends.cuda.matmul, "allow_tf32", False),
    )


@contextmanager
def _exact_float32() -> Iterator[None]:
    """No TF32 inside: its 10-bit mantissa moves features by 1e-3, and convolutions use it by default."""
    before = [getattr(owner, name) for owner, name, _ in _PRECISION_SWITCHES]
    try:
        for owner, name, exact in _PRECISION_SWITCHES:
            setattr(owner, name, exact)
        yield
    finally:
        for (owner, name, _), value in zip(_PRECISION_SWITCHES, before, strict=True):
            setattr(owner, name, value)
