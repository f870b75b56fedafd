"""The manifest: a tree of videos as a sorted list with labels, splits, a fingerprint, and what was passed over and why."""

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path

from sparsevid.data.tree.findings import FORMAT, Findings, find, look
from sparsevid.data.tree.probing import CUT_SHORT, Contents
from sparsevid.data.tree.rules import Sorting, TreeRules, apply_rules
from sparsevid.data.tree.walk import HARMLESS, Found, Rejects, Scan, namesakes, scan_tree
from sparsevid.system.checksums import json_sha256
from sparsevid.system.distributed import from_main, patient_group
from sparsevid.system.logging import get_logger
from sparsevid.videos.array_files import ARRAY_EXTENSIONS
from sparsevid.videos.decode_file import NO_STREAM
from sparsevid.videos.display import DISPLAYED, PLAIN, SHOWN_OTHERWISE, STORED
from sparsevid.videos.kinds import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from sparsevid.videos.read import DecodeError
from sparsevid.videos.reading import FROM_START

ALL = "all"  # the split that every video is in
CACHE_VARIABLE = "SPARSEVID_CACHE"
NAMESAKES = "another video of the same name in its folder"

logger = get_logger(__name__)


@dataclass(frozen=True)
class Video:
    """One video.

    Attributes:
        path: below the manifest's root, with forward slashes; a file or a frame folder.
        bytes: size of the file, or of the folder's images together.
        frames: that can be read.
        fps: frames a second; of frame folders and images what the rules say.
        width: in pixels, of frames as `geometry` says.
        height: likewise.
        seconds: from the first frame shown to the last.
        first: number of the video's first frame inside its folder, not 0 only where a folder was split at a gap.
        label: index into the manifest's classes; None without labels.
        split: None in no split.
        times: seconds at which each frame is shown, where the rate varies; else None.
        geometry: `plain`: there is nothing to do to show its frames; `displayed`: they are stretched or turned, as a player
            shows them; `stored`: whatever a player does, stored pixels are wanted. See `display`.
        from_start: whether random access was found to give other frames, so that the file is to be decoded from its start.
    """

    path: str
    bytes: int
    frames: int
    fps: float
    width: int
    height: int
    seconds: float
    first: int = 0
    label: int | None = None
    split: str | None = None
    times: tuple[float, ...] | None = None
    geometry: str = PLAIN
    from_start: bool = False

    @property
    def display(self) -> bool:
        """Whether its frames are to be read as a player shows them."""
        return self.geometry == DISPLAYED


@dataclass(frozen=True)
class Manifest:
    """The videos of a tree, in natural order of their paths.

    Attributes:
        root: the tree.
        videos: the usable videos.
        classes: class names by label; empty without labels.
        rejects: reason → paths of what was passed over.
        notes: remark → paths of videos that are used all the same, or entries of lists.
        splits: split → number of its videos; empty without splits.
        scanned: whether every frame has been decoded.
        others: reason → paths of what lies beside the videos, is none and does not claim to be: lists, labels, sound.
    """

    root: Path
    videos: tuple[Video, ...]
    classes: tuple[str, ...]
    rejects: Rejects
    notes: dict[str, list[str]]
    splits: dict[str, int]
    scanned: bool = False
    others: Rejects = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over the sorted (path, bytes, frames, first, label, split) of all videos.

        A row says, too, where frames are stretched or turned: it is that of before `geometry` where pixels are those of then.
        """
        videos = sorted(self.videos, key=attrgetter("path", "first"))
        values = attrgetter("path", "bytes", "frames", "first", "label", "split")
        rows = [(*values(video), *([DISPLAYED] if video.geometry == DISPLAYED else [])) for video in videos]
        return json_sha256(rows)

    def select(self, split: str | None, *, or_all: bool = False) -> "Manifest":
        """The videos of one split.

        Args:
            split: its name; None or `all` for all videos, also those in no split.
            or_all: take all videos, with a warning, if the tree has no splits at all.

        Returns:
            A manifest of these videos.

        Raises:
            ValueError: no video is in this split.
        """
        if split in (None, ALL):
            return self
        if not self.splits and or_all:
            logger.warning("%s: the tree has no splits: all videos are used for split %r", self.root, split)
            return self
        if split not in self.splits:
            known = ", ".join(f"{name} ({count} videos)" for name, count in self.splits.items())
            known = f"splits: {known}" if known else f"the tree has no splits, {ALL!r} takes every video"
            raise ValueError(f"{self.root}: no video is in split {split!r}; {known}")
        videos = tuple(video for video in self.videos if video.split == split)
        return replace(self, videos=videos, splits={split: len(videos)})


def build_manifest(
    root: str | Path,
    rules: TreeRules = TreeRules(),  # noqa: B008  frozen
    *,
    workers: int | None = None,
    strict: bool = False,
    full_scan: bool = False,
) -> Manifest:
    """Walk a tree once and look into every video.

    Hidden files and folders are ignored, symbolic links followed. The result does not depend on the order in which
    the file system lists files, so all ranks find the same.

    Args:
        root: the tree.
        rules: how it is read.
        workers: threads that look into videos; default: one per core.
        strict: raise if a video was passed over or is cut short, instead of reporting it. What is no damage is reported all the
            same: packets without a frame, a varying rate, gaps in numbers, what lies beside the videos.
        full_scan: decode every frame of every video, and pass over those of which one fails. Slow.

    Returns:
        The manifest.

    Raises:
        FileNotFoundError: no such folder, or no list that the rules need.
        ValueError: the tree is not as the rules say (see `apply_rules`), or no usable video; the message counts what was
            passed over.
        DecodeError: a video is not as it should be, if strict.
    """
    root = Path(root)
    findings = find(_scan(root, rules), rules.media)
    sorting = _sort(findings, root, rules)
    findings = look(findings, root, sorting.labels, rules, workers, full_scan)
    return _reported(_assemble(findings, root, rules, sorting), strict)


def open_manifest(
    root: str | Path,
    rules: TreeRules = TreeRules(),  # noqa: B008  frozen
    *,
    workers: int | None = None,
    strict: bool = False,
    full_scan: bool = False,
    rebuild: bool = False,
) -> Manifest:
    """The manifest of a tree on every rank: rank 0 lists the tree and looks into its videos, unless nothing has changed.

    What rank 0 finds in a video is kept below $SPARSEVID_CACHE (default: ~/.cache/sparsevid) and used again, whatever the rules
    say of labels and splits, for as long as names, sizes and times of its files are the same. A tree of which a full scan was
    once asked for is held to it: what is new, has changed, or is looked into again is scanned too. Every rank must call this.

    Args:
        root: as for `build_manifest`, like the other arguments.
        rules: how the tree is read.
        workers: threads of rank 0.
        strict: as for `build_manifest`.
        full_scan: decode every frame of every video, unless that has been done; what it finds holds for all later runs.
        rebuild: look into every video again, as closely as before, also if nothing has changed.

    Returns:
        The same manifest on all ranks.

    Raises:
        FileNotFoundError, ValueError, DecodeError: as `build_manifest`, on every rank.
    """
    with patient_group() as group:
        return from_main(lambda: _reported(_open(Path(root), rules, workers, full_scan, rebuild), strict), group=group)


def kept_manifest(root: str | Path, rules: TreeRules) -> Manifest | None:
    """The manifest of a tree that was looked into before and has not changed since, else None. Nothing is looked into, written
    or said; a process asks for itself.

    Raises:
        FileNotFoundError, ValueError: as `build_manifest`.
    """
    scan, kept = _scan(Path(root), rules), _load(manifest_path(root, rules))
    if kept is None or kept.signature != scan.signature:
        return None
    sorting = _sort(kept, Path(root), rules)
    if any(each.contents is None and each.found.path in sorting.labels for each in kept.videos):
        return None
    return _assemble(kept, Path(root), rules, sorting)


def cache_folder() -> Path:
    """Where is kept what was found in trees: below $SPARSEVID_CACHE, or ~/.cache/sparsevid."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/sparsevid").expanduser() / "manifests"


def manifest_path(root: str | Path, rules: TreeRules) -> Path:
    """Where is kept what was found in a tree; the same for all rules that see the same videos in it."""
    key = [os.path.realpath(root), rules.media, rules.split_at_gaps, list(rules.ignore), FORMAT]
    return cache_folder() / f"{json_sha256(key)}.json"


def _open(root: Path, rules: TreeRules, workers: int | None, full_scan: bool, rebuild: bool) -> Manifest:
    """What `open_manifest` does on rank 0."""
    scan, path = _scan(root, rules), manifest_path(root, rules)
    kept = _load(path)
    full_scan = full_scan or (kept is not None and kept.held_to_scan)
    if kept is None or rebuild:
        findings = find(scan, rules.media)
    elif kept.signature != scan.signature:
        logger.info("%s has changed since %s was written: what is new is looked into", root, path)
        findings = find(scan, rules.media, kept)
    else:
        findings = kept
    sorting = _sort(findings, root, rules)
    findings = look(findings, root, sorting.labels, rules, workers, full_scan)
    if findings is kept:
        logger.info("%s: %d videos, as found before: %s", root, len(sorting.labels), path)
    else:
        _save(findings, path)
    return _assemble(findings, root, rules, sorting)


def _load(path: Path) -> Findings | None:
    """What is kept, if it is there and whole."""
    try:
        return Findings.load(path)
    except (OSError, ValueError) as error:
        if path.exists():
            logger.info("%s; it is made anew", error)
        return None


def _save(findings: Findings, path: Path) -> None:
    try:
        findings.save(path)
    except OSError as error:
        logger.warning("%s: what was found in the videos cannot be kept for the next time: %s", path, error)


def _scan(root: Path, rules: TreeRules) -> Scan:
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {root}")
    return scan_tree(root, rules.ignore)


def _sort(findings: Findings, root: Path, rules: TreeRules) -> Sorting:
    paths = [each.found.path for each in findings.videos]
    return apply_rules(root, paths, rules) if paths else Sorting()


def _assemble(findings: Findings, root: Path, rules: TreeRules, sorting: Sorting) -> Manifest:
    """The manifest of a tree whose sorted videos have all been looked into."""
    rejects, others = ({reason: list(paths) for reason, paths in each.items()} for each in (findings.rejects, findings.others))
    unsorted = [each.found.path for each in findings.videos if each.found.path not in sorting.labels]
    if unsorted:
        rejects["not in a class folder"] = unsorted
    notes = {reason: list(entries) for reason, entries in sorting.notes.items()}
    videos: list[Video] = []
    usable = [each for each in findings.videos if each.found.path in sorting.labels]
    for each in usable:
        claims = each.found.path.lower().endswith(VIDEO_EXTENSIONS)
        if each.contents == NO_STREAM and not claims:  # sound in a container of videos
            others.setdefault(NO_STREAM, []).append(each.found.path)
            continue
        assert each.contents is not None
        if not isinstance(each.contents, Contents):
            rejects.setdefault(each.contents, []).append(each.found.path)
            continue
        videos += _entries(each.found, each.contents, rules, sorting)
        overridden = () if rules.display or not each.contents.info.stored else (SHOWN_OTHERWISE,)
        for remark in each.contents.remarks + overridden:
            notes.setdefault(remark, []).append(each.found.path)
    if pairs := namesakes(dict.fromkeys(video.path for video in videos)):
        notes[NAMESAKES] = pairs
    if not videos:
        accepted = f"images ({' '.join(IMAGE_EXTENSIONS)})"
        if rules.media == "video":
            accepted = f"video files ({' '.join(VIDEO_EXTENSIONS + ARRAY_EXTENSIONS)}), folders of {accepted}"
        passed_over = "; ".join(filter(None, map(_counts, (rejects, others))))
        raise ValueError(f"{root}: no usable video; accepted: {accepted}; passed over: {passed_over or 'nothing'}")
    splits = Counter(video.split for video in videos if video.split is not None)
    scanned = all(each.scanned for each in usable)
    return Manifest(root, tuple(videos), sorting.classes, rejects, notes, dict(sorted(splits.items())), scanned, others)


def _entries(found: Found, contents: Contents, rules: TreeRules, sorting: Sorting) -> list[Video]:
    """The videos of a path: one, or one for each run of numbers of a folder that is split at gaps."""
    info, label, split = contents.info, sorting.labels[found.path], sorting.splits.get(found.path)
    fps = rules.fps if info.fps is None else info.fps
    geometry = (DISPLAYED if info.stored else PLAIN) if rules.display else STORED
    info = info if rules.display else info.as_stored()
    videos = []
    for first, frames in contents.runs:
        seconds = info.seconds if info.seconds is not None and frames == info.frames else (frames - 1) / fps
        values = (found.path, found.bytes, frames, fps, info.width, info.height, seconds, first, label, split, contents.times)
        videos.append(Video(*values, geometry=geometry, from_start=FROM_START in contents.remarks))
    return videos


def _reported(manifest: Manifest, strict: bool) -> Manifest:
    """Log what was passed over, and what is worth knowing of the rest; if strict, the first fault is an error."""
    faults = {reason: paths for reason, paths in manifest.rejects.items() if reason not in HARMLESS}
    faults |= {CUT_SHORT: manifest.notes[CUT_SHORT]} if CUT_SHORT in manifest.notes else {}
    if strict and faults:
        reason, paths = next(iter(faults.items()))
        raise DecodeError(manifest.root / paths[0], f"{reason} (of all faults: {_counts(faults)})")
    if manifest.rejects:
        logger.warning("%s: passed over: %s", manifest.root, _counts(manifest.rejects))
    if manifest.others:
        logger.info("%s: beside the videos: %s", manifest.root, _counts(manifest.others))
    if manifest.notes:
        logger.warning("%s: noted: %s", manifest.root, _counts(manifest.notes))
    return manifest


def _counts(by_reason: dict[str, list[str]]) -> str:
    """How many of each; what several reasons begin with, as `no video or image: .csv`, is said once."""
    counted: dict[str, list[str]] = {}
    for reason, paths in by_reason.items():
        begin, colon, which = reason.rpartition(": ")
        counted.setdefault(begin + colon, []).append(f"{which}: {len(paths)}")
    return "; ".join(begin + ", ".join(each) for begin, each in counted.items())
