"""Files and folders that appear whole: written under a temporary name beside their own, then renamed.

What a killed process may leave beside NAME: `.NAME.XXXXXXXX.partial`, a draft, of which nothing is needed; and, of a folder,
`.NAME.replaced`, in whose place another was being put. If there is no NAME then, this is what it was, and the next write brings
it back before it begins; else it is what is left of its removal, and goes when the folder is replaced again.
"""

import json
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
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON under a temporary name that is then renamed, so that a file of this name is whole."""
    with renamed(path) as draft:
        draft.write_text(json.dumps(values) + "\n", encoding="utf-8")


def check_writable(folder: Path) -> None:
    """Try to write into a folder, before the work whose results are to be written there.

    Raises:
        OSError: it cannot be written to; with the reason.
    """
    try:
        tempfile.TemporaryFile(dir=folder).close()  # permissions alone do not know read-only file systems, or root
    except OSError as error:
        raise OSError(f"{folder} cannot be written to: {error.strerror}") from error


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
