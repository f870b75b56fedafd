"""Signals that ask a run to stop: all ranks learn of one at the same step, whichever got it."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType, TracebackType
from typing import Any

BURST = 1.0  # seconds in which several signals are one request: a launcher and a scheduler may both pass it on
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # of `kill`, and of schedulers before a job's time is over


class StopRequest:
    """While it is entered, SIGTERM and SIGUSR1 only raise a flag, so that the loop can end between two steps.

    SIGINT stays Python's KeyboardInterrupt. Python delivers signals to the main thread alone: entered in another one, nothing
    is caught, and signals do what they did before.

    Until `can_save` there is nothing to save, and the flag may not be seen for long: another signal then ends the process at
    once, also where the main thread waits in a library and runs no Python.

    Attributes:
        can_save: whether a loop that looks at the flag has begun.
        flag: whether this rank got a signal.
        signal_name: the first that it got, such as `SIGUSR1`, or what asked in place of one; None if nothing did.
    """

    def __init__(self) -> None:
        self.flag, self.can_save = False, False
        self.signal_name: str | None = None
        self._before: dict[signal.Signals, Any] = {}  # handlers, of any kind that `signal` gives back

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._told, watched = socket.socketpair()
            self._told.setblocking(False)
            self._wakeup_before = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(watched,), name="signals", daemon=True).start()
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
            self._told.close()  # ends the thread that watches
        self._before = {}

    def ask(self, by: str) -> None:
        """Ask the loop to end as a signal does, for another reason, such as that a time is over.

        Args:
            by: what asks, for the log.
        """
        self.flag, self.signal_name = True, self.signal_name or by

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.ask(signal.Signals(number).name)

    def _watch(self, watched: socket.socket) -> None:
        """Read the numbers of signals, which Python's handler in C writes whatever the main thread does."""
        first: float | None = None
        with watched:
            while number := watched.recv(1):
                if number[0] not in SIGNALS:
                    continue
                first = time.monotonic() if first is None else first
                if not self.can_save and time.monotonic() - first > BURST:
                    os.write(2, b"ended by a second signal, before there was anything to save\n")
                    os._exit(128 + number[0])


@contextmanager
def unheard_by_children() -> Iterator[None]:
    """Around what starts loader processes: they never get these signals, which a scheduler may send to all processes of a job.

    The run still needs them for the batches up to its checkpoint. A signal that comes in the meantime waits, and is not lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # first, for where it has to be started it lets SIGTERM through again
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
