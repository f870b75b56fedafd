"""Signals that ask a run to stop: all ranks learn of one at the same step, whichever got it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # of `kill`, and of schedulers before a job's time is over


class StopRequest:
    """While it is entered, SIGTERM and SIGUSR1 only raise a flag, so that the loop can end between two steps.

    SIGINT stays Python's KeyboardInterrupt. Python delivers signals to the main thread alone: entered in another one, nothing
    is caught, and signals do what they did before.

    Attributes:
        flag: whether this rank got a signal.
        signal_name: the first that it got, such as `SIGUSR1`; None if it got none.
    """

    def __init__(self) -> None:
        self.flag, self.signal_name = False, None
        self._before: dict[signal.Signals, signal.Handlers] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.flag, self.signal_name = True, self.signal_name or signal.Signals(number).name


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
