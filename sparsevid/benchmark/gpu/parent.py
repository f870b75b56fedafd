"""Runs parts, each in a process of its own, and keeps the report: an error, lack of memory or a hang ends that part alone.

The parent neither imports PyTorch nor touches a GPU. Processes come out of a forkserver, which has imported PyTorch and never
asks for a GPU either. Each leads a group, so that what it starts ends with it.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from sparsevid.benchmark.gpu.parts import NotRun, Part, Settings
from sparsevid.benchmark.gpu.report import FILES, LOG, PartResult, Report
from sparsevid.system.atomic import make_writable, renamed

PRELOADED = ("torch", "sparsevid.benchmark.model")  # by the forkserver
LEAST = 0.2  # of its seconds, that a part needs to be of any use
BEFORE_END = 0.9  # of its time, after which a part begins nothing new
TICK = 0.25  # seconds between looks at signals
GRACE = 5.0  # seconds for a process that said all to end by itself
MOST_LOG = 8 * 2**20  # bytes of the log that are kept
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_parts(parts: Sequence[Part], folder: Path, *, command: str, budget: float, device: str, tiny: bool) -> Report:
    """Run parts one after the other.

    Args:
        parts: in their order.
        folder: of the report's files, which take the place of earlier ones; made if it is missing.
        command: as it was typed, for the report.
        budget: seconds for all.
        device: `cuda` or `cpu`.
        tiny: small models.

    Raises:
        OSError: the folder cannot be written to.
    """
    end = time.monotonic() + budget
    make_writable(folder)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    header = {"command": command, "date": date, "asked_device": device, "tiny": tiny, "budget_seconds": budget}
    report = Report(folder, header, [PartResult(part.name, "not run", 0.0, "its turn has not come") for part in parts])
    report.write()
    with _Stop() as stop, tempfile.TemporaryDirectory(prefix="sparsevid-gpu-") as work:
        _start_forkserver(end - time.monotonic())
        for index, part in enumerate(parts):
            seconds = share(parts[index:], end - time.monotonic())
            if stop.name is not None:
                result = PartResult(part.name, "not run", 0.0, f"stopped by {stop.name} before")
            elif seconds is None:
                left = max(0.0, end - time.monotonic())
                result = PartResult(part.name, "not run", 0.0, f"{left:.0f} s are left, it needs {LEAST * part.seconds:.0f}")
            else:
                own = Path(work) / str(index)
                own.mkdir()
                settings = Settings(command, device, tiny, folder, own, time.monotonic() + BEFORE_END * seconds)
                result = _run(part, settings, seconds, report, stop)
            report.end(result)
            print(f"{part.name}: {result.status}, {result.seconds:.0f} s {result.note}", file=sys.stderr, flush=True)
    return report


def share(parts: Sequence[Part], left: float) -> float | None:
    """Seconds for the first of some parts, when so many are left for all: its share, or what it needs at least.

    Returns:
        None if that is not left.
    """
    own, least = parts[0].seconds / sum(part.seconds for part in parts), LEAST * parts[0].seconds
    return max(least, left * own) if least <= left else None


class _Stop:
    """Notes the first signal that asks to stop, while it is entered in the main thread; there is time to end what runs."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}  # handlers, of any kind that `signal` gives back

    def __enter__(self) -> "_Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name


def _start_forkserver(left: float) -> None:
    """Let it import what it preloads, so that no part's time goes there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=_nothing)
    process.start()
    _end(process, left)


def _nothing() -> None:
    pass


def _run(part: Part, settings: Settings, seconds: float, report: Report, stop: _Stop) -> PartResult:
    context, start = multiprocessing.get_context("forkserver"), time.monotonic()
    receiver, sender = context.Pipe(duplex=False)
    describes = "device" not in report.header
    process = context.Process(target=_work, args=(part, settings, sender, describes), name=part.name)
    process.start()
    sender.close()
    grace = 0.0
    try:
        status, note = _listen(part.name, process, receiver, start + seconds, report, stop)
        grace = GRACE if status in ("passed", "failed", "not run") else 0.0
    finally:
        _end(process, grace)
        receiver.close()
        _cut_log(settings.folder / LOG)
    return PartResult(part.name, status, time.monotonic() - start, note)


def _listen(name: str, process: BaseProcess, receiver: Connection, end: float, report: Report, stop: _Stop) -> tuple[str, str]:
    """Take in what a part says, to its end, and give its status and note."""
    while True:
        left = end - time.monotonic()
        if stop.name is not None:
            return "stopped", f"by {stop.name}"
        if left <= 0:
            return "out of time", "ended by the parent; the rows so far are kept"
        ready = wait([receiver, process.sentinel], min(left, TICK))
        if receiver in ready:
            try:
                kind, content = receiver.recv()
            except (EOFError, OSError):
                return _fate(process, stop)
            if kind == "row":
                report.add(replace(content, part=name))
            elif kind == "header":
                report.describe(content)
            elif kind == "end":
                return report.verdict(name)
            else:
                return kind, content
        elif ready:
            return _fate(process, stop)


def _fate(process: BaseProcess, stop: _Stop) -> tuple[str, str]:
    """What became of a process that said no last word."""
    process.join(GRACE)
    code = process.exitcode
    if stop.name is not None:  # a signal that the whole group got
        return "stopped", f"by {stop.name}"
    if code is None:
        return "failed", "its process closed the report and went on"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return "killed", f"its process was killed by {name}{', as where memory is short' if name == 'SIGKILL' else ''}"
    return "failed", f"its process ended with exit status {code}"


def _end(process: BaseProcess, grace: float) -> None:
    """End a process with all that it started, after so many seconds in which it may end by itself."""
    process.join(max(0.0, grace))
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if process.pid is not None:  # it was started
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # it may lead no group yet
    process.join(GRACE)


def _cut_log(path: Path) -> None:
    """Keep the end of a log that grew large."""
    if path.is_file() and path.stat().st_size > MOST_LOG:
        with path.open("rb") as log:
            log.seek(-MOST_LOG, os.SEEK_END)
            kept = log.read()
        with renamed(path) as draft:
            draft.write_bytes(kept)


def _work(part: Part, settings: Settings, sender: Connection, describes: bool) -> None:
    """A part's process: its output goes to the log, its rows to the parent, and first what this machine is, if asked for."""
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log = os.open(settings.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(log, number)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if settings.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    print(f"===== {part.name}", file=sys.stderr, flush=True)
    try:
        rows = part.load()
        if describes:
            from sparsevid.benchmark.gpu.machine import describe

            sender.send(("header", describe(settings)))
        for row in rows(settings):
            sender.send(("row", row))
        sender.send(("end", None))
    except NotRun as reason:
        sender.send(("not run", str(reason)))
    except BaseException as error:
        traceback.print_exc()
        text = " ".join(f"{type(error).__name__}: {error}".split())
        sender.send(("failed", text[:500]))


def _end_with_parent() -> None:
    """Where the parent is killed, its pipes close: this process and what it started end too."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a process of a part
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)
