"""Files and folders that appear whole: written under a temporary name beside their own, then renamed."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder, for a file or a folder; renamed to `path` if all went well, removed if not."""
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


def _exchange(draft: Path, path: Path) -> None:
    """Put a folder in the place of another, which a rename alone cannot do unless that is empty."""
    replaced = draft.with_suffix(".replaced")
    os.replace(path, replaced)
    try:
        os.replace(draft, path)
    except OSError:
        os.replace(replaced, path)
        raise
    shutil.rmtree(replaced)
