"""Processes with a session of their own, in which nothing may be left when they have ended."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

LIMIT = 120.0  # seconds after which a test takes it that something hangs


def start_session(command: Sequence[object], limits: dict[int, int] | None = None, **options) -> subprocess.Popen:
    """Start a process as the first of a new session, with soft limits by resource; what it prints comes through one pipe."""

    def begin() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored by what a shell starts in the background, and by its children
        for number, soft in (limits or {}).items():
            resource.setrlimit(number, (soft, resource.getrlimit(number)[1]))

    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True} | options
    return subprocess.Popen(list(map(str, command)), preexec_fn=begin, **given)


def is_alive(process: psutil.Process) -> bool:
    """Whether it has not ended; one that nobody has asked for its exit code has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def members(session: int) -> list[psutil.Process]:
    """The processes of a session that have not ended."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError):
            if os.getsid(process.pid) == session and is_alive(process):
                found.append(process)
    return found


def end_of(process: subprocess.Popen, *others: int) -> tuple[int, str]:
    """Wait until a process and all others of its session, and of `others`, have ended; its exit code, and what was printed.

    What does not end within LIMIT is killed, and fails the test.
    """
    sessions = (process.pid, *others)
    try:
        printed, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        printed = "it hangs"
    end = time.monotonic() + LIMIT
    while (left := [each for session in sessions for each in members(session)]) and time.monotonic() < end:
        if printed == "it hangs":
            break
        time.sleep(0.05)
    for each in left:
        with suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGKILL)
    assert not left, f"{left} outlive {process.args}: {printed}"
    return process.returncode, printed
