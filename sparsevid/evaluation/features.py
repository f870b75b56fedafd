"""Clips through a detector to a feature file.

A feature file is a safetensors file with one tensor, `features`, and its origin as JSON under the metadata key
`sparsevid`.
Dimensions: N clips, D features, B clips in a batch; a clip is uint8 (C, T, H, W).
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsevid import __version__
from sparsevid.evaluation.detectors import Detector
from sparsevid.logging import progress

METADATA_KEY = "sparsevid"


@dataclass(frozen=True)
class FeatureFile:
    """Features of a set of clips, with what is needed to compare and to repeat them.

    Attributes:
        features: float32 (N, D) on the CPU, finite.
        clip_ids: N different names, in the order of the features.
        detector: the detector's registered name.
        detector_fingerprint: SHA-256 of its weights.
        role: "real" or "fake"; None for clips that no protocol chose.
        protocol: the fields of the protocol that chose the clips, or None.
        source: where the clips come from: root, counts, data fingerprint; or None.
        versions: of sparsevid, torch and torchvision.
    """

    features: Tensor
    clip_ids: tuple[str, ...]
    detector: str
    detector_fingerprint: str
    role: str | None
    protocol: dict[str, Any] | None
    source: dict[str, Any] | None
    versions: dict[str, str]

    def __post_init__(self) -> None:
        shape, count = tuple(self.features.shape), len(self.clip_ids)
        if self.features.dtype != torch.float32 or len(shape) != 2 or shape[0] != count:
            raise ValueError(f"features must be float32 ({count} clips, D), got {self.features.dtype} {shape}")
        if len(set(self.clip_ids)) != count:
            repeated = Counter(self.clip_ids).most_common(1)[0][0]
            raise ValueError(f"clip {repeated!r} occurs twice: a score counts no clip twice")
        if not torch.isfinite(self.features).all():
            first = int((~torch.isfinite(self.features)).any(dim=1).nonzero()[0])
            raise ValueError(f"the features of clip {self.clip_ids[first]!r} are not finite")


_ORIGIN = tuple(each.name for each in fields(FeatureFile) if each.name != "features")


def compute_features(
    clips: Iterable[tuple[str, Tensor]],
    detector: Detector,
    *,
    batch_size: int = 16,
    total: int | None = None,
    role: str | None = None,
    protocol: dict[str, Any] | None = None,
    source: dict[str, Any] | None = None,
) -> FeatureFile:
    """Send clips through a detector, a batch at a time: only features are kept.

    Args:
        clips: pairs of a name and a clip, uint8 (3, T, H, W), all of one shape. It is read once, in order.
        detector: on the device where it is to compute.
        batch_size: clips of a forward pass; features do not depend on it beyond rounding.
        total: number of clips if it is known, for the progress bar.
        role: goes into the file, see `FeatureFile`.
        protocol: goes into the file.
        source: goes into the file.

    Raises:
        ValueError: there is no clip, clips differ in shape, a name occurs twice, or features are not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    names: list[str] = []
    features: list[Tensor] = []
    with progress(total=total, desc=f"{detector.name} features", unit="clip", leave=False) as bar:
        for batch_names, batch in _batches(clips, batch_size):
            features.append(detector(batch).cpu())
            names.extend(batch_names)
            bar.update(len(batch_names))
    if not names:
        raise ValueError("there are no clips to compute features of")
    return FeatureFile(
        features=torch.cat(features),
        clip_ids=tuple(names),
        detector=detector.name,
        detector_fingerprint=detector.fingerprint,
        role=role,
        protocol=protocol,
        source=source,
        versions={"sparsevid": __version__, "torch": torch.__version__, "torchvision": torchvision.__version__},
    )


def save_features(file: FeatureFile, path: Path) -> None:
    """Write a feature file under a temporary name, then rename it: a reader never sees half of it.

    Args:
        file: the features and their origin.
        path: usually ends in `.safetensors`; folders above it are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = {name: getattr(file, name) for name in _ORIGIN}
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({"features": file.features.contiguous()}, draft, {METADATA_KEY: json.dumps(origin)})
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def load_features(path: Path) -> FeatureFile:
    """Read what `save_features` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is something else, or its parts do not fit together.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no feature file {path}")
    try:
        with safe_open(path, "pt") as handle:
            origin = json.loads((handle.metadata() or {})[METADATA_KEY])
            features = handle.get_tensor("features")
        origin = {**origin, "clip_ids": tuple(origin["clip_ids"])}
        return FeatureFile(features=features, **origin)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a feature file: {error}. It needs a float32 tensor 'features' and, as JSON under the "
            f"metadata key {METADATA_KEY!r}, {', '.join(_ORIGIN)}"
        ) from error


def check_comparable(real: FeatureFile, fake: FeatureFile) -> None:
    """Refuse two sets of features that are no two measurements with one instrument.

    Raises:
        ValueError: they come from different detectors, weights or protocols.
    """
    for what, a, b in (
        ("detector", real.detector, fake.detector),
        ("weights' SHA-256", real.detector_fingerprint, fake.detector_fingerprint),
        ("protocol", real.protocol, fake.protocol),
    ):
        if a != b:
            raise ValueError(f"real and fake features cannot be compared: {what} of real is {a}, of fake {b}")


def _batches(clips: Iterable[tuple[str, Tensor]], batch_size: int) -> Iterator[tuple[list[str], Tensor]]:
    """Group a stream into names and clips (B, C, T, H, W); the last group may be smaller."""
    stream, shape = iter(clips), None
    while group := list(islice(stream, batch_size)):
        shape = shape or group[0][1].shape
        for name, clip in group:
            if clip.shape != shape:
                raise ValueError(f"clip {name!r} has shape {tuple(clip.shape)}, the clips before it {tuple(shape)}")
        yield [name for name, _ in group], torch.stack([clip for _, clip in group])
