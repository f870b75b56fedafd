"""Weight files of detectors: where they are published, where they are kept, and what they must hold."""

import fcntl
import hashlib
import io
import os
import secrets
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

from sparsevid.data.tree.manifest import cache_folder
from sparsevid.models.convert.checkpoint_file import read_checkpoint, read_pickle, unwrap
from sparsevid.system.checksums import file_sha256
from sparsevid.system.logging import get_logger, progress

logger = get_logger(__name__)

TIMEOUT = 30.0  # seconds without an answer or a byte: a machine may have an address and no way out
BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class WeightFile:
    """A published weight file.

    Attributes:
        file: its name in the cache.
        url: where it can be downloaded; None where it must be fetched by hand.
        sha256: checksums of files that are known to be right; empty where none is published.
        hint: one sentence: which file it is and where it is published.
        code: it is a program (TorchScript, say), which runs when it is loaded: one that is not known must be trusted.
    """

    file: str
    url: str | None
    sha256: tuple[str, ...]
    hint: str
    code: bool = False


def detector_folder() -> Path:
    """Where weight files are kept: `detectors` below $SPARSEVID_CACHE, or below ~/.cache/sparsevid."""
    return cache_folder().parent / "detectors"


def obtain(weights: WeightFile, path: Path | None = None, *, trust: bool = False) -> tuple[Path, str]:
    """A local file with the weights.

    Without `path` it is the one in the cache, which is downloaded if it is not there. Processes of one machine wait for
    each other, so that it is downloaded once.

    Args:
        weights: which file.
        path: a file to be used instead. Its checksum may be unknown if it is data; that is logged.
        trust: accept a program whose checksum is unknown. What is in the cache must still have a checksum known for its name,
            if there is one.

    Returns:
        The file, and its SHA-256 in hexadecimal.

    Raises:
        FileNotFoundError: there is no such file, or it cannot be downloaded; the message says what to get and where to put it.
        ValueError: its checksum is not the known one.
    """
    if path is not None:
        return path, _checked_by_user(weights, path, trust)
    kept = detector_folder() / weights.file
    if not kept.is_file():
        with _sole_writer(kept):
            if not kept.is_file():  # another process may have been first
                _download(weights, kept)
    found = file_sha256(kept)
    if weights.sha256 and found not in weights.sha256:
        raise ValueError(
            f"{kept} has SHA-256 {found}, and {weights.file} is known to have {_either(weights.sha256)}. {weights.hint} "
            "Remove it to have it fetched again, or give its path if it is meant to be another file"
        )
    if weights.code and not weights.sha256 and not trust:
        raise ValueError(_untrusted(weights, kept, found))
    return kept, found


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a file of safetensors or `torch.save`, on the CPU. Code in a pickle is never run.

    Args:
        path: the file. It holds a state dict, or a dictionary with one under a name that
            `sparsevid.models.convert.checkpoint_file.read_checkpoint` knows.

    Raises:
        ValueError: it is damaged, holds more than data, or has no state dict.
    """
    if path.suffix == ".safetensors":
        return read_checkpoint(path)
    content = read_pickle(path)
    try:
        return unwrap(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_script(path: Path, fingerprint: str) -> torch.jit.ScriptModule:
    """Load a TorchScript file whose checksum was accepted, on the CPU.

    Args:
        path: the file.
        fingerprint: its SHA-256.

    Raises:
        ValueError: it is damaged, is no TorchScript, or has changed since its checksum was taken.
    """
    content = path.read_bytes()
    # The bytes that are run are those that were checked.
    if (found := hashlib.sha256(content).hexdigest()) != fingerprint:
        raise ValueError(f"{path} has changed while it was being read: SHA-256 {found}, before {fingerprint}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that TorchScript is deprecated: no reader can change the file
            return torch.jit.load(io.BytesIO(content), map_location="cpu")
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged, or is no TorchScript file: {error}") from error


def _checked_by_user(weights: WeightFile, path: Path, trust: bool) -> str:
    """SHA-256 of a file that the user gave."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}. {weights.hint}")
    found = file_sha256(path)
    if found not in weights.sha256 and not trust:
        if weights.code:
            raise ValueError(_untrusted(weights, path, found))
        known = _either(weights.sha256) if weights.sha256 else "none"
        logger.warning("%s has SHA-256 %s; known for %s: %s. It is used as it is", path, found, weights.file, known)
    return found


def _untrusted(weights: WeightFile, path: Path, found: str) -> str:
    known = f"known for {weights.file}: {_either(weights.sha256)}" if weights.sha256 else "none is known"
    return (
        f"{path} is a program, and its SHA-256 {found} is not a known one; {known}. {weights.hint} "
        "If you know where it comes from, load it with trust=True (--trust-detector)"
    )


@contextmanager
def _sole_writer(kept: Path) -> Iterator[None]:
    """Hold the lock of a file in the cache; its folder is made."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.with_name(f".{kept.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(weights: WeightFile, kept: Path) -> None:
    """Fetch a file under a temporary name, check it, and rename it."""
    if weights.url is None:
        raise FileNotFoundError(f"{kept} is not there, and cannot be fetched. {weights.hint} Put it there, or give its path")
    draft = kept.with_name(f".{kept.name}.{secrets.token_hex(4)}.partial")
    digest = hashlib.sha256()
    logger.info("fetching %s from %s", kept, weights.url)
    try:
        # torch.hub's download knows neither a timeout nor several checksums.
        with urllib.request.urlopen(weights.url, timeout=TIMEOUT) as answer, draft.open("wb") as file:
            size = int(answer.headers.get("Content-Length") or 0)
            with progress(total=size or None, unit="B", unit_scale=True, desc=weights.file) as bar:
                while block := answer.read(BLOCK):
                    file.write(block)
                    digest.update(block)
                    bar.update(len(block))
                if size and bar.n != size:
                    raise ConnectionError(f"{bar.n} of {size} bytes came")
        if weights.sha256 and digest.hexdigest() not in weights.sha256:
            raise ValueError(
                f"what {weights.url} gave has SHA-256 {digest.hexdigest()}, and {weights.file} is known to have "
                f"{_either(weights.sha256)}; it was not kept. {weights.hint}"
            )
        os.replace(draft, kept)
    except (OSError, HTTPException) as error:
        raise FileNotFoundError(
            f"{kept} is not there, and {weights.url} could not be fetched: {error}. {weights.hint} "
            "Fetch it on a machine with a network and put it there, or give its path"
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def _either(checksums: tuple[str, ...]) -> str:
    return " or ".join(checksums)
