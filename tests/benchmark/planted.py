"""Parts of `benchmark gpu` that go wrong, each in its own way; loaded by name in processes of their own."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from sparsevid.benchmark.gpu.parts import NotRun, Part, Row, Settings


def part(name: str, seconds: float = 10.0) -> Part:
    """The part of this name here."""
    return Part(name, f"benchmark.planted:{name}", seconds)


def fine(settings: Settings) -> Iterator[Row]:
    print("said on the way")
    yield Row("case", "metric", 1.5, "ms", ok=True, note="as it | should be")
    yield Row("case", "not finite", float("inf"))


def wrong(settings: Settings) -> Iterator[Row]:
    yield Row("good", "metric", 1, ok=True)
    yield Row("bad", "error", 2.0, ok=False)


def raises(settings: Settings) -> Iterator[Row]:
    yield Row("before", "metric", "a word")
    raise MemoryError("no room\nfor this")


def cannot(settings: Settings) -> Iterator[Row]:
    raise NotRun("there is no such thing here")
    yield


def silent(settings: Settings) -> Iterator[Row]:
    yield from ()


def is_killed(settings: Settings) -> Iterator[Row]:
    yield Row("before", "metric", 1)
    os.kill(os.getpid(), signal.SIGKILL)


def crashes(settings: Settings) -> Iterator[Row]:
    yield Row("before", "metric", 1)
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves(settings: Settings) -> Iterator[Row]:
    yield Row("before", "metric", 1)
    os._exit(3)


def hangs(settings: Settings) -> Iterator[Row]:
    """With a process that it started, which hangs too."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield Row("child", "pid", child.pid)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def stops_the_parent(settings: Settings) -> Iterator[Row]:
    yield Row("before", "metric", 1)
    os.kill(multiprocessing.parent_process().pid, signal.SIGTERM)
    time.sleep(600)


def kills_the_parent(settings: Settings) -> Iterator[Row]:
    yield Row("own", "pid", os.getpid())
    os.kill(multiprocessing.parent_process().pid, signal.SIGKILL)
    time.sleep(600)


def hides_a_number(settings: Settings) -> Iterator[Row]:
    """What cannot be written as JSON does not reach the report."""
    yield Row("case", "metric", object())
