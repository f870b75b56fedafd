"""The three steps in a row: clips by protocol → features → a score, with a record of everything that it depends on."""

import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sparsevid.evaluation.clips.clip_readers import GeneratedClips, VideoClips
from sparsevid.evaluation.clips.clips import ClipSource, ProtocolClips, Role, choose_clips
from sparsevid.evaluation.comparison import (
    Extras,
    check_counts,
    check_protocol,
    compare_features,
    compares,
    compute_metrics,
    is_prompted,
    metric_title,
)
from sparsevid.evaluation.detectors import Detector, build_detector, detector_class
from sparsevid.evaluation.detectors.base import Setting
from sparsevid.evaluation.features import FeatureFile, compute_features
from sparsevid.evaluation.prompts import ClipPrompts, prompts_of
from sparsevid.evaluation.protocols import BOTH, DEFAULT_PROTOCOLS, Protocol, load_protocol
from sparsevid.evaluation.record import ProtocolRecord
from sparsevid.system.checksums import json_sha256
from sparsevid.system.distributed import default_device, from_main
from sparsevid.system.logging import get_logger

__all__ = [
    "Extras",
    "Measurement",
    "check_detector",
    "compare_features",
    "compute_metrics",
    "extract_features",
    "files_stamp",
    "measure",
    "metric_title",
    "one_split",
    "resolve_protocol",
    "score",
    "with_options",
]

SPLITS = {BOTH: ("train", "test")}  # what a protocol's split stands for, if not for itself

Pair = tuple[ProtocolClips | None, ProtocolClips]  # real and generated clips of one draw

logger = get_logger(__name__)


@dataclass(frozen=True)
class Measurement:
    """A score, and what it was computed from: of the first split and the first draw of clips, if there are several.

    Attributes:
        record: the score.
        real: features of the real clips; None where the protocol looks at none.
        fake: features of the generated ones.
        clips: the generated clips.
    """

    record: ProtocolRecord
    real: FeatureFile | None
    fake: FeatureFile
    clips: ProtocolClips


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
        ValueError: the detector is not the protocol's, a split is asked for of generated videos, or see `choose_clips`.
        DecodeError: a chosen clip cannot be read.
    """
    check_detector(detector, protocol)
    if role == "fake" and split is not None:
        raise ValueError(f"a split is a part of real data; generated videos have none, got split {split!r}")
    clips = _chosen(source, role, protocol, limit, seed, split or one_split(protocol, role))
    return _features_of(clips, role, detector, protocol, batch_size, out)


def measure(
    real: ClipSource | None,
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
    prompts: Path | None = None,
) -> Measurement:
    """Score generated videos against real ones, and keep what the score was computed from. All ranks call it together.

    Args:
        real: a folder of videos, a dataset card by name or path, or another source that `choose_clips` takes; None where no
            metric of the protocol looks at real clips.
        fake: the same for the generated ones.
        detector: a registered name; the protocol's if None.
        protocol: a name, the path of a YAML file, or a `Protocol`; the detector's default if None.
        count: take fewer clips on each side than the protocol's count: faster, and biased upwards.
        batch_size: clips of a forward pass.
        device: where to compute; this process's GPU, or the CPU, if None.
        detector_path: weight file; None looks into the cache and downloads.
        trust_detector: run a TorchScript file, which is code, although its checksum is not known.
        extras: what is computed beside the score.
        keep: folder for the feature files of each split and draw; finished files and batches in it
            are taken up. None keeps nothing.
        prompts: a file of those that the generated clips were made of, where a metric judges by them; None: as their own
            record says, see `prompts_of`.

    Returns:
        The record with the mean over draws, and the first draw's features. A protocol that reports several splits has the
        first split's score under `score`, and the others' records under `other_splits`.

    Raises:
        FileNotFoundError: there is no such folder, card or weight file.
        ValueError: a metric or an extra cannot work with this protocol or with so few clips, which is found out before anything
            is computed; or see `resolve_protocol`, `build_detector` and `choose_clips`.
        DecodeError: a chosen clip cannot be read.
    """
    rules, extras = resolve_protocol(detector, protocol), extras or Extras()
    check_protocol(rules.detector, rules, extras, prompted=True)
    if prompts is not None and not is_prompted(rules):
        raise ValueError(f"prompts are given ({prompts}): protocol {rules.name} ({', '.join(rules.metrics)}) judges by none")
    draws = _draws(_real_source(real, rules), fake, rules, count, extras)
    extras = _checked(rules, extras, draws)
    asked = _prompts(fake, rules, draws, prompts)
    network = build_detector(
        rules.detector, default_device() if device is None else device,
        path=detector_path, trust=trust_detector, options=rules.detector_options,
    )  # fmt: skip
    taken: dict[tuple[str, str], FeatureFile] = {}  # a draw that chooses the same clips again need not compute them again

    def features(clips: ProtocolClips, role: Role) -> FeatureFile:
        key = role, clips.fingerprint
        if key not in taken:
            out = None if keep is None else keep / f"{role}-{clips.fingerprint[:12]}.safetensors"
            taken[key] = _features_of(clips, role, network, rules, batch_size, out)
        return replace(taken[key], source={**clips.origin, "content": (taken[key].source or {})["content"]})

    measured: dict[str, Measurement] = {}
    for split, pairs in draws.items():
        found: list[Measurement] = []
        for real_clips, fake_clips in pairs:
            real_file = None if real_clips is None else features(real_clips, "real")
            fake_file = features(fake_clips, "fake")
            seen = asked[fake_clips.fingerprint].seen_by(network) if asked else None
            record = compare_features(real_file, fake_file, None if found else extras, prompts=seen)
            found.append(Measurement(record, real_file, fake_file, fake_clips))
        # Data without splits are the same set for each of them.
        measured.setdefault(found[0].record.split or split, replace(found[0], record=_merged([each.record for each in found])))
    first, *others = measured.values()
    return replace(first, record=replace(first.record, other_splits=tuple(each.record for each in others)))


def score(real: ClipSource | None, fake: ClipSource, **options: Any) -> dict[str, Any]:
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
            got = "neither is given" if detector is None else f"{detector} has none"
            raise ValueError(f"name a protocol (--protocol), or a detector that has a default one (--detector): {got}; "
                             f"detectors are {known}, and `sparsevid evaluate protocols` lists the protocols")  # fmt: skip
        return load_protocol(DEFAULT_PROTOCOLS[detector])
    rules = protocol if isinstance(protocol, Protocol) else load_protocol(protocol)
    if detector is not None and detector != rules.detector:
        raise ValueError(f"protocol {rules.name} is for detector {rules.detector!r}, got {detector!r}")
    return rules


def with_options(protocol: Protocol, options: Mapping[str, Setting]) -> Protocol:
    """A protocol with other options of its detector: under another name, for it is another measurement.

    Args:
        protocol: to begin with.
        options: of its detector; numbers may be texts.

    Raises:
        ValueError: an option is unknown, or its value is not accepted.
    """
    cls = detector_class(protocol.detector)
    before = cls.complete_options(protocol.detector_options)
    settings = cls.complete_options({**protocol.detector_options, **options})
    changed = {name: value for name, value in settings.items() if value != before[name]}
    if not changed:
        return protocol
    name = f"{protocol.name} with {', '.join(f'{option}={value}' for option, value in changed.items())}"
    return replace(protocol, name=name, detector_options={**protocol.detector_options, **changed})


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


def _real_source(real: ClipSource | None, protocol: Protocol) -> ClipSource | None:
    """The real videos, if the protocol looks at them."""
    names = ", ".join(protocol.metrics)
    if compares(protocol) and real is None:
        raise ValueError(f"protocol {protocol.name} ({names}) compares with real videos: name them (--real)")
    if not compares(protocol) and real is not None:
        logger.info("protocol %s (%s) judges generated videos alone: the real ones are not read", protocol.name, names)
        return None
    return real


def _draws(
    real: ClipSource | None, fake: ClipSource, protocol: Protocol, count: int | None, extras: Extras
) -> dict[str, list[Pair]]:
    """The real and the generated clips of each split and each draw, none of them read."""
    splits = (protocol.split,) if real is None else SPLITS.get(protocol.split, (protocol.split,))
    seeds = range(protocol.seed, protocol.seed + extras.repeats)
    fakes = [_chosen(fake, "fake", protocol, count, seed, protocol.split) for seed in seeds]
    draws: dict[str, list[Pair]] = {}
    for split in splits:
        reals = [None if real is None else _chosen(real, "real", protocol, count, seed, split) for seed in seeds]
        draws[split] = list(zip(reals, fakes, strict=True))
    return draws


def _prompts(fake: ClipSource, protocol: Protocol, draws: dict[str, list[Pair]], file: Path | None) -> dict[str, ClipPrompts]:
    """The prompts of each draw of generated clips, by its fingerprint; none where no metric judges by them."""
    judged = is_prompted(protocol)
    chosen = {clips.fingerprint: clips for pairs in draws.values() for _, clips in pairs if judged}
    return {fingerprint: prompts_of(clips, fake, file) for fingerprint, clips in chosen.items()}


def _checked(protocol: Protocol, extras: Extras, draws: dict[str, list[Pair]]) -> Extras:
    """The extras that these clips are enough for; a lack of clips is an error, but for the fit of a plot, which is left out."""
    if extras.pictures and not extras.extrapolate:
        try:
            return _checked(protocol, replace(extras, pictures=False, extrapolate=True), draws)
        except ValueError as error:
            logger.warning("the fit against 1/clips is left out of the pictures: %s", error)
    for pairs in draws.values():
        for number, (real, fake) in enumerate(pairs):
            wanted = Extras() if number else extras
            sides = (None, len(fake)) if real is None else (len(real), len(fake), real.moments)
            check_counts(protocol, wanted, *sides)
    return extras


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
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "out": out,
        "readers": readers,
        "stamp": files_stamp(clips),
        "moments": clips.moments,
    }
    return compute_features(clips, detector, role=role, protocol=protocol.as_dict(), **options)


def files_stamp(clips: ProtocolClips) -> str:
    """Of the sizes and times of the clips' files: another one when a file was replaced by one that looks alike."""
    if not isinstance(clips.reader, VideoClips):
        return ""
    paths = dict.fromkeys(clips.reader.root / video.path for video, _ in clips.reader.chosen)
    return from_main(lambda: json_sha256([_state(path) for path in paths]))


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of a file, or of each frame of a folder."""
    if not path.is_dir():
        stat = path.stat()
        return [(str(path), stat.st_size, stat.st_mtime_ns)]
    with os.scandir(path) as entries:
        return sorted((entry.path, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries)


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
