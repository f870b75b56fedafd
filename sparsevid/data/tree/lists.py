"""The text files that come with a dataset: the list of its classes, and the lists of what is in each split."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path, PurePosixPath
from typing import Any

from sparsevid.data.tree.walk import own_name, without_extension
from sparsevid.videos.kinds import natural_key

_EXAMPLES = 5  # entries that a message names


@dataclass(frozen=True)
class SplitList:
    """A list that says what is in a split.

    Attributes:
        file: it.
        split: the split's name.
        entries: (line, path in it, label after the path or None) of each line.
        joined: names that are in the split too, if the tree has them.
    """

    file: Path
    split: str
    entries: tuple[tuple[str, str, int | None], ...]
    joined: tuple[str, ...] = ()


def below_or_beside(root: Path, name: str) -> Path | None:
    """The file `name` in a tree or next to it; None if there is none."""
    # Resolved: the parent of "." or of a symbolic link would be another folder.
    return next((path for path in (root / name, root.resolve().parent / name) if path.is_file()), None)


def all_below_or_beside(root: Path, pattern: str) -> list[Path]:
    """The file of this path in a tree or next to it; or, of a path with `*` in its name, all files of such names, in order."""
    folder, name = (root / pattern).parent, PurePosixPath(pattern).name
    if "*" not in name:
        only = below_or_beside(root, pattern)
        return [] if only is None else [only]
    beside = (root.resolve().parent / pattern).parent
    found = ([path for path in each.glob(name) if path.is_file()] for each in (folder, beside))
    return sorted(next(filter(None, found), []), key=lambda path: natural_key(path.name))


def read_class_list(path: Path) -> tuple[str, ...]:
    """Read class names, one a line, with or without numbers before them.

    Args:
        path: such as UCF101's classInd.txt: lines `1 ApplyEyeMakeup`.

    Returns:
        The names in the list's order.

    Raises:
        ValueError: no text, no name, a name twice, or numbers that do not count from 1.
    """
    names: list[str] = []
    for line in _lines(path):
        found = re.fullmatch(r"(?:([0-9]+)\s+)?(.+)", line)
        assert found is not None  # no line is blank
        if found[1] is not None and int(found[1]) != len(names) + 1:
            raise ValueError(f"{path}: {line!r} stands in place {len(names) + 1}; accepted: numbers that count from 1")
        names.append(found[2])
    if not names:
        raise ValueError(f"{path}: a class list without a class")
    check_class_names(str(path), names)
    return tuple(names)


def check_class_names(where: str, names: Sequence[str]) -> None:
    """Raise ValueError, with `where` they are from, unless class names differ in more than case."""
    seen: set[str] = set()
    for name in names:
        if not name or name.casefold() in seen:
            raise ValueError(f"{where}: class {name!r} is empty or named twice; accepted: names that differ in more than case")
        seen.add(name.casefold())


def read_split_list(path: Path, split: str) -> SplitList:
    """Read a list of videos.

    Args:
        path: text such as UCF101's trainlist01.txt, one video a line, with or without a label after it:
            `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1`. Or JSON such as FaceForensics++'s train.json, a list of names or of
            pairs of names, `[["071", "054"]]`; a pair stands for both, and for what was made of them: `071_054`, `054_071`.
        split: the split's name.

    Raises:
        ValueError: no text, or JSON that is no such list.
    """
    if path.suffix.lower() == ".json":
        return _read_pairs(path, split)
    entries = []
    for line in _lines(path):
        found = re.fullmatch(r"(.+?)\s+([0-9]+)", line)
        entries.append((line, found[1], int(found[2])) if found else (line, line, None))
    return SplitList(path, split, tuple(entries))


def _read_pairs(path: Path, split: str) -> SplitList:
    try:
        listed = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    groups: list[Any] = [[each] if isinstance(each, str) else each for each in listed] if isinstance(listed, list) else [None]
    if not all(isinstance(group, list) and all(isinstance(name, str) and name for name in group) for group in groups):
        raise ValueError(f'{path}: accepted is a list of names or of pairs of names, such as [["071", "054"]]')
    names = [name for group in groups for name in group]
    joined = tuple("_".join(pair) for group in groups for pair in permutations(group, 2))
    return SplitList(path, split, tuple((name, name, None) for name in names), joined)


def match_lists(
    lists: Sequence[SplitList],
    paths: Iterable[str],
    flat: Collection[str],
    class_names: Mapping[str, str],
    official: Sequence[str],
    max_missing: float,
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Find the videos that split lists mean.

    Args:
        lists: one for each split.
        paths: of all videos below the root.
        flat: those of them that lie in no class folder, and are known by their own name.
        class_names: class of each path, to be compared with the lists' labels; may be empty.
        official: class names by label, counted from 1 in the lists; may be empty.
        max_missing: share of the entries that may have no video.

    Returns:
        Split by path; and notes: remark → entries that have no video.

    Raises:
        ValueError: a video in two splits, a label that contradicts the class list, or too many entries without a video.
    """
    find = PathFinder(paths, flat)
    splits: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    for each in lists:
        may_lack = [(name, name, None) for name in each.joined]
        for line, entry, label in (*each.entries, *may_lack):
            found = find(line) or find(entry)  # a name may end in a number
            if not found and entry not in each.joined:
                notes.setdefault(f"listed in {each.file.name}, not in the tree", []).append(entry)
            for path in found:
                if splits.setdefault(path, each.split) != each.split:
                    raise ValueError(f"{each.file}: {entry!r} is in split {splits[path]!r} too; accepted: one for each video")
                if label is not None and official and path in class_names:
                    _check_label(each.file, entry, label, class_names[path], official)
    total = sum(len(each.entries) for each in lists)
    missing = [entry for entries in notes.values() for entry in entries]
    if len(missing) > max_missing * total:
        raise ValueError(
            f"{len(missing)} of {total} entries of {', '.join(each.file.name for each in lists)} are not in the tree: "
            f"{', '.join(missing[:_EXAMPLES])}; accepted: a share of {max_missing:g} (split.max_missing). To read a part of a "
            "dataset give --card-option split.max_missing=1, or in a run data.card_options.split.max_missing=1"
        )
    return splits, notes


# What `PathFinder` compares paths by, one after the other.
_STEPS: tuple[Callable[[str], str], ...] = (str, str.casefold, lambda path: without_extension(path).casefold())


class PathFinder:
    """Finds the videos that an entry of a list means: those whose path ends as the entry says.

    First as it is spelled, then without regard to case, then without extension either, as frame folders and converted
    videos have another or none, then, among videos that lie in no class folder, by their own name alone.
    """

    def __init__(self, paths: Iterable[str], flat: Collection[str] = ()) -> None:
        self._tables: tuple[dict[str, list[str]], ...] = ({}, {}, {})
        self._flat: dict[str, list[str]] = {}
        for path in paths:
            parts = path.split("/")
            for step, table in zip(_STEPS, self._tables, strict=True):
                for i in range(len(parts)):
                    table.setdefault(step("/".join(parts[i:])), []).append(path)
        for path in flat:
            self._flat.setdefault(own_name(path).casefold(), []).append(path)

    def __call__(self, entry: str) -> list[str]:
        """The paths that an entry means; none if it is empty."""
        parts = PurePosixPath(entry.replace("\\", "/")).parts
        entry = "/".join(part for part in parts if part not in ("/", ".."))
        for step, table in zip(_STEPS, self._tables, strict=True):
            if found := table.get(step(entry)):
                return found
        return self._flat.get(own_name(entry).casefold(), [])


def _check_label(file: Path, entry: str, label: int, name: str, official: Sequence[str]) -> None:
    listed = official[label - 1] if 1 <= label <= len(official) else "no class"
    if listed != name:
        raise ValueError(f"{file}: {entry!r} has label {label}, which is {listed} in the class list, and its class is {name}")


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, stripped, without a byte order mark."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from error
