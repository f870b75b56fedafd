"""Files and folders that appear whole: written under a temporary name beside their own, then renamed.

What a killed process may leave beside NAME: `.NAME.XXXXXXXX.partial`, a draft, of which nothing is needed; and, of a folder,
`.NAME.replaced`, in whose place another was being put. If there is no NAME then, this is what it was, and the next write brings
it back before it begins; else it is what is left of its removal, and goes when the folder is replaced again.
"""

import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder, for a file or a folder; renamed to `path` if all went well, removed if not.

    Several processes may write a file at once, and the last one's stays; a folder is written by one at a time.
    """
    replaced = _replaced(path)
    if replaced.is_dir() and not path.exists():
        os.replace(replaced, path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")  # other processes may write it too
    try:
        yield draft
        if draft.is_dir() and path.is_dir():
            _exchange(draft, path)
        else:
            os.replace(draft, path)
    except OSError as error:
        # A write, as on a full disk, does not know its file, and the draft's name is none that the user gave.
        if error.errno is not None and error.filename in (None, str(draft), draft):
            raise OSError(error.errno, error.strerror, str(path)) from error  # PyAV's own cannot be told its file
        raise
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)


@contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """A draft folder whose files move into `folder` once all are written, the topmost last; nothing is left of them if not.

    What is in `folder` stays, also a file of the same name; it is made if it is missing.
    """
    folder = folder.resolve()
    place = folder if folder.is_dir() else folder.parent  # beside a mounted folder is another disk, and no file moves there
    draft = place / f".{folder.name}.{secrets.token_hex(4)}.partial"
    try:
        draft.mkdir(parents=True)
        yield draft
        for each in sorted((path for path in draft.rglob("*") if path.is_file()), key=lambda path: -len(path.parts)):
            target = folder / each.relative_to(draft)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                os.replace(each, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def make_writable(folder: Path) -> None:
    """Make a folder, with those above it, before the work whose results are to be written there.

    Raises:
        OSError: as `check_writable`, or it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Try to write into a folder, before the work whose results are to be written there.

    Raises:
        OSError: it cannot be written to; with the reason.
    """
    try:
        tempfile.TemporaryFile(dir=folder).close()  # permissions alone do not know read-only file systems, or root
    except OSError as error:
        raise OSError(f"{folder} cannot be written to: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file of text, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with renamed(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any, *, indent: int | None = 2) -> None:
    """Write plain values as a file of JSON, all of it or nothing; of a link, what it names is replaced.

    Args:
        path: the file; its folder is made.
        values: as of `json_text`.
        indent: blanks of a level; None: one line.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path.resolve(), json_text(values, indent) + "\n")


def json_text(values: Any, indent: int | None = 2) -> str:
    """Plain values as JSON that every reader takes: numbers that JSON has no form for are words, `inf`, `-inf` and `nan`."""
    return json.dumps(_in_json(values), indent=indent, allow_nan=False)


def _in_json(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _in_json(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_in_json(value) for value in values]
    return str(values) if isinstance(values, float) and not math.isfinite(values) else values


def _exchange(draft: Path, path: Path) -> None:
    """Put a folder in the place of another, which a rename alone cannot do unless that is empty."""
    replaced = _replaced(path)
    if replaced.is_dir():
        shutil.rmtree(replaced)
    os.replace(path, replaced)
    try:
        os.replace(draft, path)
    except OSError:
        os.replace(replaced, path)
        raise
    shutil.rmtree(replaced)


def _replaced(path: Path) -> Path:
    """Where a folder waits while another is put in its place."""
    return path.with_name(f".{path.name}.replaced")
