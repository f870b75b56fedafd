"""CLIP as a detector: what frames show, as a vector that compares with those of texts.

Dimensions: B clips, T frames, H×W pixels, D dimensions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from sparsevid.evaluation.detectors.base import Detector, Setting
from sparsevid.text.clip import CLIP, FORM

FRAMES = 64  # of a forward: a batch of clips may have thousands


class CLIPDetector(Detector):
    """The mean over frames of the unit vectors that CLIP makes of them.

    Its product with the unit vector of a text is the mean over frames of their cosines. How many dimensions there are is said
    by the folder, which is known by its checksum alone.
    """

    name = "clip"
    metric = "CLIP"
    preprocessing = "frame by frame as the folder's processor says; unit vectors, their mean over frames"
    min_frames = 1
    parts: ClassVar[Mapping[str, slice]] = {"features": slice(0, None)}

    def __init__(self, clip: CLIP) -> None:
        """Wrap a network."""
        super().__init__()
        self.clip, self.fingerprint, self.dim = clip, clip.fingerprint, clip.channels
        self.preprocessing = f"{type(self).preprocessing}; {clip.preprocessing}"
        self.eval()

    @classmethod
    def from_weights(cls, path: Path | None = None, trust: bool = False, **options: Setting) -> "CLIPDetector":
        """Build the detector from a folder; see `Detector`."""
        cls.complete_options(options)
        if path is None:
            raise FileNotFoundError(f"CLIP is read from a folder, which --detector-path names; accepted is {FORM}")
        return cls(CLIP.from_folder(path))

    def extract(self, clips: Tensor) -> Tensor:
        """Vectors (B, D) of clips (B, 3, T, H, W)."""
        frames = rearrange(clips, "b c t h w -> (b t) c h w")
        vectors = torch.cat([self.clip.pictures(part) for part in frames.split(FRAMES)])
        return rearrange(vectors, "(b t) d -> b t d", b=len(clips)).mean(dim=1)

    def texts(self, texts: list[str]) -> Tensor:
        """Unit vectors (N, D) of texts, on the CPU; see `CLIP.texts`."""
        return self.clip.texts(texts)
