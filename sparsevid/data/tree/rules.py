"""How a tree is read: which of its folders are classes and splits, what the dataset's lists say, what is passed over."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path, PurePosixPath

from sparsevid.data.tree.lists import (
    SplitList,
    all_below_or_beside,
    below_or_beside,
    check_class_names,
    match_lists,
    read_class_list,
    read_split_list,
)
from sparsevid.data.tree.walk import MEDIA, own_name
from sparsevid.system.logging import get_logger, printable

LABEL_RULES = ("none", "folder", "file")
LABEL_ORDERS = ("official", "sorted")
SPLIT_RULES = ("none", "folders", "lists")
_FOLD = re.compile(r"\{fold(?::0([1-9])d)?\}")

logger = get_logger(__name__)


@dataclass(frozen=True)
class SplitRules:
    """Which split a video belongs to.

    Attributes:
        rule: `none`; `folders`: the first folder on its path that is one of `folders`; `lists`: the list that names it,
            or, where the tree has no lists, as `folders`.
        folders: split → names of its folders, compared with whole components of a path.
        lists: split → path of its list, below the root or beside it; `{fold}` or `{fold:02d}` stands for the fold, and with a
            `*` in its name it is all lists of such names.
        fold: which of several official divisions.
        max_missing: share of the lists' entries that may be absent from the tree, from 0 to 1.

    Raises:
        ValueError: a value that is not accepted.
    """

    rule: str = "none"
    folders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    lists: Mapping[str, str] = field(default_factory=dict)
    fold: int = 1
    max_missing: float = 0.01

    def __post_init__(self) -> None:
        _accept("split.rule", self.rule, SPLIT_RULES)
        if self.fold < 1:
            raise ValueError(f"split.fold is {self.fold}; accepted: numbers from 1")
        if not 0 <= self.max_missing <= 1:
            raise ValueError(f"split.max_missing is {self.max_missing}; accepted: a share from 0 to 1")
        for path in self.lists.values():
            _accept_relative("split.lists", path)
        for rule, given in (("folders", self.folders), ("lists", self.lists)):
            if self.rule == rule and not given:
                raise ValueError(f"split.rule is {rule!r}, and split.{rule} names none")
        owners: dict[str, str] = {}
        for split, names in self.folders.items():
            for name in names:
                if owners.setdefault(name, split) != split:
                    raise ValueError(f"split.folders: {name!r} stands for {owners[name]!r} and for {split!r}")

    @cached_property
    def by_folder(self) -> dict[str, str]:
        """Folder name → split."""
        return {name: split for split, names in self.folders.items() for name in names}

    def list_paths(self) -> dict[str, str]:
        """Split → path of its list for the fold."""
        return {split: _FOLD.sub(lambda found: f"{self.fold:0{found[1] or 1}d}", path) for split, path in self.lists.items()}


@dataclass(frozen=True)
class TreeRules:
    """All that a walk has to know of a tree.

    Attributes:
        label_rule: `none`; `folder`: the first folder on a path that is neither a split nor a container, or, where no
            folder is, what `label_pattern` finds; `file`: each video its own class.
        label_order: of class names from a list: `official`, as the list has them, or `sorted`, as Python sorts strings.
            Without a list names are sorted in either case.
        class_list: path of a list of all class names, one a line, numbers before them allowed; below the root or beside it.
        classes: class names in official order, for trees without the list.
        label_pattern: regular expression with one group, matched from the start of a video's own name.
        containers: names of folders that are no classes.
        ignore: names or `fnmatch` patterns of folders that are passed over.
        split: which split a video belongs to.
        media: `video`, or `image`: every image file is a video of one frame.
        fps: frames a second of frame folders and images, which do not say.
        split_at_gaps: make several videos of a frame folder whose numbering has gaps.
        display: take frames as a player shows them, see `display`; else as they are stored.

    Raises:
        ValueError: a value that is not accepted.
    """

    label_rule: str = "none"
    label_order: str = "official"
    class_list: str | None = None
    classes: Sequence[str] = ()
    label_pattern: str | None = None
    containers: Sequence[str] = ()
    ignore: Sequence[str] = ()
    split: SplitRules = field(default_factory=SplitRules)
    media: str = "video"
    fps: float = 25.0
    split_at_gaps: bool = False
    display: bool = True

    def __post_init__(self) -> None:
        _accept("label_rule", self.label_rule, LABEL_RULES)
        _accept("label_order", self.label_order, LABEL_ORDERS)
        _accept("media", self.media, MEDIA)
        if self.class_list is not None:
            _accept_relative("class_list", self.class_list)
        if not 0 < self.fps < math.inf:
            raise ValueError(f"fps is {self.fps}; accepted: numbers above 0")
        check_class_names("classes", self.classes)
        if self.label_pattern is not None:
            try:
                groups = re.compile(self.label_pattern).groups
            except re.error as error:
                raise ValueError(f"label_pattern {self.label_pattern!r} is no regular expression: {error}") from error
            if groups != 1:
                raise ValueError(f"label_pattern {self.label_pattern!r} has {groups} groups; accepted: one, the class name")

    @cached_property
    def no_classes(self) -> frozenset[str]:
        """Names of folders that are passed through on the way to a class folder."""
        return frozenset(self.containers) | frozenset(self.split.by_folder)


@dataclass(frozen=True)
class Sorting:
    """What the rules say of a tree's videos.

    Attributes:
        classes: class names by label.
        labels: path → label, or None where there are no labels; paths without a class are absent.
        splits: path → split; paths in no split are absent.
        notes: reason → entries of lists or paths.
    """

    classes: tuple[str, ...] = ()
    labels: Mapping[str, int | None] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, list[str]] = field(default_factory=dict)


def apply_rules(root: Path, paths: Sequence[str], rules: TreeRules) -> Sorting:
    """Give every video its label and its split.

    Args:
        root: the tree, for the lists in it.
        paths: of the videos below the root.
        rules: how the tree is read.

    Returns:
        Classes, labels and splits.

    Raises:
        FileNotFoundError: a list that the rules name is not there, and nothing stands in for it.
        ValueError: a class folder that is not in the class list; a list that is malformed, that contradicts the class list
            or another list, or of which too much is missing in the tree.
    """
    official = _official_classes(root, rules)
    classes, labels = _labels(paths, rules, official)
    if rules.split.rule == "lists":
        lists = _find_lists(root, rules.split)
        if lists:
            flat = [path for path in labels if _class_folder(path, rules) is None]
            names = {path: classes[label] for path, label in labels.items() if label is not None}
            splits, notes = match_lists(lists, labels, flat, names, official, rules.split.max_missing)
            return Sorting(classes, labels, splits, notes)
    folders = {} if rules.split.rule == "none" else rules.split.by_folder
    named = {path: next((part for part in path.split("/")[:-1] if part in folders), None) for path in labels}
    if rules.split.rule == "lists":
        wanted = ", ".join(rules.split.list_paths().values())
        level = logging.INFO if any(named.values()) else logging.WARNING  # folders alone are as good a layout
        logger.log(level, "%s: no lists (%s) in it or beside it: splits are read from folders", root, wanted)
    return Sorting(classes, labels, {path: folders[name] for path, name in named.items() if name is not None})


def _official_classes(root: Path, rules: TreeRules) -> tuple[str, ...]:
    if rules.label_rule != "folder" or not (rules.class_list or rules.classes):
        return ()
    path = below_or_beside(root, rules.class_list) if rules.class_list else None
    if path is not None:
        return read_class_list(path)
    if not rules.classes:
        raise FileNotFoundError(f"no class list {rules.class_list} in {root} or beside it, and no `classes` instead")
    logger.info("%s: class names are the card's own%s", root, f": no {rules.class_list}" if rules.class_list else "")
    return tuple(rules.classes)


def _labels(paths: Sequence[str], rules: TreeRules, official: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, int | None]]:
    if rules.label_rule == "none":
        return (), dict.fromkeys(paths)
    # As text: names of classes are written into configs, and a folder's may be in bytes of another time, such as GBK.
    if rules.label_rule == "file":
        names = {path: printable(own_name(path)) for path in paths}
        if len(set(names.values())) < len(names):
            names = {path: printable(path) for path in paths}
    else:
        names = {path: printable(name) for path in paths if (name := _class_name(path, rules)) is not None}
    if official:
        canonical = {found: _canonical(found, official) for found in dict.fromkeys(names.values())}
        names = {path: canonical[name] for path, name in names.items()}
    in_order = official and rules.label_order == "official"
    classes = tuple(official if in_order else sorted(official or set(names.values())))
    number = {name: label for label, name in enumerate(classes)}
    return classes, {path: number[name] for path, name in names.items()}


def _class_name(path: str, rules: TreeRules) -> str | None:
    name = _class_folder(path, rules)
    if name is None and rules.label_pattern is not None:
        found = re.match(rules.label_pattern, own_name(path))
        name = found[1] if found else None
    return name


def _class_folder(path: str, rules: TreeRules) -> str | None:
    return next((part for part in path.split("/")[:-1] if part not in rules.no_classes), None)


def _canonical(name: str, official: tuple[str, ...]) -> str:
    """The list's own spelling of a class name."""
    if name in official:
        return name
    for known in official:
        if known.casefold() == name.casefold():
            return known
    near = get_close_matches(name, official, n=1)
    hint = f"; nearest: {near[0]!r}" if near else ""
    raise ValueError(
        f"class {name!r} is not among the {len(official)} of the class list{hint}. If it is no class, name its folder "
        "in `ignore`, or in `containers` if classes lie in it"
    )


def _find_lists(root: Path, split: SplitRules) -> list[SplitList]:
    """The split lists; none if the tree has none, nor the folder in which they should be."""
    wanted = split.list_paths()
    found = {name: all_below_or_beside(root, path) for name, path in wanted.items()}
    missing = [wanted[name] for name, paths in found.items() if not paths]
    homes = [(base / path).parent for path in missing if "/" in path for base in (root, root.resolve().parent)]
    if missing and (len(missing) < len(wanted) or any(home.is_dir() for home in homes)):
        raise FileNotFoundError(f"no split list {missing[0]} in {root} or beside it (fold {split.fold})")
    return [read_split_list(path, name) for name, paths in found.items() for path in paths]


def _accept(key: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{key} is {value!r}; accepted: {', '.join(accepted)}")


def _accept_relative(key: str, value: str) -> None:
    path = PurePosixPath(value)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{key} is {value!r}; accepted: a path below the root")
