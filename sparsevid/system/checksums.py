"""SHA-256 of files, by which what was written is known to be what is read, and of values, by which they are told apart."""

import hashlib
import json
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20  # bytes read at a time


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; it is read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def json_sha256(values: Any, *, sort_keys: bool = False) -> str:
    """SHA-256 of values as JSON, in hexadecimal.

    Args:
        values: plain ones.
        sort_keys: whether the order of keys does not count.
    """
    return hashlib.sha256(json.dumps(values, sort_keys=sort_keys).encode("ascii")).hexdigest()
