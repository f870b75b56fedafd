"""The right to write into a folder: one process has it at a time."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from types import TracebackType

from sparsevid.system.distributed import from_main
from sparsevid.system.logging import get_logger

LOCK = ".lock"  # a file in the folder, for as long as somebody writes there
# What says that another process has the lock, and that a file system has none.
_TAKEN, _UNKNOWN = (errno.EACCES, errno.EAGAIN), (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

logger = get_logger(__name__)
_holders: dict[Path, list["FolderLock"]] = {}  # of this process
_held_here = Lock()


class LockedError(ValueError):
    """Another process writes into the folder; the message names it."""


class FolderLock:
    """The right to write into a folder, from when it is made to `release`, to the end of the block that it is entered for, or
    to the end of the process, however that comes. Inside one process it keeps nobody out: who has it shares it, until the last
    one releases it.

    Args:
        folder: made if it is missing.
        doing: what is done to it, for the message of who comes second, such as `trained`.
        beside: the file that is locked lies beside the folder, which need not be there.

    Raises:
        LockedError: another process has it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, doing: str = "written", *, beside: bool = False) -> None:
        self.path = folder.with_name(folder.name + LOCK) if beside else folder / LOCK
        self._file: int | None = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path = self.path.parent.resolve() / self.path.name
        with _held_here:
            self._take(folder, doing)

    def _take(self, folder: Path, doing: str) -> None:
        if holders := _holders.get(self.path):  # a second file would give the lock up when it is closed
            held = holders[0]._file
            if held is not None and self._is_there(held):
                self._file = held
                holders.append(self)
                return
            del _holders[self.path]  # the folder was removed, and made anew
        while self._file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_there(file):
                    os.ftruncate(file, 0)
                    os.pwrite(file, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                    self._file = file
                    _holders[self.path] = [self]
            except OSError as error:
                if error.errno in _UNKNOWN:
                    logger.warning("%s is on storage without locks (%s): see that no two processes write there", folder, error)
                    return
                if error.errno not in _TAKEN:
                    raise
                holder = os.pread(file, 1000, 0).decode(errors="replace").strip()
                found = f"{folder} is being {doing} by {holder or 'another process'}"
                raise LockedError(f"{found}: wait for its end, stop it, or take another name") from error
            finally:
                if self._file is None:
                    os.close(file)

    def _is_there(self, file: int) -> bool:
        """Whether a file that was opened under this name still has it: who had the lock before may just have removed it."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        return False

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """Let others write there."""
        with _held_here:
            holders = _holders.get(self.path, [])
            if self._file is None or self not in holders:
                return
            holders.remove(self)
            if not holders:
                del _holders[self.path]
                with suppress(OSError):  # a folder that was removed, or a file system that cannot be written any more
                    self.path.unlink()
                os.close(self._file)
            self._file = None


@contextmanager
def folder_locked(folder: Path, doing: str = "written", *, beside: bool = False) -> Iterator[None]:
    """Rank 0 has the right to write into a folder, for all ranks, which enter and leave this together.

    Raises:
        LockedError, OSError: as `FolderLock`, on all ranks.
    """
    held: list[FolderLock] = []
    from_main(lambda: held.append(FolderLock(folder, doing, beside=beside)), (LockedError, OSError))
    try:
        yield
    finally:
        for lock in held:
            lock.release()


@contextmanager
def file_locked(path: Path) -> Iterator[int]:
    """The right to add to a file, which is made if it is missing: who else wants it waits, also on another machine with the
    same storage.

    Yields:
        Its descriptor, for reading and for writing at the end.

    Raises:
        OSError: the file cannot be written.
    """
    file = None
    while file is None:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX)
            there = os.path.samestat(os.fstat(file), os.stat(path))
        except FileNotFoundError:  # it was removed, or another was put in its place, before the lock was had
            there = False
        except OSError as error:
            if error.errno not in _UNKNOWN:
                os.close(file)
                raise
            logger.warning("%s is on storage without locks (%s): see that no two processes write there", path, error)
            there = True
        if not there:
            os.close(file)
            file = None
    try:
        yield file
    finally:
        os.close(file)
