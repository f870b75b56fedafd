"""The clips that a protocol takes from a source: a fixed list with names, read when they are asked for.

A source is a dataset card, a tree with video files, frame folders and arrays at any depth, or a `ClipGenerator`.

Dimensions: T frames, C = 3 channels, H×W pixels of a clip.
"""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from sparsevid.data.tree.cards import Card, ClipDefaults, load_card, resolve_root
from sparsevid.data.tree.manifest import ALL, Manifest, Video, open_manifest
from sparsevid.data.tree.rules import TreeRules
from sparsevid.data.tree.walk import HARMLESS, may_be_preview, namesakes, without_extension
from sparsevid.data.turns import drawn_classes
from sparsevid.evaluation.clips.archives import from_file, is_file
from sparsevid.evaluation.clips.choice import another_stride, clip_starts, draws, offer, take_evenly, video_order
from sparsevid.evaluation.clips.clip_readers import (
    BACKEND,
    Choice,
    ClipGenerator,
    ClipReader,
    ClipShape,
    GeneratedClips,
    VideoClips,
)
from sparsevid.evaluation.metrics.distances import Moments
from sparsevid.evaluation.protocols import BOTH, Protocol, Role
from sparsevid.generation.formats import LOSSLESS_FIRST, SHEET, clip_of_job, folder_of_clips
from sparsevid.system.checksums import json_sha256
from sparsevid.system.distributed import from_main
from sparsevid.system.home import expand_home
from sparsevid.system.logging import get_logger
from sparsevid.videos.array_files import OTHER_LAYOUT
from sparsevid.videos.decode_file import is_lossless
from sparsevid.videos.kinds import IMAGE_EXTENSIONS, kind_of
from sparsevid.videos.read import describe_decoder

__all__ = ["ClipGenerator", "ClipSource", "ProtocolClips", "Role", "choose_clips"]

LOSSLESS = (".png", ".apng", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".npy", ".npz", " without loss")
ONE_FOLDER = "."  # the path of a video whose frames lie directly in the root
logger = get_logger(__name__)


@dataclass(frozen=True)
class CardSource:
    """A dataset card with options in place of keys of its own; both as `load_card` takes them."""

    card: str | Path
    options: Mapping[str, Any] | Sequence[str]


ClipSource = str | Path | CardSource | ClipGenerator


@dataclass(frozen=True)
class ProtocolClips:
    """The clips that a protocol takes from a source.

    Attributes:
        ids: their names, in reading order; no two are equal.
        fingerprint: SHA-256 over their names, the rule that makes clips of frames, and the names, sizes and frame counts of the
            videos. It does not see other pixels in files of equal size; `compute_features` takes the content's.
        origin: where they come from, for the record; `intended` is how many the protocol takes of data that are large enough.
        reader: reads them.
        moments: statistics that a reference file gives beside its clips, or without any, by the detector's output.
    """

    ids: tuple[str, ...]
    fingerprint: str
    origin: dict[str, Any]
    reader: ClipReader
    moments: Mapping[str, Moments] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self.read(0, len(self))

    def read(self, first: int, last: int) -> Iterator[tuple[str, Tensor]]:
        """Read some of the clips; an unreadable one is an error, for others in its place would be another score.

        Args:
            first: position of the first clip.
            last: position behind the last clip.

        Yields:
            Name and clip, uint8 (3, T, H, W).

        Raises:
            IndexError: there are no such positions.
            DecodeError: a frame cannot be decoded.
            ValueError: a generator gives something else than a clip.
        """
        if not 0 <= first <= last <= len(self):
            raise IndexError(f"clips {first} to {last} asked for, there are {len(self)}")
        return zip(self.ids[first:last], self.reader.read(first, last), strict=True)


def choose_clips(
    source: ClipSource, role: Role, protocol: Protocol, *, limit: int | None = None, seed: int | None = None
) -> ProtocolClips:
    """The clips that a protocol takes from a source: a function of data, protocol, limit and seed.

    All ranks call it together.

    Args:
        source: a dataset card by name, path or `CardSource`, a folder of videos, a reference file (see `archives`), or a
            `ClipGenerator` in the role "fake".
        role: "real" or "fake".
        protocol: the rules.
        limit: take fewer clips than the protocol's count.
        seed: of all draws, in place of the protocol's: for repeats.

    Raises:
        FileNotFoundError: there is no such folder or card.
        ValueError: `limit` is below 2 or exceeds the protocol's count, no real video is long enough, a generated one is too
            short, fewer than two clips can be chosen, videos differ in size and the protocol does not resize, or some generated
            videos cannot be read and the others are fewer than the count.
    """
    protocol = protocol if seed is None else dataclasses.replace(protocol, seed=seed)
    side = protocol.side(role)
    if limit is not None and limit < 2:
        raise ValueError(f"count is at least 2 (a covariance needs two clips), got {limit}")
    if limit is not None and side.count is not None and limit > side.count:
        raise ValueError(
            f"count {limit} is more than the {side.count} of protocol {protocol.name}; for more clips write a "
            "protocol of your own and give its path"
        )
    shape = ClipShape(side.rule, protocol.size, protocol.resize)
    count = side.count if limit is None else limit
    if isinstance(source, ClipGenerator):
        choice = _from_generator(source, role, protocol, shape, count)
    elif is_file(source):
        choice = from_file(source, role, protocol, shape, count)
    else:
        choice = _from_videos(source, role, protocol, shape, count)
    if len(choice.ids) < 2 and not choice.moments:
        raise ValueError(
            f"{role} clips: a score needs at least 2, got {len(choice.ids)} from the {choice.origin['videos']} videos of "
            f"{choice.origin['root']} that have {side.least_frames} frames or more"
            + ("; images that lie directly in it are the frames of one video" if _is_one_folder(choice.ids) else "")
        )
    for text in choice.origin["warnings"]:
        logger.warning("%s clips: %s", role, text)
    pixels = [choice.data, side.rule.frames, side.rule.stride, shape.size, shape.resize, choice.ids]
    fingerprint = json_sha256(pixels)
    origin = {"clips": len(choice.ids), **choice.origin, "fingerprint": choice.data, "seed": protocol.seed}
    return ProtocolClips(choice.ids, fingerprint, origin, choice.reader, choice.moments)


def _from_videos(
    source: str | Path | CardSource, role: Role, protocol: Protocol, shape: ClipShape, count: int | None
) -> Choice:
    root, card, rules = _locate(source)
    rules = dataclasses.replace(rules, display=protocol.geometry == "display")
    manifest, side = open_manifest(root, rules), protocol.side(role)
    if side.rule.frames == 1 and [video.path for video in manifest.videos] == [ONE_FOLDER]:
        logger.info("%s: its images are taken for clips of one frame, and not for the frames of one video", root)
        manifest = open_manifest(root, dataclasses.replace(rules, media="image"))
    split = None
    warnings: list[str] = []
    if role == "real":
        manifest, split = _real_split(manifest, protocol, warnings)
    else:
        manifest = _without_previews(manifest)
    videos = _long_enough(manifest, role, protocol, None if card is None else card.clip)
    starts = [
        clip_starts(side.rule, video.frames, side.start, draws(role, protocol.seed, number), side.clips_per_video)
        for number, video in enumerate(videos)
    ]
    chosen = tuple((videos[video], first) for video, first in take_evenly(_classes(videos, role, protocol), starts, count))
    if shape.size is None:
        _check_one_size(root, chosen, protocol)
    formats = from_main(lambda: _formats(root, chosen, role))
    if role == "fake":
        warnings += _unreadable(manifest, len(chosen), count)
        warnings += _losses(formats, protocol) if protocol.lossless else []
        warnings += another_stride(protocol, clip_of_job(root))
    if role == "fake" and (twice := _in_two_formats(videos)):
        warnings.append(
            f"{len(twice)} samples lie in folders of two formats, such as {twice[0]!r}, and count twice: score one folder"
        )
    if pairs := namesakes(dict.fromkeys(video.path for video in videos)):
        warnings.append(f"{len(pairs)} videos share folder and name with another, such as {pairs[0]!r}: each is one more clip")
    origin = {
        "root": str(root),
        "card": None if card is None else card.name,
        **({"card_options": source.options} if isinstance(source, CardSource) and source.options else {}),
        "split": split,
        "intended": sum(map(len, starts)) if side.count is None else side.count,
        "videos": len(videos),
        "too_short": len(manifest.videos) - len(videos),
        "rejected": {reason: len(paths) for reason, paths in _rejected(manifest).items()},
        "formats": formats,
        "decoder": describe_decoder(BACKEND),
        "warnings": warnings,
    }
    ids = tuple(f"{video.path}@{video.first + first}" for video, first in chosen)
    return Choice(VideoClips(root, chosen, shape), ids, manifest.fingerprint, origin)


def _classes(videos: tuple[Video, ...], role: Role, protocol: Protocol) -> list[list[int]]:
    """The orders of videos that take turns: one of each class where the selection is balanced, else one of all."""
    selection, generator = protocol.side(role).selection, draws(role, protocol.seed)
    if selection == "balanced":
        return drawn_classes([video.label for video in videos], generator)
    return [video_order([video.path for video in videos], selection, generator)]


def _from_generator(source: ClipGenerator, role: Role, protocol: Protocol, shape: ClipShape, count: int | None) -> Choice:
    side = protocol.side(role)
    if role != "fake" or side.start == "all":
        raise ValueError(
            f"{source.name}: a generator makes one clip a number, in the role 'fake'; got the role {role!r} and protocol "
            f"{protocol.name}, whose clips start {side.start!r}"
        )
    names = [f"sample {number}" for number in range(source.count)]
    # Files of samples are numbered with leading zeros: the order of their characters is that of the numbers.
    selection = "spread" if side.selection == "sorted" else side.selection
    chosen = tuple(sorted(video_order(names, selection, draws(role, protocol.seed))[:count]))
    origin: dict[str, Any] = {
        "root": source.name,
        "card": None,
        "split": None,
        "intended": source.count if side.count is None else side.count,
        "videos": source.count,
        "too_short": 0,
        "rejected": {},
        "formats": {"generated": len(chosen)},
        "decoder": None,
        "warnings": [],
    }
    reader = GeneratedClips(source, chosen, shape, side.start, side.least_frames, protocol.seed)
    data = hashlib.sha256(source.name.encode("utf-8")).hexdigest()
    return Choice(reader, tuple(names[number] for number in chosen), data, origin)


def _in_two_formats(videos: Sequence[Video]) -> list[str]:
    """Samples of a job without its record, by their paths below the folders that it makes of formats."""
    places = [(path.parts[0], PurePosixPath(*path.parts[1:]).stem) for path in (PurePosixPath(video.path) for video in videos)
              if len(path.parts) > 1 and path.parts[0] in LOSSLESS_FIRST]  # fmt: skip
    return [name for name, count in Counter(name for _, name in set(places)).items() if count > 1]


def _locate(source: str | Path | CardSource) -> tuple[Path, Card | None, TreeRules]:
    """Folder, card and rules of a source."""
    if isinstance(source, CardSource):
        try:
            card = load_card(source.card, source.options)
        except FileNotFoundError as error:
            if not source.options or not Path(source.card).is_dir():
                raise
            shown = ", ".join(source.options)
            raise ValueError(f"{str(source.card)!r} is a folder, and options ({shown}) are those of a card") from error
        return resolve_root(card), card, card.rules()
    folder = expand_home(Path(source))
    try:
        card = load_card(source)
    except FileNotFoundError as error:
        if folder.is_dir():
            clips = folder_of_clips(folder)
            if clips != folder:
                logger.info("%s holds clips in several formats: those in %s are taken", folder, clips.name)
            return clips, None, TreeRules()
        raise FileNotFoundError(f"no folder of videos {str(source)!r}, and {error}") from error
    if folder.is_dir():
        raise ValueError(f"{str(source)!r} is a dataset card and a folder; for the folder give its absolute path")
    return resolve_root(card), card, card.rules()


def _real_split(manifest: Manifest, protocol: Protocol, warnings: list[str]) -> tuple[Manifest, str]:
    """The videos of the protocol's split, and its name. A tree without splits is taken for the split that is asked for."""
    if protocol.split == BOTH:
        raise ValueError(
            f"protocol {protocol.name} scores the training and the test split each by itself: choose clips of one of them"
        )
    if protocol.split != ALL and not manifest.splits:
        warnings.append(f"{manifest.root} has no splits: all its videos are taken for split {protocol.split!r}")
        return manifest, ALL
    return manifest.select(protocol.split), protocol.split


def _long_enough(manifest: Manifest, role: Role, protocol: Protocol, clip: ClipDefaults | None) -> tuple[Video, ...]:
    """The videos that a protocol takes clips of, in the manifest's order. `clip` is what a card says of clips.

    Raises:
        ValueError: there are none, or a generated one is too short: to pass it over would flatter whoever made it.
    """
    side = protocol.side(role)
    needed = side.least_frames
    own = None if clip is None else (clip.frames, clip.stride)
    videos = tuple(video for video in manifest.videos if video.frames >= needed)
    short = [video for video in manifest.videos if video.frames < needed]
    if short and (role == "fake" or not videos):
        longest = max(video.frames for video in manifest.videos)
        raise ValueError(
            f"{manifest.root}: {len(short)} of {len(manifest.videos)} {role} videos are shorter than the {needed} frames that "
            f"protocol {protocol.name} needs, such as {short[0].path!r} with {short[0].frames}; the longest video has {longest}"
            + offer(role, side, min(video.frames for video in short), own, clip_of_job(Path(manifest.root)))
        )
    if short:
        total = len(manifest.videos)
        logger.warning("%s: %d of %d videos are shorter than %d frames and left out", manifest.root, len(short), total, needed)
    return videos


def _without_previews(manifest: Manifest) -> Manifest:
    """Leave out the contact sheet of a job of images, which is no sample, and a GIF or animated image beside another video of
    the same name: it is the same sample, not one more.
    """
    videos = tuple(video for video in manifest.videos if video.path != SHEET)
    if len(videos) < len(manifest.videos):
        logger.info("%s: %s is no sample, and left out", manifest.root, SHEET)
    stems = {video: without_extension(video.path) for video in videos}
    others = {stem for video, stem in stems.items() if not may_be_preview(video.path)}
    kept = tuple(video for video, stem in stems.items() if not may_be_preview(video.path) or stem not in others)
    dropped = len(videos) - len(kept)
    if dropped:
        logger.info("%s: %d GIFs or animated images beside a video of their name left out", manifest.root, dropped)
    return dataclasses.replace(manifest, videos=kept)


def _is_one_folder(ids: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{ONE_FOLDER}@") for name in ids)


def _check_one_size(root: Path, chosen: tuple[tuple[Video, int], ...], protocol: Protocol) -> None:
    """Frames that nobody resizes have to be of one size, or they make no batch."""
    sizes = {(video.width, video.height): video.path for video, _ in chosen}
    if len(sizes) > 1:
        a, b, *_ = (f"{path!r} is {width}x{height}" for (width, height), path in sizes.items())
        raise ValueError(f"{root}: protocol {protocol.name} does not resize, and the videos differ in size: {a}, {b}")


def _formats(root: Path, chosen: tuple[tuple[Video, int], ...], role: Role) -> dict[str, int]:
    """How many clips come from files of each extension, or from frame folders with images of each."""
    clips = Counter(video.path for video, _ in chosen)
    formats: Counter[str] = Counter()
    for path, number in clips.items():
        formats[_format(root / path, role)] += number
    return dict(sorted(formats.items()))


def _format(path: Path, role: Role) -> str:
    if not path.is_dir():
        suffix = path.suffix.lower()
        if role == "real":  # nothing depends on their codec, and there may be very many files to open
            return suffix
        return f"{suffix} without loss" if kind_of(path) == "video" and is_lossless(path) else suffix
    with os.scandir(path) as entries:  # the first frame is enough: a folder may hold thousands
        extensions = (os.path.splitext(entry.name)[1].lower() for entry in entries)
        return f"frames {next((each for each in extensions if each in IMAGE_EXTENSIONS), 'of no known extension')}"


def _unreadable(manifest: Manifest, clips: int, count: int | None) -> list[str]:
    """A warning of generated videos that were passed over.

    Raises:
        ValueError: those that are left are fewer than the count: the score would be that of a selection.
    """
    rejects = {reason: paths for reason, paths in _rejected(manifest).items() if reason not in HARMLESS}
    if not rejects:
        return []
    reason, paths = next(iter(rejects.items()))
    number = sum(map(len, rejects.values()))
    text = f"{number} of the generated videos in {manifest.root} cannot be used, such as {paths[0]!r}: {reason}"
    if count is None or clips < count:
        wanted = "all are to be scored" if count is None else f"the {clips} clips of the others are fewer than {count}"
        raise ValueError(f"{text}; {wanted}: make them anew, or remove them")
    return [text]


def _rejected(manifest: Manifest) -> dict[str, list[str]]:
    """What might have been a sample: the manifest's rejects, and arrays in another layout. Not the records beside samples."""
    arrays = {reason: paths for reason, paths in manifest.others.items() if reason.startswith(OTHER_LAYOUT)}
    return manifest.rejects | arrays


def _losses(formats: dict[str, int], protocol: Protocol) -> list[str]:
    lossy = [f"{number} {name}" for name, number in formats.items() if not name.endswith(LOSSLESS)]
    if not lossy:
        return []
    return [
        f"protocol {protocol.name} wants generated clips without loss, as FFV1, PNG frames or arrays; a codec's traces may be "
        f"part of the score of {', '.join(lossy)}"
    ]
