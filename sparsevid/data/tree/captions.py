"""The captions of a tree's videos: in a text file of each, or in tables, CSV or JSON lines, that name them by their paths."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from sparsevid.data.tree.lists import PathFinder, below_or_beside
from sparsevid.data.tree.manifest import Manifest
from sparsevid.data.tree.walk import own_name
from sparsevid.system.distributed import from_main, patient_group
from sparsevid.system.logging import get_logger, progress
from sparsevid.system.threads import thread_pool

CAPTION_RULES = ("none", "beside", "csv", "jsonl")
MISSING = ("null", "exclude", "error")
DEFAULT_FILES = {"none": (), "beside": ("{folder}/{name}.txt",), "csv": ("captions.csv",), "jsonl": ("captions.jsonl",)}
NO_CAPTION = 0  # the place of "" in `Captions.texts`
READERS = 8  # threads that read text files
FIELD_BYTES = 1 << 24  # of a CSV file's field
_NAMED = re.compile(r"\{(\w+)\}")
_EXAMPLES = 3  # paths that a message names

logger = get_logger(__name__)


@dataclass(frozen=True)
class CaptionRules:
    """Where captions are, and what is done about videos that have none.

    Attributes:
        rule: `none`; `beside`: in a text file of each video, one caption a line; `csv` or `jsonl`: in tables.
        files: of `beside`, one: the path of a video's text file below the root, in which {folder} stands for the video's folder
            and {name} for its own name without extension; of tables, their paths below the root or beside it. Default:
            `{folder}/{name}.txt`, `captions.csv`, `captions.jsonl`.
        path: of tables: a video's path, in which the name of a column (CSV) or key (JSON lines) in braces stands for its value.
            It is looked for as an entry of a split list is.
        caption: of tables: the column or key of the caption; in JSON lines it may be a list of them.
        missing: what a video without a caption is: `null`, one with the empty caption; `exclude`, left out; `error`.

    Raises:
        ValueError: a value that is not accepted.
    """

    rule: str = "none"
    files: tuple[str, ...] = ()
    path: str = "{path}"
    caption: str = "caption"
    missing: str = "null"

    def __post_init__(self) -> None:
        for key, accepted in (("rule", CAPTION_RULES), ("missing", MISSING)):
            if getattr(self, key) not in accepted:
                raise ValueError(f"captions.{key} is {getattr(self, key)!r}; accepted: {', '.join(accepted)}")
        if not self.files:
            object.__setattr__(self, "files", DEFAULT_FILES[self.rule])
        for file in self.files:
            if not file.strip() or PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                raise ValueError(f"captions.files has {file!r}; accepted: paths below the root")
        if self.rule == "beside":
            names = {name for file in self.files for name in _NAMED.findall(file)}
            if len(self.files) != 1 or "name" not in names or names - {"folder", "name"}:
                raise ValueError(
                    f"captions.files is {list(self.files)}; accepted for captions.rule=beside: one path with {{name}}, and "
                    "with {folder} if need be, such as {folder}/{name}.txt"
                )
        if not _NAMED.search(self.path) or not self.caption:
            key, value = ("path", self.path) if self.caption else ("caption", self.caption)
            raise ValueError(f"captions.{key} is {value!r}; accepted: a path with a column in braces, and a column's name")


@dataclass(frozen=True)
class Captions:
    """The captions of a manifest's videos.

    Attributes:
        texts: every caption once; the first is the empty one, which means "no prompt".
        places: path of a video → places of its captions in `texts`; without those that have none.
        missing: paths of videos without a caption.
        notes: remark → rows of tables.
    """

    texts: tuple[str, ...]
    places: Mapping[str, tuple[int, ...]]
    missing: tuple[str, ...]
    notes: Mapping[str, list[str]]

    def of(self, path: str) -> tuple[int, ...]:
        """Places of a video's captions; of one without, that of the empty one."""
        return self.places.get(path, (NO_CAPTION,))


def open_captions(manifest: Manifest, rules: CaptionRules, *, tree: Manifest | None = None, required: bool = True) -> Captions:
    """Read the captions of a manifest's videos: rank 0 does, the others are told. All ranks call it together.

    Args:
        manifest: the videos.
        rules: where captions are.
        tree: all videos that tables may name, if `manifest` is a part of them.
        required: whether videos without a caption are as `missing` says, and it is an error if all are; else nothing is said.

    Returns:
        The captions; if they are required, how many videos have none is logged.

    Raises:
        FileNotFoundError: no table there.
        ValueError: the card says nothing of captions, a table or text file is malformed, no video has a caption, or one has
            none and `missing` is `error`.
    """
    with patient_group() as group:
        return from_main(lambda: read_captions(manifest, rules, tree, required), (OSError, ValueError), group)


def captioned(manifest: Manifest, captions: Captions, rules: CaptionRules) -> Manifest:
    """The videos to be used: those with a caption, if others are to be left out."""
    if rules.missing != "exclude" or not captions.missing:
        return manifest
    missing = set(captions.missing)
    return replace(manifest, videos=tuple(video for video in manifest.videos if video.path not in missing))


def read_captions(manifest: Manifest, rules: CaptionRules, tree: Manifest | None = None, required: bool = True) -> Captions:
    """What `open_captions` does on rank 0."""
    if rules.rule == "none" and not required:
        return Captions(("",), {}, (), {})
    if rules.rule == "none":
        accepted = ", ".join(CAPTION_RULES[1:])
        raise ValueError(f"{manifest.root}: the card says nothing of captions (captions.rule is none; accepted: {accepted})")
    paths = list(dict.fromkeys(video.path for video in manifest.videos))
    notes: dict[str, list[str]] = {}
    if rules.rule == "beside":
        found = _beside(manifest.root, paths, rules)
        looked = f"{rules.files[0]} of each"
    else:
        found = _tables(tree or manifest, rules, notes)
        looked = ", ".join(rules.files)
    remarks = [f"{remark}: {len(rows)}, such as {', '.join(rows[:_EXAMPLES])}" for remark, rows in notes.items()]
    missing = tuple(path for path in paths if not found.get(path))
    if len(missing) == len(paths) and required:
        rows = "".join(f"; {remark}" for remark in remarks)
        raise ValueError(f"{manifest.root}: none of {len(paths)} videos has a caption; looked for in {looked}{rows}")
    if missing and required:
        named = ", ".join(missing[:_EXAMPLES])
        text = f"{manifest.root}: {len(missing)} of {len(paths)} videos have no caption, such as {named}"
        if rules.missing == "error":
            raise ValueError(f"{text}; captions.missing accepts null and exclude too")
        logger.warning("%s: %s", text, "they are left out" if rules.missing == "exclude" else "theirs is the empty one")
    for remark in remarks if required else ():
        logger.warning("%s: %s", manifest.root, remark)
    numbers = {"": NO_CAPTION}
    places = {path: tuple(numbers.setdefault(text, len(numbers)) for text in found[path]) for path in paths if found.get(path)}
    return Captions(tuple(numbers), places, missing, notes)


def _beside(root: Path, paths: list[str], rules: CaptionRules) -> dict[str, tuple[str, ...]]:
    """Captions by path, out of text files: their lines that are not blank."""

    def read(path: str) -> tuple[str, ...]:
        folder, name = str(PurePosixPath(path).parent), own_name(path)
        file = root / _NAMED.sub(lambda found: folder if found[1] == "folder" else name, rules.files[0])
        try:
            return _texts(file.read_text(encoding="utf-8-sig").splitlines())
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is no UTF-8 text: {error}") from error

    with thread_pool(READERS) as pool:
        texts = progress(pool.map(read, paths, chunksize=1024), total=len(paths), desc="captions", delay=2)
        return dict(zip(paths, texts, strict=True))


def _tables(tree: Manifest, rules: CaptionRules, notes: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """Captions by path, out of tables."""
    root, find = tree.root, PathFinder(dict.fromkeys(video.path for video in tree.videos))
    found: dict[str, dict[str, None]] = {}
    for name in rules.files:
        table = below_or_beside(root, name)
        if table is None:
            raise FileNotFoundError(f"no table of captions {name} in {root} or beside it (captions.files)")
        for where, row in (_csv_rows if rules.rule == "csv" else _json_rows)(table, rules):
            entry = _NAMED.sub(partial(_value, row), rules.path)
            parts = PurePosixPath(entry.replace("\\", "/")).parts
            if not entry or ".." in parts or PurePosixPath(entry).is_absolute():
                raise ValueError(f"{where}: the path {entry!r} is not below {root}; accepted: paths in the tree")
            videos = find(entry)
            if len(videos) > 1:
                raise ValueError(f"{where}: {entry!r} means {len(videos)} videos, {videos[0]} and {videos[1]}; accepted: one")
            if not videos:
                notes.setdefault(f"in {table.name}, not in the tree", []).append(entry)
                continue
            captions = row[rules.caption]
            for text in _texts(captions if isinstance(captions, list) else [captions]):
                mine = found.setdefault(videos[0], {})
                if text in mine:
                    notes.setdefault(f"twice in {table.name}", []).append(f"{entry}: {text!r}")
                mine[text] = None
    return {path: tuple(texts) for path, texts in found.items()}


def _value(row: Mapping[str, object], named: re.Match[str]) -> str:
    """What a row has for a column that is named."""
    return str(row[named[1]]).strip()


def _csv_rows(table: Path, rules: CaptionRules) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row of a CSV file is, and its values by column. Of a .tsv file columns are parted by tabs."""
    wanted = [*_NAMED.findall(rules.path), rules.caption]
    csv.field_size_limit(FIELD_BYTES)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",", strict=True)
            columns = list(rows.fieldnames or ())
            _check_columns(str(table), columns, wanted)
            for row in rows:
                where = f"{table}, line {rows.line_num}"
                if None in row or None in row.values():
                    count = len(columns) + len(row.get(None) or ()) - sum(value is None for value in row.values())
                    raise ValueError(f"{where}: {count} fields, and {len(columns)} columns; texts with commas stand in quotes")
                yield where, row
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is no UTF-8 text: {error}") from error
    except csv.Error as error:
        raise ValueError(f"{table} is no CSV, near line {rows.line_num + 1}: {error}") from error


def _check_columns(where: str, columns: list[str], wanted: list[str]) -> None:
    twice = next((name for name in wanted if columns.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{where}: the column {twice!r} is there {columns.count(twice)} times; accepted: once")
    lacking = next((name for name in wanted if name not in columns), None)
    if lacking is not None:
        known = ", ".join(columns) or "none"
        raise ValueError(f"{where}: no column {lacking!r}; there are: {known} (captions.path, captions.caption name columns)")


def _json_rows(table: Path, rules: CaptionRules) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each line of JSON is, and its values by key."""
    wanted = [*_NAMED.findall(rules.path), rules.caption]
    try:
        with table.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{table}, line {number}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{where} is no JSON: {error}") from error
                if not isinstance(row, dict):
                    raise ValueError(f'{where} is no object; accepted: one a line, such as {{"path": …, "caption": …}}')
                _check_columns(where, list(row), wanted)
                captions = row[rules.caption]
                if not all(isinstance(text, str) for text in (captions if isinstance(captions, list) else [captions])):
                    raise ValueError(f"{where}: {rules.caption} is {captions!r}; accepted: a text or a list of texts")
                yield where, row
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is no UTF-8 text: {error}") from error


def _texts(captions: list[str]) -> tuple[str, ...]:
    """Captions without the white space around them; blank ones are none."""
    return tuple(text for each in captions if (text := each.strip()))
