"""SHA-256 of files, by which what was written is known to be what is read."""

import hashlib
from pathlib import Path

_BLOCK = 1 << 20  # bytes read at a time


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; it is read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
