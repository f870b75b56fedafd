"""The manifest: a tree of videos as a sorted list with labels, splits, a fingerprint, and what was passed over and why."""

import hashlib
import json
import os
import secrets
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any

from sparsevid.data.decode import DecodeError
from sparsevid.data.files import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from sparsevid.data.probing import CUT_SHORT, Contents, look_into
from sparsevid.data.rules import Sorting, TreeRules, apply_rules, rule_files
from sparsevid.data.walk import Found, Rejects, Scan, find_videos, scan_tree
from sparsevid.distributed import broadcast_object, is_main
from sparsevid.logging import get_logger

FORMAT = 2  # of the JSON file; to be raised, too, when the same tree is read as something else
ALL = "all"  # the split that every video is in
CACHE_VARIABLE = "SPARSEVID_CACHE"

logger = get_logger(__name__)


@dataclass(frozen=True)
class Video:
    """One video.

    Attributes:
        path: below the manifest's root, with forward slashes; a file or a frame folder.
        bytes: size of the file, or of the folder's images together.
        frames: that can be read.
        fps: frames a second; of frame folders and images what the rules say.
        width: in pixels.
        height: in pixels.
        seconds: from the first frame shown to the last.
        first: number of the video's first frame inside its folder, not 0 only where a folder was split at a gap.
        label: index into the manifest's classes; None without labels.
        split: None in no split.
        times: seconds at which each frame is shown, where the rate varies; else None.
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


_COLUMNS = tuple(field.name for field in fields(Video))


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
    """

    root: Path
    videos: tuple[Video, ...]
    classes: tuple[str, ...]
    rejects: Rejects
    notes: dict[str, list[str]]
    splits: dict[str, int]
    scanned: bool = False

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over the sorted (path, bytes, frames, first, label, split) of all videos."""
        videos = sorted(self.videos, key=attrgetter("path", "first"))
        rows = list(map(attrgetter("path", "bytes", "frames", "first", "label", "split"), videos))
        return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()

    def select(self, split: str | None) -> "Manifest":
        """The videos of one split.

        Args:
            split: its name; None or `all` for all videos, also those in no split.

        Returns:
            A manifest of these videos; of all, with a warning, if the tree has no splits at all.

        Raises:
            ValueError: the tree has splits and this is none of them.
        """
        if split in (None, ALL):
            return self
        if not self.splits:
            logger.warning("%s: split %r asked for, and the tree has no splits: all videos are used", self.root, split)
            return self
        if split not in self.splits:
            known = ", ".join(f"{name} ({count} videos)" for name, count in self.splits.items())
            raise ValueError(f"{self.root}: no video is in split {split!r}; splits: {known}")
        videos = tuple(video for video in self.videos if video.split == split)
        return replace(self, videos=videos, splits={split: len(videos)})

    def summary(self) -> str:
        """A few lines for people: counts, lengths, sizes, splits, rejects and notes by reason."""
        frames = [video.frames for video in self.videos]
        sizes = Counter(f"{video.width}x{video.height}" for video in self.videos).most_common(3)
        lines = [
            f"{self.root}: {len(self.videos)} videos, {len(self.classes)} classes, {sum(frames)} frames",
            f"frames of a video: {min(frames)} to {max(frames)}, median {median(frames):g}",
            "most common sizes: " + ", ".join(f"{size} ({count})" for size, count in sizes),
            *(["splits: " + ", ".join(f"{name} ({count})" for name, count in self.splits.items())] if self.splits else []),
            *(f"passed over, {reason}: {len(paths)}" for reason, paths in self.rejects.items()),
            *(f"noted, {remark}: {len(paths)}" for remark, paths in self.notes.items()),
            f"fingerprint {self.fingerprint[:16]}",
        ]
        return "\n".join(lines)

    def save(self, path: str | Path, signature: str = "") -> None:
        """Write as JSON, under a temporary name that is then renamed.

        Args:
            path: the file; its folder must exist.
            signature: of the tree, to be asked for by `load`.
        """
        path = Path(path)
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        rows = list(map(attrgetter(*_COLUMNS), self.videos))
        values |= {"root": str(self.root), "columns": _COLUMNS, "videos": rows}
        values |= {"fingerprint": self.fingerprint, "format": FORMAT, "signature": signature}
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")  # other runs may write it too
        try:
            draft.write_text(json.dumps(values), encoding="utf-8")
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, signature: str | None = None) -> "Manifest":
        """Read what `save` wrote.

        Args:
            path: the file.
            signature: that it must have been saved with; None accepts any.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a manifest of this format, of another signature, or its content does not match its fingerprint.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r}; accepted: {FORMAT}")
            if tuple(values["columns"]) != _COLUMNS:
                raise ValueError(f"columns {values['columns']!r}; accepted: {', '.join(_COLUMNS)}")
            videos = tuple(_video(row) for row in values["videos"])
            kept = {name: values[name] for name in ("rejects", "notes", "splits", "scanned")}
            loaded = cls(Path(values["root"]), videos, tuple(values["classes"]), **kept)
            if loaded.fingerprint != values["fingerprint"]:
                raise ValueError("its content does not match its fingerprint")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no manifest: {error}") from error
        outside = [v.path for v in videos if v.path.startswith("/") or ".." in v.path.split("/")]
        if outside:
            raise ValueError(f"{path}: {outside[0]!r} does not lie below the root")
        if signature is not None and values.get("signature") != signature:
            raise ValueError(f"{path}: {loaded.root} has changed since this was written")
        return loaded


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
        strict: raise if a video was passed over or shortened, instead of reporting it.
        full_scan: decode every frame of every video, and pass over those of which one fails. Slow.

    Returns:
        The manifest.

    Raises:
        FileNotFoundError: no such folder, or no list that the rules need.
        ValueError: the tree is not as the rules say (see `apply_rules`), or no usable video; the message counts what was
            passed over.
        DecodeError: a video is not as it should be, if strict.
    """
    return _reported(_build(_scan(Path(root), rules), rules, workers, full_scan), strict)


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

    What rank 0 finds is kept below $SPARSEVID_CACHE (default: ~/.cache/sparsevid) and used again for as long as names,
    sizes and times of all files are the same. Every rank must call this.

    Args:
        root: as for `build_manifest`, like the other arguments.
        rules: how the tree is read.
        workers: threads of rank 0.
        strict: raise if a video was passed over or shortened.
        full_scan: decode every frame of every video, unless that has been done; what it finds holds for all later runs.
        rebuild: look into every video again, also if nothing has changed.

    Returns:
        The same manifest on all ranks.

    Raises:
        FileNotFoundError, ValueError, DecodeError: as `build_manifest`, on every rank.
    """
    outcome: Manifest | Exception | None = None
    if is_main():
        try:
            outcome = _reported(_read_or_build(Path(root), rules, workers, full_scan, rebuild), strict)
        except Exception as error:  # whatever it is, the other ranks wait for word of it
            outcome = error
    outcome = broadcast_object(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def cache_folder() -> Path:
    """Where manifests are kept: below $SPARSEVID_CACHE, or ~/.cache/sparsevid."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/sparsevid").expanduser() / "manifests"


def manifest_path(root: str | Path, rules: TreeRules) -> Path:
    """Where the manifest of a tree read by these rules is kept."""
    key = json.dumps([os.path.realpath(root), asdict(rules), FORMAT])
    return cache_folder() / f"{hashlib.sha256(key.encode('ascii')).hexdigest()}.json"


def _read_or_build(root: Path, rules: TreeRules, workers: int | None, full_scan: bool, rebuild: bool) -> Manifest:
    scan = _scan(root, rules)
    path, signature = manifest_path(root, rules), _signature(scan, rules)
    try:
        kept = replace(Manifest.load(path, signature), root=root)
        if not rebuild and (kept.scanned or not full_scan):
            logger.info("%s: %d videos, as in the manifest %s", root, len(kept.videos), path)
            return kept
    except (OSError, ValueError) as error:
        if path.exists():
            logger.info("%s; it is made anew", error)
    manifest = _build(scan, rules, workers, full_scan)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        manifest.save(path, signature)
    except OSError as error:
        logger.warning("%s: its manifest cannot be kept for the next time: %s", root, error)
    return manifest


def _signature(scan: Scan, rules: TreeRules) -> str:
    """The listing's, and that of lists which lie beside the tree."""
    digest = hashlib.sha256(scan.signature.encode("ascii"))
    for path in rule_files(scan.root, rules):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _scan(root: Path, rules: TreeRules) -> Scan:
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {root}")
    return scan_tree(root, rules.ignore)


def _build(scan: Scan, rules: TreeRules, workers: int | None, full_scan: bool) -> Manifest:
    root = scan.root
    found, rejects = find_videos(scan, rules.media)
    sorting = apply_rules(root, [each.path for each in found], rules) if found else Sorting()
    usable = [each for each in found if each.path in sorting.labels]
    if len(usable) < len(found):
        rejects["not in a class folder"] = [each.path for each in found if each.path not in sorting.labels]
    notes = dict(sorting.notes)
    videos: list[Video] = []
    for each, contents in zip(usable, look_into(root, usable, rules, workers, full_scan), strict=True):
        if isinstance(contents, str):
            rejects.setdefault(contents, []).append(each.path)
            continue
        videos += _entries(each, contents, rules.fps, sorting)
        for remark in contents.remarks:
            notes.setdefault(remark, []).append(each.path)
    if not videos:
        accepted = f"images ({' '.join(IMAGE_EXTENSIONS)})"
        if rules.media == "video":
            accepted = f"video files ({' '.join(VIDEO_EXTENSIONS)}), folders of {accepted}"
        raise ValueError(f"{root}: no usable video; accepted: {accepted}; passed over: {_counts(rejects) or 'nothing'}")
    splits = Counter(video.split for video in videos if video.split is not None)
    return Manifest(root, tuple(videos), sorting.classes, rejects, notes, dict(sorted(splits.items())), full_scan)


def _entries(found: Found, contents: Contents, default_fps: float, sorting: Sorting) -> list[Video]:
    """The videos of a path: one, or one for each run of numbers of a folder that is split at gaps."""
    info, label, split = contents.info, sorting.labels[found.path], sorting.splits.get(found.path)
    fps = default_fps if info.fps is None else info.fps
    videos = []
    for first, frames in contents.runs:
        seconds = info.seconds if info.seconds is not None and frames == info.frames else (frames - 1) / fps
        values = (found.path, found.bytes, frames, fps, info.width, info.height, seconds, first, label, split, contents.times)
        videos.append(Video(*values))
    return videos


def _video(row: list[Any]) -> Video:
    """A video from its row in a JSON file, which has no tuples."""
    *values, times = row
    return Video(*values, times if times is None else tuple(times))


def _reported(manifest: Manifest, strict: bool) -> Manifest:
    """Log what was passed over, and what is worth knowing of the rest; if strict, the first fault is an error."""
    faults = {**manifest.rejects, **({CUT_SHORT: manifest.notes[CUT_SHORT]} if CUT_SHORT in manifest.notes else {})}
    if strict and faults:
        reason, paths = next(iter(faults.items()))
        raise DecodeError(manifest.root / paths[0], f"{reason} (of all faults: {_counts(faults)})")
    if manifest.rejects:
        logger.warning("%s: passed over: %s", manifest.root, _counts(manifest.rejects))
    if manifest.notes:
        logger.warning("%s: noted: %s", manifest.root, _counts(manifest.notes))
    return manifest


def _counts(by_reason: dict[str, list[str]]) -> str:
    return "; ".join(f"{reason}: {len(paths)}" for reason, paths in by_reason.items())
