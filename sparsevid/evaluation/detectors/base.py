"""What every detector is and checks: a fixed network from uint8 clips to one vector per clip.

Dimensions: B clips, C = 3 channels (RGB), T frames, H×W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sparsevid.system.precision import exact_float32

Setting = str | float


class Detector(nn.Module, ABC):
    """A measuring instrument: frozen, always in evaluation mode, float32 without TF32 or autocast.

    Two feature sets may be compared only if `name`, `fingerprint` and `settings` agree. A class knows everything but
    `fingerprint` and `settings` without weights.

    Attributes:
        name: the name under which `build_detector` knows it.
        metric: what a Fréchet distance of its features is called in reports.
        preprocessing: one line that says what happens to a clip before the network; with the options it was built with.
        dim: size of a clip's vector.
        min_frames: the fewest frames a clip may have.
        kind: "features", to be compared between sets, or "logits" of a classifier, for Inception scores.
        parts: of a vector that holds several outputs of the network, where each of them lies.
        OPTIONS: option -> its default.
        ACCEPTED: option -> all values it may have.
        settings: option -> the value it was built with.
        fingerprint: SHA-256 of the weight file, hexadecimal.
    """

    name: str
    metric: str
    preprocessing: str
    dim: int
    min_frames: int
    kind: Literal["features", "logits"] = "features"
    parts: ClassVar[Mapping[str, slice]] = {}
    OPTIONS: ClassVar[Mapping[str, Setting]] = {}
    ACCEPTED: ClassVar[Mapping[str, tuple[Setting, ...]]] = {}
    settings: dict[str, Setting]
    fingerprint: str

    def __init__(self) -> None:
        super().__init__()
        self.settings = {}

    @classmethod
    def from_weights(cls, path: Path | None, trust: bool, **options: Setting) -> "Detector":
        """Build the detector; every class with weights of its own has this.

        Args:
            path: a weight file; None for the published one.
            trust: accept a file whose checksum is not known.
            options: some of `OPTIONS`.

        Raises:
            FileNotFoundError: there is no such file, and none can be downloaded.
            ValueError: the file holds no weights of this network, or an option is unknown or out of range.
        """
        raise NotImplementedError(f"detector {cls.__name__} cannot be built from a weight file")

    @classmethod
    def complete_options(cls, options: Mapping[str, Setting]) -> dict[str, Setting]:
        """The options with defaults filled in. Numbers may be given as text, as a command line has them.

        Raises:
            ValueError: an option is unknown, or its value is not accepted.
        """
        settings = dict(cls.OPTIONS)
        for option, value in options.items():
            if option not in settings:
                known = ", ".join(settings) or "none"
                raise ValueError(f"detector {cls.name!r} has no option {option!r}; accepted: {known}")
            accepted = cls.ACCEPTED[option]
            found = next((each for each in accepted if _same_setting(value, each)), None)
            if found is None:
                raise ValueError(f"detector {cls.name!r}: {option}={value!r}; accepted: {', '.join(map(str, accepted))}")
            settings[option] = found
        return settings

    @classmethod
    def outputs(cls) -> Mapping[str, slice]:
        """What metrics may ask for, and its columns in the vector: "features", "logits", "spatial", "motion", …"""
        return cls.parts or {cls.kind: slice(0, cls.dim)}

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
        with torch.inference_mode(), torch.autocast(device.type, enabled=False), exact_float32():
            return self.extract(clips.to(device))

    def texts(self, texts: list[str]) -> Tensor:
        """Vectors (N, dim) of texts, on the CPU, of a detector that has them.

        Raises:
            ValueError: it has none.
        """
        raise ValueError(f"detector {self.name!r} has no vectors of texts")

    def train(self, mode: bool = True) -> "Detector":
        """Stay in evaluation mode whatever `mode` is: batch statistics would make a clip depend on its batch."""
        return super().train(False)


class NetworkDetector(Detector):
    """A detector that is one network with its weights.

    Args:
        network: with its weights, in float32.
        fingerprint: SHA-256 of what they come from.
    """

    def __init__(self, network: nn.Module, fingerprint: str) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.fingerprint = fingerprint
        self.eval()


def _same_setting(given: Setting, accepted: Setting) -> bool:
    if isinstance(accepted, str) or not isinstance(given, str):
        return given == accepted
    try:
        return float(given) == accepted
    except ValueError:
        return False
