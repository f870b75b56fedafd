"""Whether this installation measures what it should: identities that need no weights, and published values of a detector.

Dimensions: N clips, D features, B clips of a batch, T frames, H×W pixels.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from sparsevid.evaluation.detectors import Detector
from sparsevid.evaluation.metrics.distances import frechet_by_square_root, frechet_distance
from sparsevid.system.logging import progress
from sparsevid.system.precision import exact_float32

BATCH = 4  # clips of a forward pass: 16 frames of 224² each


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: what.
        expected: value.
        found: value.
        tolerance: greatest absolute difference that passes.
    """

    name: str
    expected: float
    found: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the value is the expected one; a value that is not a number never is."""
        return abs(self.found - self.expected) <= self.tolerance


Sets = tuple[Iterator[Tensor], Iterator[Tensor]]


@dataclass(frozen=True)
class GoldenValue:
    """A published distance between two sets of float clips, which go past the detector's preprocessing.

    Attributes:
        name: for the table.
        expected: the distance with unbiased covariances.
        tolerance: relative; other devices and convolution algorithms move the last digits.
        sets: give the clips of each set, float32 (B, 3, T, H, W), batch by batch.
    """

    name: str
    expected: float
    tolerance: float
    sets: Callable[[], Sets]


@dataclass(frozen=True)
class Golden:
    """How published values of a detector are computed anew.

    Attributes:
        network: (detector, float clips) → features (B, D), without preprocessing.
        values: to compare with.
        options: those that the values are for.
    """

    network: Callable[[Detector, Tensor], Tensor]
    values: tuple[GoldenValue, ...]
    options: Mapping[str, str | float]


def synthetic_checks() -> list[Check]:
    """Checks of the distance that need neither weights nor videos, on seeded Gaussian features."""
    generator = torch.Generator().manual_seed(0)
    real, other = (torch.randn(300, 24, generator=generator, dtype=torch.float64) for _ in range(2))
    fake = 1.5 * other + 0.3
    few, fewer = real[:12], fake[:12]
    size = (real.var(dim=0).sum() + fake.var(dim=0).sum()).item()
    distance = frechet_distance(real, fake)
    biased = frechet_distance(real, fake, unbiased=False)
    means = (real.mean(dim=0) - fake.mean(dim=0)).square().sum().item()
    white = _whitened(real)
    spread = torch.linspace(0.5, 2, 24, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64)).Q
    return [
        Check("a set against itself", 0.0, frechet_distance(real, real), 1e-13 * size),
        Check("a set of fewer clips than dimensions against itself", 0.0, frechet_distance(few, few), 1e-13 * size),
        Check("against scipy's matrix square root, N > D", frechet_by_square_root(real, fake), distance, 1e-10 * size),
        Check("the same, N < D", frechet_by_square_root(few, fewer), frechet_distance(few, fewer), 1e-6 * size),
        Check(
            "Gaussians with known moments", (1 - spread).square().sum().item() + 24 * 0.5**2,
            frechet_distance(white, white * spread + 0.5), 1e-10 * size,
        ),
        Check("both rotated", distance, frechet_distance(real @ rotation, fake @ rotation), 1e-10 * size),
        Check("both moved by 1000", distance, frechet_distance(real + 1000, fake + 1000), 1e-9 * size),
        Check("both scaled by 3", 9 * distance, frechet_distance(3 * real, 3 * fake), 1e-10 * size),
        Check("biased from unbiased covariances", means + 299 / 300 * (distance - means), biased, 1e-10 * size),
    ]  # fmt: skip


def detector_checks(detector: Detector) -> list[Check]:
    """What any detector has to fulfil, on seeded clips of noise.

    Features may differ in their last digits between places in a batch; the tolerance is relative to their size.
    """
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (3, 3, max(16, detector.min_frames), 64, 64), dtype=torch.uint8, generator=generator)
    together, again = detector(clips), detector(clips)
    reversed_batch, grey = detector(clips.flip(0)).flip(0), detector(torch.full_like(clips, 128))
    scale = together.abs().max().item()
    return [
        Check("the same clips twice", 0.0, _difference(together, again), 1e-6 * scale),
        Check("clips in another order", 0.0, _difference(together, reversed_batch), 1e-4 * scale),
        Check("equal clips in one batch", 0.0, _difference(grey, grey[:1].expand_as(grey)), 1e-4 * scale),
        Check("numbers that are not finite", 0.0, float((~torch.isfinite(together)).sum()), 0.0),
        Check("dimensions", float(detector.dim), float(together.shape[1]), 0.0),
    ]


def golden_checks(golden: Golden, detector: Detector) -> list[Check]:
    """Published distances, computed anew.

    Args:
        golden: values and how to compute them.
        detector: on the device where it is to compute.
    """
    device = next(detector.parameters()).device
    checks = []
    for value in golden.values:
        features = []
        for batches in value.sets():
            with torch.inference_mode(), exact_float32():
                shown = progress(batches, desc=value.name, unit="batch", leave=False)
                features.append(torch.cat([golden.network(detector, batch.to(device)).float().cpu() for batch in shown]))
        found = frechet_distance(*features)
        checks.append(Check(value.name, value.expected, found, value.tolerance * value.expected))
    return checks


def _uniform_sets() -> Sets:
    return _uniform(1), _uniform(2)


def _constant_sets() -> Sets:
    """Pixels 0 and 1, which become −1 and 1; all clips are equal, so two of each are as good as the published eight."""
    low, high = (torch.full((2, 3, 30, 224, 224), value) for value in (-1.0, 1.0))
    return iter([low]), iter([high])


def _uniform(seed: int, count: int = 128) -> Iterator[Tensor]:
    """`RandomState(seed).rand(count, 16, 224, 224, 3)` in batches: numbers drawn in parts are those drawn at once."""
    state = np.random.RandomState(seed)
    for first in range(0, count, BATCH):
        clips = state.rand(min(BATCH, count - first), 16, 224, 224, 3).astype(np.float32)
        yield rearrange(torch.from_numpy(clips), "b t h w c -> b c t h w").contiguous()


def _call_script(detector: Detector, clips: Tensor) -> Tensor:
    return detector.get_submodule("script")(clips, rescale=False, resize=False, return_features=True)


def _call_network(detector: Detector, clips: Tensor) -> Tensor:
    return detector.get_submodule("network")(clips)


# Of universome/fvd-comparison (`compare_metrics.py`), and of common_metrics_on_video_quality (its README).
_I3D_VALUES = (
    GoldenValue("I3D, RandomState(1) and (2), 128 clips of 16×224×224", 10.1380848, 1e-3, _uniform_sets),
    GoldenValue("I3D, zeros and ones, 30 frames", 151.2565, 1e-3, _constant_sets),
)
GOLDEN = {
    "i3d-torchscript": Golden(_call_script, _I3D_VALUES, {}),
    "i3d": Golden(_call_network, _I3D_VALUES, {"eps": 1e-3}),  # the script is a port of the original in TensorFlow
}


def _whitened(features: Tensor) -> Tensor:
    """The same features moved and turned so that mean and covariance are exactly 0 and the identity."""
    centred = features - features.mean(dim=0)
    return torch.linalg.qr(centred).Q * (len(features) - 1) ** 0.5


def _difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()
