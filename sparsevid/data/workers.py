"""Processes that load clips: how they begin, that they end with the process they work for, and what is said of one that died.

They are not forked from that process: a fork takes along locks and objects of threads that it does not have (of a decoder, of
CUDA, of DeepSpeed), and dies of them. They come from a server process, which is therefore their parent, and which lives for as
long as one of them does. So nothing ends them by itself: each watches the process that it works for.
"""

import os
import resource
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process, process, util
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.queues import Queue
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from sparsevid.system.errors import ExpectedError
from sparsevid.system.logging import get_logger

SHARED_MEMORY = "/dev/shm"
MEGABYTE = 1 << 20
LOOK = 1.0  # seconds between two looks at whether the server is alive
_NO_FILES = ("Too many open files", "ancdata")  # the system's words, and Python's for a file that came without its number
_LOST = 255  # what `multiprocessing` says of a process whose server is gone
END = 5.0  # seconds for killed workers to be gone
SOCKET_NAME = 100  # bytes that Linux takes for a socket's name, less than 108 for what differs between versions of Python
_BEHIND = "/pymp-01234567/listener-01234567"  # what `multiprocessing` puts behind the folder
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/usr/tmp")

logger = get_logger(__name__)


class WorkerError(ExpectedError):
    """A loader's process ended; the message says how, and what may have ended it."""


class _Worker(ForkServerProcess):
    """A process that SIGKILL ends wherever SIGTERM is meant to.

    SIGTERM is held back from workers, for a scheduler may send it to all processes of a job; they have nothing to save. Without
    this, `multiprocessing` would wait for them at the exit of the process they work for, for ever.
    """

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> Any:
        started = ForkServerProcess._Popen(process_obj)
        started.terminate = started.kill  # type: ignore[method-assign]  # of this one process, which nothing else reaches
        return started


class _Queue(Queue):
    """A queue whose reader does not wait for ever for what a worker failed to send."""

    @staticmethod
    def _on_queue_feeder_error(error: Exception, thing: object) -> None:
        Queue._on_queue_feeder_error(error, thing)  # type: ignore[attr-defined]  # of CPython; it prints the error
        if get_worker_info() is not None:
            os._exit(1)


class WorkerContext(ForkServerContext):
    """What a `DataLoader` makes its workers and queues with. One for each loader.

    Args:
        preload: modules that the server imports, once for all workers.

    Attributes:
        workers: that were started.
    """

    def __init__(self, preload: list[str]) -> None:
        self.workers: list[_Worker] = []
        _shorten_names_of_sockets()
        self.set_forkserver_preload(preload)

    def Process(self, *args: Any, **options: Any) -> _Worker:  # type: ignore[override]  # there it is a class
        """A worker, not started yet."""
        worker = _Worker(*args, **options)
        self.workers.append(worker)
        return worker

    def Queue(self, maxsize: int = 0) -> _Queue:
        """A queue between a worker and the process it works for."""
        return _Queue(maxsize, ctx=self.get_context())


def end_with_main(worker: int) -> None:
    """What each worker begins with: it ends when the process that it works for is gone, or the server.

    Args:
        worker: its number.
    """
    parent = parent_process()
    assert parent is not None  # this runs in a worker
    threading.Thread(target=_end_with, args=(parent.sentinel, os.getppid()), name="end with main", daemon=True).start()


def _end_with(main: int, server: int) -> None:
    """Wait for the end of a pipe that the main process holds, or of the server; SIGKILL lets neither say a word."""
    while not wait([main], timeout=LOOK) and os.getppid() == server:
        pass
    os._exit(1)


@contextmanager
def running(loader: DataLoader) -> Iterator[Iterator[dict[str, Tensor]]]:
    """A loader's batches, and the end of its workers when the block is left, whatever they do and however it is left.

    Raises:
        WorkerError: by the batches, when a worker has died.
    """
    context = loader.multiprocessing_context
    workers = context.workers if isinstance(context, WorkerContext) else []
    try:
        yield _batches(iter(loader), workers)
    finally:
        alive = [worker for worker in workers if worker.pid is not None and worker.is_alive()]
        for worker in alive:
            worker.kill()
        for worker in alive:
            worker.join(END)


def refuse_while_imported() -> None:
    """Raise RuntimeError where a worker imports the script that started it, and the script would now begin to train."""
    if getattr(process.current_process(), "_inheriting", False):
        raise RuntimeError(
            'each loader worker runs this script again, as far as it is not under `if __name__ == "__main__":`: put what '
            "trains under it, or let this process load the clips (data.workers=0)"
        )


def _batches(batches: Iterator[dict[str, Tensor]], workers: list[_Worker]) -> Iterator[dict[str, Tensor]]:
    received = 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            wait([worker.sentinel for worker in workers], timeout=LOOK)  # the server is told of an end before this process
            if dead := [(number, worker) for number, worker in enumerate(workers) if not worker.is_alive()]:
                raise WorkerError(_describe(*dead[0], begun=received > 0)) from error
            if "shared memory" in str(error):  # PyTorch's words, where it could reserve none
                raise WorkerError(f"a loader worker ended: {_full()}") from error
            if any(words in str(error) for words in _NO_FILES):
                limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                raise WorkerError(
                    f"this process has as many files open as it may, {limit}, and each clip that a worker passes on is one: "
                    "raise the limit (`ulimit -n`), or take fewer data.workers"
                ) from error
            raise
        received += 1
        yield batch


def _describe(number: int, worker: _Worker, begun: bool) -> str:
    """How a worker ended, and why that may be."""
    code = worker.exitcode
    how = f"loader worker {number} (pid {worker.pid}) ended by "
    if code == -signal.SIGBUS:
        return f"{how}SIGBUS: {_full()}"
    if code in (-signal.SIGKILL, _LOST):
        how += "the end of the server that it came from, as if by " if code == _LOST else ""
        return how + (
            "SIGKILL: the system kills what takes the last of the memory, as its log then says, and so may a person or a "
            "scheduler. Fewer data.workers take less memory"
        )
    if code is not None and code < 0:
        return how + f"{signal.Signals(-code).name}; data.workers=0 loads without workers"
    guard = "" if begun else '; a script that trains with workers must do so under `if __name__ == "__main__":`'
    return how + f"exit code {code}, and has printed why{guard}"


def _full() -> str:
    """That shared memory is full, and what to do."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
        now = f"{usage.free / MEGABYTE:.0f} of {usage.total / MEGABYTE:.0f} MB are free now"
    except OSError as error:
        now = str(error)
    return (
        f"the shared memory that it passes clips through is full ({SHARED_MEMORY}: {now}). Make it larger (of a container: "
        "--shm-size), or take fewer data.workers, a smaller train.micro_batch, or data.workers=0"
    )


def _shorten_names_of_sockets() -> None:
    """Let `multiprocessing` make its sockets elsewhere if their names would be too long in the folder for temporary files."""
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) + len(_BEHIND) <= SOCKET_NAME:
        return
    for folder in SHORT_FOLDERS:
        if os.access(folder, os.W_OK | os.X_OK):
            break
    else:
        raise OSError(
            f"the name of the folder for temporary files is too long for sockets: {usual}; set TMPDIR to a shorter one"
        )
    logger.warning("%s is too long a name for sockets: those of loader workers are in %s", usual, folder)
    tempfile.tempdir, before = folder, tempfile.tempdir
    try:
        util.get_temp_dir()  # made now, and kept for this process and its workers
    finally:
        tempfile.tempdir = before
