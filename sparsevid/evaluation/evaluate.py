"""The three steps in a row: clips by protocol → features → distance, with a record of everything the score depends on.

Dimensions: C channels, T frames, H×W pixels of a clip.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from sparsevid.data.cards import load_card, resolve_root
from sparsevid.data.clips import ClipRule, clip_indices, usable_videos, valid_starts
from sparsevid.data.manifest import Manifest, Video, open_manifest
from sparsevid.data.rules import TreeRules
from sparsevid.data.sources import VideoFrames
from sparsevid.distributed import default_device
from sparsevid.evaluation.detectors import Detector, build_detector, detector_class
from sparsevid.evaluation.distances import frechet_distance
from sparsevid.evaluation.features import FeatureFile, check_comparable, compute_features
from sparsevid.evaluation.protocols import DEFAULT_PROTOCOLS, Protocol, ProtocolRecord, load_protocol
from sparsevid.logging import get_logger
from sparsevid.seeding import Purpose, keyed_generator

CLIPS_PER_READ = 4  # of one video: bounds the decoded frames that are in memory at once
Role = Literal["real", "fake"]
BACKEND = "pyav"  # unlike decord it refuses frames that its decoder marks as damaged; a score is not to rest on them
logger = get_logger(__name__)


@dataclass(frozen=True)
class ProtocolClips:
    """The clips that a protocol chooses from a set of videos, read when iterated.

    Attributes:
        root: folder of the videos.
        chosen: (video, first frame) of each clip, by video and first frame; no two are equal.
        rule: what frames make a clip.
        size: (H, W) in pixels.
        origin: where they come from, for the record.
    """

    root: Path
    chosen: tuple[tuple[Video, int], ...]
    rule: ClipRule
    size: tuple[int, int]
    origin: dict[str, Any]

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, clip uint8 (C, T, H, W)); an unreadable clip is an error, for others would be another score."""
        source = VideoFrames(self.root, self.size, BACKEND)
        for video, group in groupby(self.chosen, key=itemgetter(0)):
            starts = [start for _, start in group]
            for first in range(0, len(starts), CLIPS_PER_READ):
                yield from self._read(source, video, starts[first : first + CLIPS_PER_READ])

    def _read(self, source: VideoFrames, video: Video, starts: list[int]) -> Iterator[tuple[str, Tensor]]:
        """Clips of one video out of one pass over it: neighbours share frames and the way from the key frame."""
        wanted = sorted({frame for start in starts for frame in clip_indices(self.rule, start)})
        frames = source.read(video, wanted, mirrored=False)
        position = {frame: i for i, frame in enumerate(wanted)}
        for start in starts:
            clip = frames[[position[frame] for frame in clip_indices(self.rule, start)]]
            yield f"{video.path}@{video.first + start}", rearrange(clip, "t c h w -> c t h w")


def choose_clips(source: str | Path, role: Role, protocol: Protocol, *, limit: int | None = None) -> ProtocolClips:
    """Choose the clips of a set of videos as a protocol says.

    Clip j comes from video j mod V of the V videos that are long enough, in sorted order. A real video gives clips at
    different random starts, a function of (seed, video) alone, and drops out when it has no other start left; a
    generated video gives one clip, from its first frame.

    Args:
        source: a folder of videos, or a dataset card by name or path.
        role: "real" or "fake".
        protocol: the rules.
        limit: take fewer clips than the protocol's count.

    Raises:
        FileNotFoundError: there is no such folder or card.
        ValueError: `limit` is below 2 or exceeds the protocol's count, no video is long enough, or fewer than two clips
            can be chosen.
    """
    if limit is not None and limit < 2:
        raise ValueError(f"count is at least 2 (a covariance needs two clips), got {limit}")
    if limit is not None and protocol.count is not None and limit > protocol.count:
        raise ValueError(
            f"count {limit} is more than the {protocol.count} of protocol {protocol.name}; for more clips write a "
            "protocol of your own and give its path"
        )
    root, card, rules = _locate(source)
    manifest = open_manifest(root, rules)
    manifest = _without_previews(manifest) if role == "fake" else manifest.select(protocol.split)
    rule = ClipRule(protocol.frames, protocol.real_stride if role == "real" else protocol.fake_stride)
    videos = usable_videos(manifest, rule)
    starts = _starts_by_video(videos, rule, role, protocol)
    wanted = len(starts) if protocol.count is None else protocol.count
    wanted = wanted if limit is None else min(wanted, limit)
    chosen = _round_robin(videos, starts, wanted)
    if len(chosen) < 2:
        raise ValueError(
            f"{role} clips: a score needs at least 2, got {len(chosen)} from the {len(videos)} videos of "
            f"{root} that have {rule.span} frames or more"
        )
    origin = {
        "root": str(root),
        "card": card,
        "clips": len(chosen),
        "videos": len(videos),
        "too_short": len(manifest.videos) - len(videos),
        "rejected": {reason: len(paths) for reason, paths in manifest.rejects.items()},
        "formats": dict(sorted(Counter(PurePosixPath(video.path).suffix.lower() for video, _ in chosen).items())),
        "fingerprint": manifest.fingerprint,
    }
    return ProtocolClips(root, chosen, rule, protocol.size, origin)


def extract_features(
    source: str | Path,
    role: Role,
    detector: Detector,
    protocol: Protocol,
    *,
    limit: int | None = None,
    batch_size: int = 16,
) -> FeatureFile:
    """Steps one and two: a set of videos to features.

    Args:
        source: a folder of videos, or a dataset card by name or path.
        role: "real" or "fake".
        detector: the protocol's, on the device where it is to compute.
        protocol: the rules.
        limit: take fewer clips than the protocol's count.
        batch_size: clips of a forward pass.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the detector is not the protocol's, or see `choose_clips`.
        DecodeError: a chosen clip cannot be read.
    """
    if detector.name != protocol.detector:
        raise ValueError(f"protocol {protocol.name} is for detector {protocol.detector!r}, got {detector.name!r}")
    clips = choose_clips(source, role, protocol, limit=limit)
    return compute_features(
        clips,
        detector,
        batch_size=batch_size,
        total=len(clips),
        role=role,
        protocol=protocol.as_dict(),
        source=clips.origin,
    )


def compare_features(real: FeatureFile, fake: FeatureFile) -> ProtocolRecord:
    """Step three: the Fréchet distance of two feature files, with its record.

    The covariance is the protocol's; without a protocol it is unbiased.

    Raises:
        ValueError: the files do not belong together, name no known detector or usable protocol, or one has fewer than
            two clips.
    """
    check_comparable(real, fake)
    detector = detector_class(real.detector)
    protocol = None if real.protocol is None else Protocol.from_dict(real.protocol)
    unbiased = protocol is None or protocol.covariance == "unbiased"
    warnings = [text for side, file in (("real", real), ("fake", fake)) for text in _shortfall(side, file, protocol)]
    for text in warnings:
        logger.warning("%s", text)
    return ProtocolRecord(
        metric=detector.metric,
        score=frechet_distance(real.features, fake.features, unbiased=unbiased),
        protocol=None if protocol is None else protocol.as_dict(),
        protocol_fingerprint=None if protocol is None else protocol.fingerprint,
        detector={
            "name": detector.name,
            "fingerprint": real.detector_fingerprint,
            "preprocessing": detector.preprocessing,
        },
        real={"clips": len(real.clip_ids), **(real.source or {})},
        fake={"clips": len(fake.clip_ids), **(fake.source or {})},
        warnings=tuple(warnings),
        versions={"real": real.versions, "fake": fake.versions},
    )


def score(
    real: str | Path,
    fake: str | Path,
    *,
    detector: str | None = None,
    protocol: str | Path | Protocol | None = None,
    count: int | None = None,
    batch_size: int = 16,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Score generated videos against real ones.

    Args:
        real: a folder of videos, or a dataset card by name or path.
        fake: the same for the generated ones.
        detector: a registered name; the protocol's if None.
        protocol: a name, the path of a YAML file, or a `Protocol`; the detector's default if None.
        count: take fewer clips on each side than the protocol's count: faster, and biased upwards.
        batch_size: clips of a forward pass.
        device: where to compute; this process's GPU, or the CPU, if None.

    Returns:
        `ProtocolRecord.as_dict()`: the score under "score", its name under "metric", and everything it depends on.

    Raises:
        FileNotFoundError: there is no such folder or card.
        ValueError: see `resolve_protocol` and `choose_clips`.
        DecodeError: a chosen clip cannot be read.
    """
    rules = resolve_protocol(detector, protocol)
    network = build_detector(rules.detector, default_device() if device is None else device)
    files = [
        extract_features(source, role, network, rules, limit=count, batch_size=batch_size)
        for source, role in ((real, "real"), (fake, "fake"))
    ]
    return compare_features(*files).as_dict()


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


def _locate(source: str | Path) -> tuple[Path, str | None, TreeRules]:
    """Folder, card name and rules of a source."""
    folder = Path(source).expanduser()
    try:
        card = load_card(source)
    except FileNotFoundError as error:
        if folder.is_dir():
            return folder, None, TreeRules()
        raise FileNotFoundError(f"no folder of videos {str(source)!r}, and {error}") from error
    if folder.is_dir():
        raise ValueError(f"{str(source)!r} is a dataset card and a folder; for the folder give its absolute path")
    return resolve_root(card), card.name, card.rules()


def _without_previews(manifest: Manifest) -> Manifest:
    """Leave out a GIF beside another video of the same name: it is the same sample in 256 colours, not one more."""
    paths = {video: PurePosixPath(video.path) for video in manifest.videos}
    others = {path.with_suffix("") for path in paths.values() if path.suffix.lower() != ".gif"}
    kept = tuple(video for video, path in paths.items() if path.suffix.lower() != ".gif" or path.with_suffix("") not in others)
    dropped = len(manifest.videos) - len(kept)
    if dropped:
        logger.info("%s: %d GIFs beside a video of their name left out", manifest.root, dropped)
    return dataclasses.replace(manifest, videos=kept)


def _starts_by_video(videos: tuple[Video, ...], rule: ClipRule, role: Role, protocol: Protocol) -> list[list[int]]:
    """For each usable video the first frames of its clips, in the order in which they are taken."""
    if role == "fake":
        return [[0] for _ in videos]
    starts = []
    for index, video in enumerate(videos):
        valid = valid_starts(rule, video.frames)
        order = torch.randperm(len(valid), generator=keyed_generator(Purpose.EVALUATION, protocol.seed, index))
        starts.append([valid[i] for i in order[: protocol.clips_per_video].tolist()])
    return starts


def _round_robin(videos: tuple[Video, ...], starts: list[list[int]], wanted: int) -> tuple[tuple[Video, int], ...]:
    """One clip of every video, then a second of every video that has one, … up to `wanted`; in reading order."""
    chosen: list[tuple[int, int]] = []
    for turn in range(max(len(each) for each in starts)):
        chosen.extend((video, each[turn]) for video, each in enumerate(starts) if turn < len(each))
        if len(chosen) >= wanted:
            break
    return tuple((videos[video], start) for video, start in sorted(chosen[:wanted]))


def _shortfall(side: str, file: FeatureFile, protocol: Protocol | None) -> list[str]:
    """A warning if there are fewer clips than the protocol intends."""
    if protocol is None:
        return []
    intended = protocol.count if protocol.count is not None else (file.source or {}).get("videos", 0)
    if len(file.clip_ids) >= intended:
        return []
    return [
        f"{side}: {len(file.clip_ids)} clips, protocol {protocol.name} intends {intended}. Fewer clips bias the score "
        "upwards: compare it only with scores of as many clips"
    ]
