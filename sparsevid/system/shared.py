"""Whether all ranks see one folder, which several hosts do only on storage that they share."""

import os
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path

from sparsevid.system.atomic import check_writable
from sparsevid.system.distributed import broadcast_object, gather_objects, is_main, rank, world_size

PATIENCE = 60.0  # seconds: for as long, file systems between hosts may keep in mind that there is no such file
LOOK = 0.05  # seconds between two looks


def check_shared(folder: Path, error: type[Exception], patience: float = PATIENCE) -> None:
    """See that what rank 0 writes into a folder is there for all ranks, and that they can write there too.

    All ranks call it together, before the work whose results they write there.

    Args:
        folder: as each rank names it; it is there on rank 0.
        error: what to raise.
        patience: seconds to wait for what is not to be seen.

    Raises:
        Exception: of the type `error`, on all ranks: a rank does not see it, or cannot write there; the message names both.
    """
    if world_size() == 1:
        return
    name = broadcast_object(f".shared.{secrets.token_hex(8)}")
    token, failure = folder / name, ""
    try:
        if is_main():
            token.touch()
    except OSError as reason:
        failure = f"cannot write into {folder.absolute()}: {reason.strerror}"
    if failure := broadcast_object(failure):  # else the file is there before anybody looks for it
        raise error(f"rank 0 {failure}")
    failures = gather_objects((socket.gethostname(), rank(), _failure(token, patience)))
    if is_main():
        with suppress(OSError):
            token.unlink()
    if wrong := [f"rank {number} on {host} {failure}" for host, number, failure in failures if failure]:
        raise error(
            f"{'; '.join(wrong)}. All ranks write into one folder, here {folder}: on several hosts it has to be on storage "
            "that they share, and to have one name on all of them"
        )


def _failure(token: Path, patience: float) -> str:
    """What keeps this rank from seeing a file, or from writing beside it; nothing if nothing does."""
    end = time.monotonic() + patience
    while not token.exists():
        if time.monotonic() > end:
            return f"does not see in {os.path.abspath(token.parent)} what rank 0 wrote there {patience:g} s ago"
        time.sleep(LOOK)
    try:
        check_writable(token.parent)
    except OSError as error:
        return f"cannot write there: {error}"
    return ""
