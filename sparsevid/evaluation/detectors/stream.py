"""STREAM's view of a clip (Kim et al., arXiv 2403.09669): how an image detector's features of its frames move, and their mean.

Dimensions: B clips, T frames, D features of a frame, K = ⌊T/2⌋ frequencies above 0.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from sparsevid.evaluation.detectors.base import Detector, Setting
from sparsevid.evaluation.detectors.inception import InceptionDetector

FLOOR = 1e-6  # added to amplitudes, whose logarithm is taken


class StreamDetector(Detector):
    """Skewness of the spectrum and mean of each feature over a clip's frames, by the features of Inception-2015.

    For another image detector a subclass names it in `images` and says `dim` and `parts`.
    """

    name = "stream-inception-2015"
    metric = "STREAM"
    images: ClassVar[type[Detector]] = InceptionDetector
    preprocessing = f"each frame: {InceptionDetector.preprocessing}"
    dim = 2 * InceptionDetector.dim
    parts: ClassVar[Mapping[str, slice]] = {"skewness": slice(0, 2048), "mean": slice(2048, 4096)}
    min_frames = 4  # a power law through two frequencies at least

    def __init__(self, frames: Detector) -> None:
        """Wrap the detector of frames."""
        super().__init__()
        self.frames = frames
        self.fingerprint = frames.fingerprint
        self.eval()

    @classmethod
    def from_weights(cls, path: Path | None = None, trust: bool = False, **options: Setting) -> "StreamDetector":
        """Build the detector; see `Detector`. Weights are those of the detector of frames."""
        cls.complete_options(options)
        return cls(cls.images.from_weights(path, trust))

    def extract(self, clips: Tensor) -> Tensor:
        frames = rearrange(clips, "b c t h w -> t b c 1 h w")
        features = torch.stack([self.frames.extract(frame) for frame in frames], dim=1)  # (B, T, D)
        return torch.cat(spectrum_statistics(features), dim=1).float()


def spectrum_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """How unevenly a feature moves over a clip, and how strong its mean is.

    A power law A·kᴮ is fitted to the amplitudes at the frequencies k = 1 … K, by least squares of logarithms. The skewness is
    the ratio of the third moment to the root of the second of the law, scaled to sum 1.

    Args:
        features: (B, T, D), real, T ≥ 4.

    Returns:
        Skewness and mean amplitude, float64 (B, D) each.
    """
    frequencies = features.shape[1] // 2
    spectrum = torch.fft.fft(features, dim=1)[:, : 1 + frequencies]
    amplitudes = 2 * spectrum.abs() / (1 + frequencies)  # (B, 1 + K, D)
    mean, moving = amplitudes[:, 0], amplitudes[:, 1:] + FLOOR
    k = torch.arange(1, frequencies + 1, dtype=torch.float64, device=features.device)
    x = k.log() - k.log().mean()
    y = moving.double().log()  # (B, K, D)
    exponent = torch.einsum("k,bkd->bd", x, y) / x.square().sum()
    offset = y.mean(dim=1) - exponent * k.log().mean()
    powers = [(k[:, None] ** (exponent[:, None] + power)).sum(dim=1) for power in (0, 2, 3)]  # Σ k^(B + power), (B, D) each
    scale = offset.exp() / (offset.exp() * powers[0])  # A of the law of sum 1
    return powers[2] / (scale * powers[1]).sqrt(), mean.double()
