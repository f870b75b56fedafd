"""Clips through a detector to a feature file: streamed, by all ranks, resumable.

A feature file is a safetensors file with one tensor, `features`, and its origin as JSON under the metadata key
`sparsevid`; statistics of a reference file lie beside it as `mean.NAME` and `covariance.NAME`. Batch b is the clips
b·B … (b+1)·B − 1 for any number of ranks, and a last batch of fewer is filled up by copies of its last clip: every forward has
one shape, so a clip's features are the same to the last bit whoever computes them.
Dimensions: N clips, D features, B clips in a batch; a clip is uint8 (C, T, H, W).
"""

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import av
import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sparsevid import __version__
from sparsevid.evaluation.detectors import Detector
from sparsevid.evaluation.feature_parts import DIGEST, Batch, FeatureParts
from sparsevid.evaluation.metrics.distances import Moments
from sparsevid.evaluation.protocols.protocol import completed, told_apart_by
from sparsevid.system.atomic import renamed
from sparsevid.system.checksums import json_sha256
from sparsevid.system.distributed import broadcast_object, gather_objects, is_main, peers_may_die, rank, world_size
from sparsevid.system.locks import folder_locked
from sparsevid.system.logging import get_logger, progress
from sparsevid.system.threads import thread_pool

METADATA_KEY = "sparsevid"
IDENTITY = "identity"  # beside the origin: a SHA-256 over it and the state of the clips' files
MAX_READERS = 4  # threads of a rank that decode; each holds a batch of clips

logger = get_logger(__name__)


class ClipSet(Protocol):
    """Clips in a fixed order; `sparsevid.evaluation.clips.clips.ProtocolClips` is one.

    Attributes:
        ids: N different names, in reading order.
        origin: where the clips come from, for the record.
        fingerprint: SHA-256 over all that tells one set from another without reading it.
    """

    @property
    def ids(self) -> tuple[str, ...]: ...
    @property
    def origin(self) -> dict[str, Any]: ...
    @property
    def fingerprint(self) -> str: ...

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
        source: where the clips come from: root, counts, `fingerprint` of the files' names and sizes, and `content`: a SHA-256
            over that of each clip's pixels, in order; or None.
        clips_fingerprint: SHA-256 over names and origin of the clips; None for clips that were never a set in order.
        computation: batch size and kind of device, on which the last digits depend.
        versions: of sparsevid, torch, torchvision and av, which decodes.
        moments: statistics that a reference file gives beside its clips, or without any, of a larger set, by the detector's
            output. Metrics that are a function of them take them in place of the features.
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
    moments: Mapping[str, Moments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, count = tuple(self.features.shape), len(self.clip_ids)
        if self.features.dtype != torch.float32 or len(shape) != 2 or shape[0] != count:
            raise ValueError(f"features must be float32 ({count} clips, D), got {self.features.dtype} {shape}")
        _check_names(self.clip_ids)
        _check_finite(self.clip_ids, self.features)


_ORIGIN = tuple(each.name for each in fields(FeatureFile) if each.name not in ("features", "moments"))


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
    moments: Mapping[str, Moments] | None = None,
) -> FeatureFile:
    """Send clips through a detector, a batch at a time, while threads read the next ones: only features are kept.

    All ranks call it together, with the same arguments; each computes its share of the batches.

    Args:
        clips: read by position.
        detector: on the device where it is to compute.
        batch_size: B, clips of a forward pass. Features depend on it in their last digits.
        out: feature file to write, usually `….safetensors`; folders above it are made. If it is there with all that this call
            would write, the files of its clips unchanged, it is taken. Batches that an interrupted call has finished are kept
            beside it, and taken too.
        role: goes into the file, see `FeatureFile`.
        protocol: goes into the file.
        readers: threads that read clips; each holds one batch. Default: this rank's share of the cores, MAX_READERS at most.
        stamp: of the state of the clips' files: what was computed under another one is not taken.
        moments: go into the file, see `FeatureFile`. With some there may be no clip at all.

    Returns:
        The features, on every rank.

    Raises:
        ValueError: there is no clip, clips differ in shape, a name occurs twice, features are not finite, or another process
            is writing `out`.
    """
    if batch_size < 1 or (readers is not None and readers < 1):
        raise ValueError(f"batch_size and readers count from 1, got {batch_size} and {readers}")
    if not len(clips) and not moments:
        raise ValueError("there are no clips to compute features of")
    _check_names(clips.ids)
    origin = _origin(clips, detector, batch_size, role, protocol)
    numbers = range(-(-len(clips) // batch_size))
    told = origin | {"protocol": protocol and told_apart_by(origin["protocol"])}
    identity = json_sha256([told, stamp])
    parts = None if out is None else FeatureParts(out, identity)
    with peers_may_die("computing features"):
        kept = broadcast_object(None if out is None or not is_main() else _kept(out, identity))
        if kept is not None:
            if parts is not None and is_main():
                parts.remove()
            return kept
        with nullcontext() if parts is None else folder_locked(parts.folder, beside=True):
            features, digests = _computed(clips, detector, batch_size, numbers, readers, parts)
            source = {**origin["source"], "content": hashlib.sha256(digests.numpy().tobytes()).hexdigest()}
            origin |= {"clip_ids": tuple(clips.ids), "source": source}
            file = FeatureFile(features=features, moments=moments or {}, **origin)
            if parts is not None and out is not None and is_main():
                save_features(file, out, identity)
                parts.remove(locked=True)
            broadcast_object(None)  # the file is there for all when any rank returns
    return file


def _computed(
    clips: ClipSet, detector: Detector, batch_size: int, numbers: range, readers: int | None, parts: FeatureParts | None
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and SHA-256 of the pixels of all clips, on every rank, which all compute their share."""
    if not numbers:
        return torch.empty(0, detector.dim), torch.empty(0, DIGEST, dtype=torch.uint8)
    done: dict[int, Batch] = {}
    if parts is not None and is_main():
        done = parts.load((batch_size, detector.dim), len(numbers))
    there = broadcast_object(set(done))
    missing = [number for number in numbers if number not in there]
    for number, batch in _share(clips, detector, batch_size, missing[rank() :: world_size()], readers):
        done[number] = batch
        if parts is not None:
            parts.save(number, batch)
    gathered = {number: each for some in gather_objects(done) for number, each in some.items()}
    features, digests = (torch.cat(each)[: len(clips)].clone() for each in zip(*map(gathered.get, numbers), strict=True))
    return features, digests


def save_features(file: FeatureFile, path: Path, identity: str | None = None) -> None:
    """Write a feature file under a temporary name, then rename it: a reader never sees half of it.

    Args:
        file: the features and their origin.
        path: usually ends in `.safetensors`; folders above it are made.
        identity: SHA-256 of what the features depend on, by which `compute_features` knows a file that it need not compute.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = {name: getattr(file, name) for name in _ORIGIN} | ({} if identity is None else {IDENTITY: identity})
    tensors = {"features": file.features.contiguous()}
    for name, each in file.moments.items():
        tensors |= {f"mean.{name}": each.mean.contiguous(), f"covariance.{name}": each.covariance.contiguous()}
    with renamed(path) as draft:  # not by `save_file`, which makes files that nobody else can read
        draft.write_bytes(save(tensors, {METADATA_KEY: json.dumps(origin)}))


def load_features(path: Path) -> FeatureFile:
    """Read what `save_features` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is something else, or its parts do not fit together.
    """
    return _load(path)[0]


def _load(path: Path) -> tuple[FeatureFile, str | None]:
    """A feature file and its identity."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no feature file {path}")
    try:
        with safe_open(path, "pt") as handle:
            origin = json.loads((handle.metadata() or {})[METADATA_KEY])
            names = [key.removeprefix("mean.") for key in list(handle.keys()) if key.startswith("mean.")]
            moments = {
                name: Moments(*(handle.get_tensor(f"{each}.{name}") for each in ("mean", "covariance"))) for name in names
            }
            origin |= {"features": handle.get_tensor("features"), "moments": moments}
        identity = origin.pop(IDENTITY, None)
        return FeatureFile(**{**origin, "clip_ids": tuple(origin["clip_ids"])}), identity
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a feature file: {error}. `evaluate features` writes one. It needs a float32 tensor 'features' and, "
            f"as JSON under the metadata key {METADATA_KEY!r}, {', '.join(_ORIGIN)}"
        ) from error


def _kept(path: Path, identity: str) -> FeatureFile | None:
    """The features at `path` if they are those of this identity; None if they have to be computed."""
    if not path.exists():
        return None
    try:
        file, found = _load(path)
    except ValueError as error:
        logger.warning("%s; it is computed anew", error)
        return None
    if found != identity:
        logger.info("%s is of other clips, detector, settings or versions: it is computed anew", path)
        return None
    logger.info("%s: %d clips are there", path, len(file.clip_ids))
    return file


def check_comparable(real: FeatureFile, fake: FeatureFile) -> None:
    """Refuse two sets of features that are no two measurements with one instrument.

    Raises:
        ValueError: they come from different detectors, weights, settings or protocols, or were made in other roles.
    """
    for side, file, other in (("real", real, "fake"), ("fake", fake, "real")):
        if file.role == other:
            raise ValueError(
                f"the {side} features were made of {other} clips: were the files swapped? To score {other} clips in the place "
                f"of {side} ones, make their features with the role {side!r}"
            )
    for what, a, b in (
        ("detector", real.detector, fake.detector),
        ("weights' SHA-256", real.detector_fingerprint, fake.detector_fingerprint),
        ("detector settings", real.detector_settings, fake.detector_settings),
        ("protocol", *(each.protocol and completed(each.protocol) for each in (real, fake))),
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
) -> Iterator[tuple[int, Batch]]:
    """This rank's batches by number, also with the copies that fill a batch up."""
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    threads = readers or max(1, min(MAX_READERS, cores))
    name = f"{detector.name} features" + (f" (rank 0 of {world_size()})" if world_size() > 1 else "")
    shape = None
    count = sum(min(batch_size, len(clips) - number * batch_size) for number in numbers)
    with progress(total=count, desc=name, unit="clip", leave=False) as bar:
        for number, batch in _read_ahead(clips, batch_size, numbers, threads):
            shape = shape or batch[0][1].shape
            for clip_id, clip, _ in batch:
                if clip.shape != shape:
                    raise ValueError(f"clip {clip_id!r} has shape {tuple(clip.shape)}, the clips before it {tuple(shape)}")
            full = batch + [batch[-1]] * (batch_size - len(batch))
            features = detector(torch.stack([clip for _, clip, _ in full])).float().cpu()
            _check_finite([clip_id for clip_id, _, _ in batch], features[: len(batch)])
            yield number, Batch(features, torch.stack([digest for _, _, digest in full]))
            bar.update(len(batch))


def _read_ahead(
    clips: ClipSet, batch_size: int, numbers: Iterable[int], threads: int
) -> Iterator[tuple[int, list[tuple[str, Tensor, Tensor]]]]:
    """Batches in order, as (name, clip, digest), read by threads ahead of their use: at most `threads` + 1 are held beside the
    one in use."""

    def read(number: int) -> list[tuple[str, Tensor, Tensor]]:
        first = number * batch_size
        return [(name, clip, _digest(clip)) for name, clip in clips.read(first, min(first + batch_size, len(clips)))]

    waiting: deque[tuple[int, Future]] = deque()
    with thread_pool(threads) as pool:
        for number in numbers:
            waiting.append((number, pool.submit(read, number)))
            if len(waiting) > threads:
                ready, future = waiting.popleft()
                yield ready, future.result()
        while waiting:
            ready, future = waiting.popleft()
            yield ready, future.result()


def _digest(clip: Tensor) -> Tensor:
    """SHA-256 of a clip's shape and pixels, as uint8 (32,)."""
    digest = hashlib.sha256(str(tuple(clip.shape)).encode("ascii"))
    digest.update(clip.cpu().contiguous().flatten().numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        repeated = Counter(names).most_common(1)[0][0]
        raise ValueError(f"clip {repeated!r} occurs twice: a score counts no clip twice")


def _check_finite(names: Sequence[str], features: Tensor) -> None:
    finite = torch.isfinite(features).all(dim=1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise ValueError(f"the features of clip {names[first]!r} are not finite")
