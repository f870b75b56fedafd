"""The three steps in a row: clips by protocol → features → distances, with a record of everything the score depends on."""

import hashlib
import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsevid.distributed import default_device
from sparsevid.evaluation.clip_readers import GeneratedClips, VideoClips
from sparsevid.evaluation.clips import ClipSource, ProtocolClips, Role, choose_clips
from sparsevid.evaluation.detectors import Detector, build_detector, detector_class
from sparsevid.evaluation.features import FeatureFile, check_comparable, compute_features
from sparsevid.evaluation.metrics import METRICS, Metric
from sparsevid.evaluation.protocols import BOTH, DEFAULT_PROTOCOLS, Protocol, load_protocol
from sparsevid.evaluation.record import ProtocolRecord
from sparsevid.evaluation.uncertainty import bootstrap_interval, extrapolate
from sparsevid.logging import get_logger

SPLITS = {BOTH: ("train", "test")}  # what a protocol's split stands for, if not for itself
FRECHET = "frechet"
LEVEL = 0.95  # of a bootstrap interval

logger = get_logger(__name__)


@dataclass(frozen=True)
class Measurement:
    """A score, and what it was computed from: of the first split and the first draw of clips, if there are several.

    Attributes:
        record: the score.
        real: features of the real clips.
        fake: features of the generated ones.
        clips: the generated clips.
    """

    record: ProtocolRecord
    real: FeatureFile
    fake: FeatureFile
    clips: ProtocolClips


@dataclass(frozen=True)
class Extras:
    """What is computed beside the score.

    Attributes:
        repeats: draws of clips, by seeds that follow the protocol's; the score is their mean.
        bootstrap: resamplings for an interval of the first draw's score; 0 for none.
        extrapolate: fit the first draw's score against 1/N.

    Raises:
        ValueError: a number is out of range.
    """

    repeats: int = 1
    bootstrap: int = 0
    extrapolate: bool = False

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.bootstrap < 0:
            raise ValueError(f"repeats count from 1, bootstrap resamplings from 0, got {self.repeats} and {self.bootstrap}")


def extract_features(
    source: ClipSource,
    role: Role,
    detector: Detector,
    protocol: Protocol,
    *,
    limit: int | None = None,
    seed: int | None = None,
    split: str | None = None,
    batch_size: int = 16,
    out: Path | None = None,
) -> FeatureFile:
    """Steps one and two: a set of videos to features. All ranks call it together.

    Args:
        source: see `choose_clips`.
        role: "real" or "fake".
        detector: the protocol's, on the device where it is to compute.
        protocol: the rules.
        limit: take fewer clips than the protocol's count.
        seed: of the draw of clips, in place of the protocol's.
        split: of real data; needed where the protocol reports several.
        batch_size: clips of a forward pass.
        out: feature file to write.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the detector is not the protocol's, or see `choose_clips`.
        DecodeError: a chosen clip cannot be read.
    """
    check_detector(detector, protocol)
    clips = _chosen(source, role, protocol, limit, seed, split or one_split(protocol, role))
    return _features_of(clips, role, detector, protocol, batch_size, out)


def compare_features(real: FeatureFile, fake: FeatureFile, extras: Extras | None = None) -> ProtocolRecord:
    """Step three: the metrics of two feature files, with their record.

    They are the protocol's. Without a protocol it is the Fréchet distance with unbiased covariances.

    Args:
        real: features of real clips.
        fake: features of generated ones.
        extras: what is wanted beside; repeats are not done here.

    Raises:
        ValueError: the files do not belong together, name no known detector or usable protocol, one has fewer than two
            clips, or a metric does not fit the detector.
    """
    check_comparable(real, fake)
    protocol = None if real.protocol is None else Protocol.from_dict(real.protocol)
    values = compute_metrics(real, fake, protocol)
    first = next(iter(values))
    source = real.source or {}
    warnings = [text for side, file in (("real", real), ("fake", fake)) for text in _warnings(side, file, protocol)]
    for text in warnings:
        logger.warning("%s", text)
    return ProtocolRecord(
        metric=metric_title(real.detector, protocol),
        score=values[first],
        values=values,
        protocol=None if protocol is None else protocol.as_dict(),
        protocol_fingerprint=None if protocol is None else protocol.fingerprint,
        detector={
            "name": real.detector,
            "fingerprint": real.detector_fingerprint,
            "preprocessing": real.preprocessing,
            "settings": real.detector_settings,
        },
        real={"clips": len(real.clip_ids), **source},
        fake={"clips": len(fake.clip_ids), **(fake.source or {})},
        warnings=tuple(warnings),
        versions={"real": real.versions, "fake": fake.versions},
        split=source.get("split", None if protocol is None else protocol.split),
        seed=source.get("seed", None if protocol is None else protocol.seed),
        **_spread(real, fake, protocol, extras or Extras()),
    )


def measure(
    real: ClipSource,
    fake: ClipSource,
    *,
    detector: str | None = None,
    protocol: str | Path | Protocol | None = None,
    count: int | None = None,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    detector_path: Path | None = None,
    trust_detector: bool = False,
    extras: Extras | None = None,
    keep: Path | None = None,
) -> Measurement:
    """Score generated videos against real ones, and keep what the score was computed from. All ranks call it together.

    Args:
        real: a folder of videos, a dataset card by name or path, or another source that `choose_clips` takes.
        fake: the same for the generated ones.
        detector: a registered name; the protocol's if None.
        protocol: a name, the path of a YAML file, or a `Protocol`; the detector's default if None.
        count: take fewer clips on each side than the protocol's count: faster, and biased upwards.
        batch_size: clips of a forward pass.
        device: where to compute; this process's GPU, or the CPU, if None.
        detector_path: weight file; None looks into the cache and downloads.
        trust_detector: run a TorchScript file, which is code, although its checksum is not known.
        extras: what is computed beside the score.
        keep: folder for the feature files of each split and draw; finished batches in it are taken up. None keeps nothing.

    Returns:
        The record with the mean over draws, and the first draw's features. A protocol that reports several splits has the
        first split's score under `score`, and the others' records under `other_splits`.

    Raises:
        FileNotFoundError: there is no such folder, card or weight file.
        ValueError: see `resolve_protocol`, `build_detector` and `choose_clips`.
        DecodeError: a chosen clip cannot be read.
    """
    rules, extras = resolve_protocol(detector, protocol), extras or Extras()
    network = build_detector(
        rules.detector, default_device() if device is None else device,
        path=detector_path, trust=trust_detector, options=rules.detector_options,
    )  # fmt: skip
    taken: dict[tuple[str, str], FeatureFile] = {}  # a draw that chooses the same clips again need not compute them again

    def side(source: ClipSource, role: Role, split: str, seed: int) -> tuple[ProtocolClips, FeatureFile]:
        clips = _chosen(source, role, rules, count, seed, split)
        key = role, clips.fingerprint
        if key not in taken:
            out = None if keep is None else keep / f"{role}-{clips.fingerprint[:12]}.safetensors"
            taken[key] = _features_of(clips, role, network, rules, batch_size, out)
        return clips, replace(taken[key], source=clips.origin)

    measured: dict[str, Measurement] = {}
    for split in SPLITS.get(rules.split, (rules.split,)):
        draws: list[Measurement] = []
        for seed in range(rules.seed, rules.seed + extras.repeats):
            _, real_file = side(real, "real", split, seed)
            clips, fake_file = side(fake, "fake", split, seed)
            record = compare_features(real_file, fake_file, None if draws else extras)
            draws.append(Measurement(record, real_file, fake_file, clips))
        # Data without splits are the same set for each of them.
        measured.setdefault(draws[0].record.split or split, replace(draws[0], record=_merged([each.record for each in draws])))
    first, *others = measured.values()
    return replace(first, record=replace(first.record, other_splits=tuple(each.record for each in others)))


def score(real: ClipSource, fake: ClipSource, **options: Any) -> dict[str, Any]:
    """Score generated videos against real ones.

    Args:
        real: see `measure`.
        fake: see `measure`.
        options: see `measure`.

    Returns:
        `ProtocolRecord.as_dict()`: the score under "score", its name under "metric", and everything it depends on.

    Raises:
        FileNotFoundError, ValueError, DecodeError: see `measure`.
    """
    return measure(real, fake, **options).record.as_dict()


def resolve_protocol(detector: str | None, protocol: str | Path | Protocol | None) -> Protocol:
    """The named protocol, or the default one of the named detector.

    Raises:
        ValueError: neither is named, they do not fit together, or one is unknown.
    """
    if protocol is None:
        if detector not in DEFAULT_PROTOCOLS:
            known = ", ".join(sorted(DEFAULT_PROTOCOLS))
            raise ValueError(f"name a protocol, or a detector that has a default one ({known}); got {detector!r}")
        return load_protocol(DEFAULT_PROTOCOLS[detector])
    rules = protocol if isinstance(protocol, Protocol) else load_protocol(protocol)
    if detector is not None and detector != rules.detector:
        raise ValueError(f"protocol {rules.name} is for detector {rules.detector!r}, got {detector!r}")
    return rules


def compute_metrics(real: FeatureFile, fake: FeatureFile, protocol: Protocol | None) -> dict[str, float]:
    """Every value of every metric of a protocol, in its order.

    Raises:
        ValueError: a metric needs logits and the detector gives features, or the other way round; or see the metrics.
    """
    kind = detector_class(real.detector).kind
    values: dict[str, float] = {}
    for metric in _metrics(protocol):
        if metric.needs != kind:
            raise ValueError(f"metric {metric.name} needs {metric.needs}, detector {real.detector!r} gives {kind}")
        values |= metric.compute(real.features, fake.features, _options(protocol))
    return values


def metric_title(detector: str, protocol: Protocol | None) -> str:
    """What the first value of a record is called: the detector's name for a Fréchet distance, else the metric's with it."""
    first, title = _metrics(protocol)[0], detector_class(detector).metric
    return title if first.name == FRECHET else f"{first.title} ({title})"


def check_detector(detector: Detector, protocol: Protocol) -> None:
    """Refuse a detector that is not the protocol's.

    Raises:
        ValueError: another network, or other settings of it.
    """
    if detector.name != protocol.detector:
        raise ValueError(f"protocol {protocol.name} is for detector {protocol.detector!r}, got {detector.name!r}")
    wanted = detector.complete_options(protocol.detector_options)
    if detector.settings != wanted:
        raise ValueError(
            f"protocol {protocol.name} is for detector {detector.name!r} with settings {wanted}, got {detector.settings}"
        )


def one_split(protocol: Protocol, role: Role) -> str:
    """The split of a protocol that has one.

    Raises:
        ValueError: the protocol reports several, so that a set of real clips is of one of them.
    """
    if role == "real" and protocol.split in SPLITS:
        names = " and ".join(SPLITS[protocol.split])
        raise ValueError(f"protocol {protocol.name} reports {names}: say which of them these real clips are to be of")
    return protocol.split


def _chosen(
    source: ClipSource, role: Role, protocol: Protocol, limit: int | None, seed: int | None, split: str
) -> ProtocolClips:
    """Clips of one split and one draw."""
    return choose_clips(source, role, replace(protocol, split=split), limit=limit, seed=seed)


def _features_of(
    clips: ProtocolClips, role: Role, detector: Detector, protocol: Protocol, batch_size: int, out: Path | None
) -> FeatureFile:
    """Features of chosen clips. A generator is called by one thread at a time, for it may be a model."""
    readers = 1 if isinstance(clips.reader, GeneratedClips) else None
    options = {"batch_size": batch_size, "out": out, "readers": readers, "stamp": _stamp(clips)}
    return compute_features(clips, detector, role=role, protocol=protocol.as_dict(), **options)


def _stamp(clips: ProtocolClips) -> str:
    """Of the sizes and times of the clips' files: another one when a file was replaced by one that looks alike."""
    if not isinstance(clips.reader, VideoClips):
        return ""
    files = {video.path: (clips.reader.root / video.path).stat() for video, _ in clips.reader.chosen}
    rows = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in files.items()]
    return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()


def _metrics(protocol: Protocol | None) -> list[Metric]:
    return [METRICS[name] for name in ((FRECHET,) if protocol is None else protocol.metrics)]


def _options(protocol: Protocol | None) -> dict[str, Any]:
    """What of a protocol metrics depend on."""
    return {"covariance": "unbiased", "seed": 0} if protocol is None else protocol.as_dict()


def _spread(real: FeatureFile, fake: FeatureFile, protocol: Protocol | None, extras: Extras) -> dict[str, Any]:
    """Interval and extrapolation of the first metric."""
    metric, options = _metrics(protocol)[0], _options(protocol)
    if (extras.bootstrap or extras.extrapolate) and not metric.compares:
        raise ValueError(f"bootstrap and extrapolation are for distances between two sets, {metric.name} is none")

    def distance(a: Tensor, b: Tensor) -> float:
        return next(iter(metric.compute(a, b, options).values()))

    found: dict[str, Any] = {}
    if extras.bootstrap:
        rule = {"repeats": extras.bootstrap, "level": LEVEL}
        interval = bootstrap_interval(distance, real.features, fake.features, seed=options["seed"], **rule)
        found["interval"] = asdict(interval) | rule
    if extras.extrapolate:
        found["extrapolation"] = asdict(extrapolate(distance, real.features, fake.features, seed=options["seed"]))
    return found


def _merged(records: list[ProtocolRecord]) -> ProtocolRecord:
    """The first of several draws with the means of all, and their standard deviations."""
    if len(records) == 1:
        return records[0]
    names = list(records[0].values)
    means = {name: statistics.fmean(record.values[name] for record in records) for name in names}
    return replace(
        records[0],
        score=means[names[0]],
        values=means,
        deviations={name: statistics.stdev(record.values[name] for record in records) for name in names},
        repeats=tuple({"seed": record.seed, "values": record.values} for record in records),
    )


def _warnings(side: str, file: FeatureFile, protocol: Protocol | None) -> list[str]:
    """What its choice of clips said, and how much fewer clips than the protocol's raise a Fréchet distance."""
    source = file.source or {}
    warnings = [f"{side}: {text}" for text in source.get("warnings", ())]
    if protocol is None:
        return warnings
    intended = getattr(protocol, f"{side}_count")
    intended = source.get("videos", 0) if intended is None else intended
    there = len(file.clip_ids)
    if there >= intended:
        return warnings
    bias = "bias the score"
    if protocol.metrics[0] == FRECHET:
        # E‖μ̂ − μ‖² = tr Σ / N exactly; the covariance's share comes on top.
        excess = file.features.double().var(dim=0).sum().item() * (1 / there - 1 / intended)
        bias = f"bias the score upwards, by {excess:.4g} or more"
    return [
        *warnings,
        f"{side}: {there} clips, protocol {protocol.name} intends {intended}. Fewer clips {bias}: compare it only with scores "
        "of as many clips",
    ]
