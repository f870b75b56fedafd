"""Clips through a detector to a feature file: streamed, by all ranks, resumable.

A feature file is a safetensors file with one tensor, `features`, and its origin as JSON under the metadata key
`sparsevid`. Batch b is the clips b·B … (b+1)·B − 1 for any number of ranks, and a last batch of fewer is filled up by
copies of its last clip: every forward has one shape, so a clip's features are the same to the last bit whoever computes them.
Dimensions: N clips, D features, B clips in a batch; a clip is uint8 (C, T, H, W).
"""

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import av
import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsevid import __version__
from sparsevid.atomic import renamed
from sparsevid.distributed import broadcast_object, gather_objects, is_main, peers_may_die, rank, world_size
from sparsevid.evaluation.detectors import Detector
from sparsevid.evaluation.feature_parts import FeatureParts
from sparsevid.logging import progress

METADATA_KEY = "sparsevid"
MAX_READERS = 4  # threads of a rank that decode; each holds a batch of clips


class ClipSet(Protocol):
    """Clips in a fixed order; `sparsevid.evaluation.clips.ProtocolClips` is one.

    Attributes:
        ids: N different names, in reading order.
        origin: where the clips come from, for the record.
        fingerprint: SHA-256 over all that the clips depend on.
    """

    ids: tuple[str, ...]
    origin: dict[str, Any]
    fingerprint: str

    def __len__(self) -> int: ...

    def read(self, first: int, last: int) -> Iterator[tuple[str, Tensor]]:
        """Name and clip, uint8 (C, T, H, W), of positions first … last − 1. Called by several threads at once."""


@dataclass(frozen=True)
class FeatureFile:
    """Features of a set of clips, with what is needed to compare and to repeat them.

    Attributes:
        features: float32 (N, D) on the CPU, finite.
        clip_ids: N different names, in the order of the features.
        detector: the detector's registered name.
        detector_fingerprint: SHA-256 of its weights.
        detector_settings: the options it was built with.
        preprocessing: what it does to a clip before its network.
        role: "real" or "fake"; None for clips that no protocol chose.
        protocol: the fields of the protocol that chose the clips, or None.
        source: where the clips come from: root, counts, data fingerprint; or None.
        clips_fingerprint: SHA-256 over names and origin of the clips; None for clips that were never a set in order.
        computation: batch size and kind of device, on which the last digits depend.
        versions: of sparsevid, torch, torchvision and av, which decodes.
    """

    features: Tensor
    clip_ids: tuple[str, ...]
    detector: str
    detector_fingerprint: str
    role: str | None
    protocol: dict[str, Any] | None
    source: dict[str, Any] | None
    versions: dict[str, str]
    detector_settings: dict[str, Any] = field(default_factory=dict)
    preprocessing: str = ""
    clips_fingerprint: str | None = None
    computation: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, count = tuple(self.features.shape), len(self.clip_ids)
        if self.features.dtype != torch.float32 or len(shape) != 2 or shape[0] != count:
            raise ValueError(f"features must be float32 ({count} clips, D), got {self.features.dtype} {shape}")
        _check_names(self.clip_ids)
        _check_finite(self.clip_ids, self.features)


_ORIGIN = tuple(each.name for each in fields(FeatureFile) if each.name != "features")


def compute_features(
    clips: ClipSet,
    detector: Detector,
    *,
    batch_size: int = 16,
    out: Path | None = None,
    role: str | None = None,
    protocol: dict[str, Any] | None = None,
    readers: int | None = None,
    stamp: str = "",
) -> FeatureFile:
    """Send clips through a detector, a batch at a time, while threads read the next ones: only features are kept.

    All ranks call it together, with the same arguments; each computes its share of the batches.

    Args:
        clips: read by position.
        detector: on the device where it is to compute.
        batch_size: B, clips of a forward pass. Features depend on it in their last digits.
        out: feature file to write, usually `….safetensors`; folders above it are made. Batches that an interrupted call has
            finished for it are kept beside it, and taken up.
        role: goes into the file, see `FeatureFile`.
        protocol: goes into the file.
        readers: threads that read clips; each holds one batch. Default: this rank's share of the cores, MAX_READERS at most.
        stamp: of the state of the clips' files: batches that were finished under another one are not taken up.

    Returns:
        The features, on every rank.

    Raises:
        ValueError: there is no clip, clips differ in shape, a name occurs twice, or features are not finite.
    """
    if batch_size < 1 or (readers is not None and readers < 1):
        raise ValueError(f"batch_size and readers count from 1, got {batch_size} and {readers}")
    if not len(clips):
        raise ValueError("there are no clips to compute features of")
    _check_names(clips.ids)
    origin = _origin(clips, detector, batch_size, role, protocol)
    numbers = range(-(-len(clips) // batch_size))
    parts = None if out is None else FeatureParts(out, hashlib.sha256(json.dumps([origin, stamp]).encode()).hexdigest())
    done: dict[int, Tensor] = {}
    with peers_may_die("computing features"):
        if parts is not None and is_main():
            done = parts.load((batch_size, detector.dim), len(numbers))
        there = broadcast_object(set(done))
        missing = [number for number in numbers if number not in there]
        for number, features in _share(clips, detector, batch_size, missing[rank() :: world_size()], readers):
            done[number] = features
            if parts is not None:
                parts.save(number, features)
        gathered = {number: each for some in gather_objects(done) for number, each in some.items()}
        features = torch.cat([gathered[number] for number in numbers])[: len(clips)].clone()
        file = FeatureFile(features=features, **{**origin, "clip_ids": tuple(clips.ids)})
        if out is not None and is_main():
            save_features(file, out)
            parts.remove()
        broadcast_object(None)  # the file is there for all when any rank returns
    return file


def save_features(file: FeatureFile, path: Path) -> None:
    """Write a feature file under a temporary name, then rename it: a reader never sees half of it.

    Args:
        file: the features and their origin.
        path: usually ends in `.safetensors`; folders above it are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = {name: getattr(file, name) for name in _ORIGIN}
    with renamed(path) as draft:
        save_file({"features": file.features.contiguous()}, draft, {METADATA_KEY: json.dumps(origin)})


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
        ValueError: they come from different detectors, weights, settings or protocols.
    """
    for what, a, b in (
        ("detector", real.detector, fake.detector),
        ("weights' SHA-256", real.detector_fingerprint, fake.detector_fingerprint),
        ("detector settings", real.detector_settings, fake.detector_settings),
        ("protocol", real.protocol, fake.protocol),
        ("number of dimensions", real.features.shape[1], fake.features.shape[1]),
    ):
        if a != b:
            raise ValueError(f"real and fake features cannot be compared: {what} of real is {a}, of fake {b}")


def _origin(
    clips: ClipSet, detector: Detector, batch_size: int, role: str | None, protocol: dict[str, Any] | None
) -> dict[str, Any]:
    """All of a feature file but the features, as JSON has it: what these depend on, and nothing of ranks or time."""
    device = next(detector.parameters()).device
    origin = {
        "clip_ids": clips.ids,
        "detector": detector.name,
        "detector_fingerprint": detector.fingerprint,
        "detector_settings": dict(sorted(detector.settings.items())),
        "preprocessing": detector.preprocessing,
        "role": role,
        "protocol": protocol,
        "source": clips.origin,
        "clips_fingerprint": clips.fingerprint,
        "computation": {"batch_size": batch_size, "device": device.type},
        "versions": {
            "sparsevid": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "av": av.__version__,
        },
    }
    return json.loads(json.dumps(origin))


def _share(
    clips: ClipSet, detector: Detector, batch_size: int, numbers: Sequence[int], readers: int | None
) -> Iterator[tuple[int, Tensor]]:
    """This rank's batches: (number, features (B, D) on the CPU), also of the copies that fill a batch up."""
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    threads = readers or max(1, min(MAX_READERS, cores))
    name = f"{detector.name} features" + (f" (rank 0 of {world_size()})" if world_size() > 1 else "")
    shape = None
    count = sum(min(batch_size, len(clips) - number * batch_size) for number in numbers)
    with progress(total=count, desc=name, unit="clip", leave=False) as bar:
        for number, batch in _read_ahead(clips, batch_size, numbers, threads):
            shape = shape or batch[0][1].shape
            for clip_id, clip in batch:
                if clip.shape != shape:
                    raise ValueError(f"clip {clip_id!r} has shape {tuple(clip.shape)}, the clips before it {tuple(shape)}")
            stacked = torch.stack([clip for _, clip in batch] + [batch[-1][1]] * (batch_size - len(batch)))
            features = detector(stacked).float().cpu()
            _check_finite([clip_id for clip_id, _ in batch], features[: len(batch)])
            yield number, features
            bar.update(len(batch))


def _read_ahead(
    clips: ClipSet, batch_size: int, numbers: Iterable[int], threads: int
) -> Iterator[tuple[int, list[tuple[str, Tensor]]]]:
    """Batches in order, read by threads ahead of their use: at most `threads` + 1 are held beside the one in use."""

    def read(number: int) -> list[tuple[str, Tensor]]:
        first = number * batch_size
        return list(clips.read(first, min(first + batch_size, len(clips))))

    waiting: deque[tuple[int, Future]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for number in numbers:
                waiting.append((number, pool.submit(read, number)))
                if len(waiting) > threads:
                    ready, future = waiting.popleft()
                    yield ready, future.result()
            while waiting:
                ready, future = waiting.popleft()
                yield ready, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        repeated = Counter(names).most_common(1)[0][0]
        raise ValueError(f"clip {repeated!r} occurs twice: a score counts no clip twice")


def _check_finite(names: Sequence[str], features: Tensor) -> None:
    finite = torch.isfinite(features).all(dim=1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise ValueError(f"the features of clip {names[first]!r} are not finite")
