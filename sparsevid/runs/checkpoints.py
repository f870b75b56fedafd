"""Checkpoint folders of a run: where they lie, which are whole. Shared by training, which writes them, and sampling.

<run>/checkpoints/step-0001000/
    model/ ema/       config.json and safetensors, as `from_pretrained` reads them
    autoencoder/      what `decode` needs
    config.yaml       the resolved run
    training/         a file of each rank, and state.json: only for resuming
    checksums.json    SHA-256 of all of the above, written last
"""

import json
import os
import re
from itertools import count
from pathlib import Path

from sparsevid.system.checksums import file_sha256
from sparsevid.system.errors import ExpectedError
from sparsevid.system.logging import get_logger

CHECKSUMS = "checksums.json"
RESUME_ONLY = "training/"
logger = get_logger(__name__)


class CheckpointError(ExpectedError):
    """A checkpoint that cannot be used; the message says which and why."""


class UnreadableError(CheckpointError):
    """A checkpoint that the system does not let us read. It may be whole, and read again once its storage is back."""


def checkpoint_path(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return run_folder / "checkpoints" / f"step-{step:07d}"


def step_of(checkpoint: Path) -> int:
    """The optimizer step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step-"))


def list_checkpoints(run_folder: Path) -> list[Path]:
    """The run's finished checkpoints, oldest step first."""
    folder = run_folder / "checkpoints"
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-[0-9]{7,}", path.name)] if folder.is_dir() else []
    return sorted((path for path in found if path.is_dir()), key=step_of)


def newest_good(run_folder: Path, *, for_resuming: bool) -> Path | None:
    """The checkpoint of the latest step that verifies; damaged ones are passed over with a warning.

    Args:
        for_resuming: check what only resuming needs too.

    Raises:
        UnreadableError: with `for_resuming`, one that cannot be read, for going on from an older one would abandon it.
    """
    for path in reversed(list_checkpoints(run_folder)):
        try:
            verify(path, for_resuming=for_resuming)
        except CheckpointError as error:
            if for_resuming and isinstance(error, UnreadableError):
                raise UnreadableError(
                    f"{error}: try again when its storage is back, or move it away to go on from an older checkpoint"
                ) from error
            logger.warning("%s; trying an older checkpoint", error)
        else:
            return path
    return None


def set_aside_after(run_folder: Path, step: int) -> None:
    """Rename checkpoints of later steps than `step`: the run goes on from there, and they are damaged or abandoned."""
    for path in list_checkpoints(run_folder):
        if step_of(path) > step:
            names = (f"aside-{path.name}" + (f"-{number}" if number else "") for number in count())
            aside = next(each for each in map(path.with_name, names) if not each.exists())
            logger.warning("%s is not part of this run any more; renamed to %s", path, aside.name)
            os.replace(path, aside)


def verify(folder: Path, *, for_resuming: bool = True) -> None:
    """Compare every file with its recorded checksum.

    Args:
        for_resuming: check `training/` too, which must hold nothing but what was recorded.

    Raises:
        CheckpointError: no checkpoint there, a missing file, or a file whose contents changed.
        UnreadableError: a file cannot be read.
    """
    try:
        _verify(folder, for_resuming)
    except OSError as error:
        raise UnreadableError(f"{folder} cannot be read: {error}") from error


def _verify(folder: Path, for_resuming: bool) -> None:
    if not (folder / CHECKSUMS).is_file():
        raise CheckpointError(f"{folder} is not a finished checkpoint: it has no {CHECKSUMS}")
    try:
        recorded = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / CHECKSUMS} is damaged: {error}") from error
    if not isinstance(recorded, dict):
        raise CheckpointError(f"{folder / CHECKSUMS} is damaged: it holds no JSON object")
    for name, digest in recorded.items():
        if name.startswith(RESUME_ONLY) and not for_resuming:
            continue
        try:
            (folder / name).lstat()
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder}: {name} is missing") from error
        if not (folder / name).is_file():  # such as a link to storage that is not there
            raise UnreadableError(f"{folder} cannot be read: {name} leads to no file")
        if file_sha256(folder / name) != digest:
            raise CheckpointError(f"{folder}: {name} does not have its recorded checksum")
    if for_resuming:
        present = {path.relative_to(folder).as_posix() for path in (folder / RESUME_ONLY).rglob("*") if path.is_file()}
        if extra := sorted(present - set(recorded)):
            raise CheckpointError(f"{folder}: files that no checksum covers: {', '.join(extra)}")


def write_checksums(folder: Path) -> dict[str, str]:
    """Record the checksum of every file of a checkpoint. Files, folders and the record are on disk when it returns.

    Returns:
        What was recorded: SHA-256 by path inside the folder.
    """
    paths = sorted(folder.rglob("*"))
    for path in paths:
        put_on_disk(path)
    digests = {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths if path.is_file()}
    (folder / CHECKSUMS).write_text(json.dumps(digests, indent=2), encoding="utf-8")
    put_on_disk(folder / CHECKSUMS)
    put_on_disk(folder)
    return digests


def put_on_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, would survive the machine's end."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
