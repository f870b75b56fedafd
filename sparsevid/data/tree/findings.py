"""What the videos of a tree were found to hold, kept between runs, so that a video is looked into once.

Kept is what takes long to find out and depends on the files alone. Labels, splits and the frame rate of folders are a matter
of rules, which are applied anew each time: other rules make nobody look again.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from sparsevid.data.tree.probing import Contents, look_into
from sparsevid.data.tree.rules import TreeRules
from sparsevid.data.tree.walk import Found, Rejects, Scan, find_videos
from sparsevid.system.atomic import write_text
from sparsevid.videos.reading import VideoInfo

FORMAT = 5  # of the file; to be raised, too, when the same tree is read as something else

_INFO = tuple(field.name for field in fields(VideoInfo))
_info_row = attrgetter(*_INFO)


@dataclass(frozen=True)
class Finding:
    """What is known of a video.

    Attributes:
        found: by the walk.
        stamp: of the names, sizes and times of its files: the same for as long as they do not change.
        contents: what it holds, or the reason to pass it over; None while nobody has looked into it.
        scanned: whether every frame was decoded to find out.
    """

    found: Found
    stamp: str
    contents: Contents | str | None = None
    scanned: bool = False


@dataclass(frozen=True)
class Findings:
    """What is known of a tree.

    Attributes:
        signature: of its listing, see `Scan`.
        videos: all that the walk found, in natural order of their paths.
        rejects: what the walk passed over.
        others: what the walk found to be neither video nor image, nor to claim it.
        held_to_scan: whether a full scan was once asked for; what is new or has changed is then scanned too.
    """

    signature: str
    videos: tuple[Finding, ...]
    rejects: Rejects
    others: Rejects
    held_to_scan: bool = False

    def save(self, path: Path) -> None:
        """Write two lines of JSON, a head with the checksum of the other, whole or not at all."""
        rows = [_row(finding) for finding in self.videos]
        passed_over = {"rejects": self.rejects, "others": self.others}
        body = json.dumps({"info": _INFO, "videos": rows, **passed_over, "held_to_scan": self.held_to_scan})
        head = json.dumps({"format": FORMAT, "signature": self.signature, "sha256": _sha256(body)})
        write_text(path, f"{head}\n{body}\n")

    @classmethod
    def load(cls, path: Path) -> "Findings":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is damaged, or was not written by `save` in this format.
        """
        try:
            head_line, body, rest = path.read_text(encoding="ascii").split("\n")
            head = json.loads(head_line)
            if head["format"] != FORMAT:
                raise ValueError(f"format {head['format']!r}; accepted: {FORMAT}")
            if rest or _sha256(body) != head["sha256"]:
                raise ValueError("its content does not match its checksum")
            values = json.loads(body)
            if tuple(values["info"]) != _INFO:
                raise ValueError(f"columns {values['info']!r}; accepted: {', '.join(_INFO)}")
            videos = tuple(_finding(row) for row in values["videos"])
            passed_over = dict(values["rejects"]), dict(values["others"])
            found = cls(head["signature"], videos, *passed_over, bool(values["held_to_scan"]))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{path} does not hold what was found in a tree: {error}") from error
        paths = [each.found.path for each in videos]
        outside = [each for each in paths if each.startswith("/") or ".." in each.split("/")]
        if outside:
            raise ValueError(f"{path}: {outside[0]!r} does not lie below the root")
        return found


def find(scan: Scan, media: str, known: Findings | None = None) -> Findings:
    """Tell the videos of a listing from everything else.

    Args:
        scan: the listing.
        media: see `TreeRules`.
        known: of the same tree before; what it says of files that have not changed still holds.

    Returns:
        The videos, not looked into unless they are known.
    """
    found, rejects, others = find_videos(scan, media)
    before = {(each.found, each.stamp): each for each in known.videos} if known else {}
    stamps = _file_stamps(scan)
    videos = []
    for each in found:
        stamp = _folder_stamp(scan, each.path) if each.folder else stamps[each.path]
        videos.append(before.get((each, stamp)) or Finding(each, stamp))
    return Findings(scan.signature, tuple(videos), rejects, others, known is not None and known.held_to_scan)


def look(
    findings: Findings, root: Path, paths: Collection[str], rules: TreeRules, workers: int | None, full_scan: bool
) -> Findings:
    """Look into those videos that nobody has looked into, or not as closely as is asked for.

    Args:
        findings: of the tree.
        root: the tree.
        paths: of the videos that matter; a set or mapping, it is asked for every video.
        rules: see `look_into`, like the other arguments.
        workers: threads.
        full_scan: decode every frame.

    Returns:
        The findings with what was seen; `findings` itself if there was nothing to look into.
    """
    open_questions = {
        i: each
        for i, each in enumerate(findings.videos)
        if each.found.path in paths and (each.contents is None or (full_scan and not each.scanned))
    }
    if not open_questions and (findings.held_to_scan or not full_scan):
        return findings
    videos = list(findings.videos)
    found = [each.found for each in open_questions.values()]
    for (i, each), contents in zip(open_questions.items(), look_into(root, found, rules, workers, full_scan), strict=True):
        videos[i] = replace(each, contents=contents, scanned=full_scan)
    return replace(findings, videos=tuple(videos), held_to_scan=findings.held_to_scan or full_scan)


def _file_stamps(scan: Scan) -> dict[str, str]:
    return {
        (f"{folder}/{name}" if folder else name): f"{size} {time}"
        for folder, files in scan.folders.items()
        for name, size, time in files
    }


def _folder_stamp(scan: Scan, path: str) -> str:
    folder = "" if path == "." else path
    return _sha256(json.dumps(sorted(scan.folders[folder])))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _row(finding: Finding) -> list[Any]:
    found, seen = finding.found, finding.contents
    contents = [_info_row(seen.info), seen.runs, seen.remarks, seen.times] if isinstance(seen, Contents) else seen
    return [found.path, found.bytes, found.folder, finding.stamp, finding.scanned, contents]


def _finding(row: list[Any]) -> Finding:
    path, size, folder, stamp, scanned, contents = row
    if isinstance(contents, list):
        values, runs, remarks, times = contents
        kept: list[Any] = [tuple(value) if isinstance(value, list) else value for value in values]
        info = VideoInfo(*kept)
        runs = tuple((first, frames) for first, frames in runs)
        contents = Contents(info, runs, tuple(remarks), None if times is None else tuple(times))
    elif not isinstance(contents, str | None):
        raise ValueError(f"{path}: contents {contents!r}")
    return Finding(Found(path, size, folder), stamp, contents, scanned)
