"""The manifest: a tree of video files as a sorted list, with labels, a fingerprint, and what was passed over."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from statistics import median

from sparsevid.data.decode import DecodeError, VideoInfo, probe
from sparsevid.logging import get_logger, progress

EXTENSIONS = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".gif")
IGNORED_FOLDERS = ("__MACOSX",)
LABEL_RULES = ("none", "folder", "file")
FORMAT = 1  # of the JSON file

logger = get_logger(__name__)


@dataclass(frozen=True)
class Video:
    """One video.

    Attributes:
        path: below the manifest's root, with forward slashes.
        bytes: size of the file.
        frames: that can be read.
        fps: frames a second.
        width: in pixels.
        height: in pixels.
        label: index into the manifest's classes; None without labels.
    """

    path: str
    bytes: int
    frames: int
    fps: float
    width: int
    height: int
    label: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The videos of a tree, in natural order of their paths.

    Attributes:
        root: the tree.
        videos: the usable videos.
        classes: class names by label, sorted; empty without labels.
        rejects: reason → paths of the files that were passed over.
    """

    root: Path
    videos: tuple[Video, ...]
    classes: tuple[str, ...]
    rejects: dict[str, list[str]]

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over the sorted (path, size in bytes, frames, label) of all videos."""
        rows = sorted((v.path, v.bytes, v.frames, -1 if v.label is None else v.label) for v in self.videos)
        return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()

    def summary(self) -> str:
        """A few lines for people: counts, lengths, sizes, rejects by reason."""
        frames = [video.frames for video in self.videos]
        sizes = Counter(f"{video.width}x{video.height}" for video in self.videos).most_common(3)
        lines = [
            f"{self.root}: {len(self.videos)} videos, {len(self.classes)} classes, {sum(frames)} frames",
            f"frames of a video: {min(frames)} to {max(frames)}, median {median(frames):g}",
            "most common sizes: " + ", ".join(f"{size} ({count})" for size, count in sizes),
            *(f"passed over, {reason}: {len(paths)}" for reason, paths in self.rejects.items()),
            f"fingerprint {self.fingerprint[:16]}",
        ]
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write as JSON, under a temporary name that is then renamed."""
        path = Path(path)
        values = asdict(self) | {"root": str(self.root), "fingerprint": self.fingerprint, "format": FORMAT}
        draft = path.with_name(f".{path.name}.partial")
        draft.write_text(json.dumps(values, indent=1), encoding="utf-8")
        os.replace(draft, path)

    @classmethod
    def load(cls, path: str | Path) -> "Manifest":
        """Read what `save` wrote.

        Raises:
            ValueError: not a manifest of this format, or its content does not match its fingerprint.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r}; accepted: {FORMAT}")
            videos = tuple(Video(**video) for video in values["videos"])
            loaded = cls(Path(values["root"]), videos, tuple(values["classes"]), values["rejects"])
            if loaded.fingerprint != values["fingerprint"]:
                raise ValueError("its content does not match its fingerprint")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no manifest: {error}") from error
        outside = [v.path for v in videos if PurePosixPath(v.path).is_absolute() or ".." in PurePosixPath(v.path).parts]
        if outside:
            raise ValueError(f"{path}: {outside[0]!r} does not lie below the root")
        return loaded


def build_manifest(root: str | Path, *, label_rule: str = "none", workers: int | None = None, strict: bool = False) -> Manifest:
    """Walk a tree once and look into every file that has a video's extension.

    Hidden files and folders are ignored, symbolic links followed. The result does not depend on the order in which
    the file system lists files, so all ranks find the same.

    Args:
        root: the tree.
        label_rule: `none`; `folder`: the first folder below the root; `file`: each file its own class, by its stem, or
            by its path where stems repeat. Class names are sorted.
        workers: threads that look into files; default: one per core.
        strict: raise at the first file that is unreadable, cut short or unlabelled, instead of passing it over or, if
            its intact frames can be used, shortening it.

    Returns:
        The manifest.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: an unknown label rule, or no usable video; the message counts what was passed over.
        DecodeError: a file that is not as it should be, if strict.
    """
    root = Path(root)
    if label_rule not in LABEL_RULES:
        raise ValueError(f"label_rule is {label_rule!r}; accepted: {', '.join(LABEL_RULES)}")
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {root}")
    names = sorted(_walk(root), key=natural_key)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        looks = pool.map(lambda name: _look(root, name, label_rule, strict), names)
        found = list(progress(looks, total=len(names), desc="looking into videos", delay=2))
    rejects: dict[str, list[str]] = {}
    usable: list[tuple[str, int, VideoInfo]] = []
    for name, result in zip(names, found, strict=True):
        if isinstance(result, str):
            rejects.setdefault(result, []).append(name)
        else:
            usable.append((name, *result))
    counts = "; ".join(f"{reason}: {len(paths)}" for reason, paths in rejects.items()) or "nothing"
    if not usable:
        raise ValueError(f"{root}: no usable video; accepted: {' '.join(EXTENSIONS)}; passed over: {counts}")
    if rejects:
        logger.warning("%s: passed over: %s", root, counts)
    class_names = _class_names([name for name, _, _ in usable], label_rule)
    classes = tuple(sorted(set(class_names)))
    labels = {name: label for label, name in enumerate(classes)}
    videos = [
        Video(name, size, info.frames, info.fps, info.width, info.height, labels[class_names[i]] if classes else None)
        for i, (name, size, info) in enumerate(usable)
    ]
    return Manifest(root, tuple(videos), classes, rejects)


def natural_key(name: str) -> tuple:
    """Sort key of a path that puts clip2 before clip10, and a/b before a-b; equal numbers go by spelling."""
    parts = [[int(p) if i % 2 else p for i, p in enumerate(re.split(r"([0-9]+)", part))] for part in name.split("/")]
    return parts, name


def _walk(root: Path) -> Iterator[str]:
    """Paths below `root` of files with a video's extension. A folder that contains itself by a link is entered once."""
    pending = [(root, frozenset())]
    while pending:
        folder, above = pending.pop()
        here = os.path.realpath(folder)
        if here in above:
            logger.warning("%s: a symbolic link to a folder above it is not followed", folder)
            continue
        for entry in folder.iterdir():
            if entry.name.startswith(".") or entry.name in IGNORED_FOLDERS:
                continue
            if entry.is_dir():
                pending.append((entry, above | {here}))
            elif entry.suffix.lower() in EXTENSIONS:
                yield entry.relative_to(root).as_posix()


def _look(root: Path, name: str, label_rule: str, strict: bool) -> tuple[int, VideoInfo] | str:
    """A file's size and what it holds, or the reason to pass it over."""
    path = root / name
    try:
        if path.is_symlink() and not path.exists():
            raise DecodeError(path, "broken symbolic link")
        if label_rule == "folder" and "/" not in name:
            raise DecodeError(path, "not in a class folder")
        info = probe(path)
        if info.frames < info.header_frames:
            reason = f"cut short or damaged: {info.frames} of {info.header_frames} frames can be read"
            if strict:
                raise DecodeError(path, reason)
            logger.warning("%s: %s; these are used", path, reason)
        return path.stat().st_size, info
    except DecodeError as error:
        if strict:
            raise
        return error.reason


def _class_names(names: list[str], label_rule: str) -> list[str]:
    """Each video's class name; empty without labels."""
    if label_rule == "none":
        return []
    if label_rule == "folder":
        return [name.split("/", 1)[0] for name in names]
    stems = [PurePosixPath(name).stem for name in names]
    return stems if len(set(stems)) == len(stems) else names
