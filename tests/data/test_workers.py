"""Processes that load end with what they load for, and what ended them is said."""

import os
import signal
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest
from data.loads import load
from sessions import LIMIT, end_of, is_alive, start_session

from sparsevid.data.workers import SHARED_MEMORY, WorkerError, running
from sparsevid.training.signals import SIGNALS, unheard_by_children

LOADS = Path(__file__).with_name("loads.py")


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **more}


def gone(workers) -> bool:
    return len(workers) == 2 and not any(worker.is_alive() or psutil.pid_exists(worker.pid) for worker in workers)


def pass_all(batches) -> None:
    for _ in batches:
        pass


@pytest.mark.parametrize("what", ["leaves", "raises", "hangs"])
def test_workers_are_gone_when_the_block_is_left(what):
    """Also those that hear no SIGTERM, and one that is in the middle of a sample."""
    with unheard_by_children():
        loader = load("hangs" if what == "hangs" else "")
        try:
            with running(loader) as batches:
                workers = loader.multiprocessing_context.workers
                next(batches)
                if what == "raises":
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
    assert gone(workers)


def test_an_error_of_a_sample_is_passed_on_and_ends_the_workers():
    loader = load("raises")
    with pytest.raises(LookupError, match="sample 3 is not there"), running(loader) as batches:
        pass_all(batches)
    assert gone(loader.multiprocessing_context.workers)


def test_workers_that_nobody_ends_are_no_reason_to_wait():
    """`terminate`, which `multiprocessing` and PyTorch call at the exit of a process, ends what hears no SIGTERM.

    In a process of its own: one that has a server already, of another test, could not keep signals from its workers.
    """
    process = get_context("spawn").Process(target=end_workers)
    process.start()
    process.join(LIMIT)
    assert process.exitcode == 0


def end_workers():
    with unheard_by_children():
        loader = load()
        batches = iter(loader)
        next(batches)
    for worker in loader.multiprocessing_context.workers:
        for number in SIGNALS:
            os.kill(worker.pid, number)
        assert worker.is_alive()
        worker.terminate()
        worker.join(LIMIT)
        assert worker.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, r"ended by SIGKILL: the system kills what takes the last of the memory"),
        pytest.param(signal.SIGBUS, rf"ended by SIGBUS: .* is full \({SHARED_MEMORY}: \d+ of \d+ MB", marks=pytest.mark.slow),
        pytest.param(signal.SIGSEGV, r"ended by SIGSEGV; data.workers=0 loads without", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_dies_ends_the_loading_and_is_said_to_have(number, said):
    """SIGBUS is what the system sends where shared memory is full."""
    loader = load()
    with pytest.raises(WorkerError, match=rf"loader worker 1 \(pid \d+\) {said}"), running(loader) as batches:
        next(batches)
        os.kill(loader.multiprocessing_context.workers[1].pid, number)
        pass_all(batches)
    assert gone(loader.multiprocessing_context.workers)


@pytest.mark.slow
def test_a_server_that_is_killed_takes_the_workers_with_it():
    loader = load()
    said = "by the end of the server that it came from, as if by SIGKILL"
    with pytest.raises(WorkerError, match=said), running(loader) as batches:
        next(batches)
        workers = [psutil.Process(worker.pid) for worker in loader.multiprocessing_context.workers]
        psutil.Process(workers[0].pid).parent().kill()
        pass_all(batches)
    end = time.monotonic() + LIMIT
    while any(map(is_alive, workers)):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_batch_that_cannot_be_sent_is_not_waited_for():
    """As where a worker has no file or shared memory left for it."""
    loader = load("cannot be sent")
    with pytest.raises(WorkerError, match="ended by exit code 1, and has printed why"), running(loader) as batches:
        pass_all(batches)
    assert gone(loader.multiprocessing_context.workers)


def test_workers_and_their_server_end_with_a_process_that_is_killed(tmp_path):
    """It has a folder for temporary files whose name is too long for sockets, which is told and no reason not to load."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    process = start_session([sys.executable, LOADS, "for ever"], env=environment(TMPDIR=str(folder)))
    lines = [process.stdout.readline()]
    while lines[-1] and not lines[-1].split()[0].isdigit():
        lines.append(process.stdout.readline())
    assert f"{folder} is too long a name for sockets" in "".join(lines), lines
    workers = list(map(int, lines[-1].split()))
    assert len(workers) == 2 and all(map(psutil.pid_exists, workers)), lines
    process.kill()
    code, _ = end_of(process)
    assert code == -signal.SIGKILL


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_of_it():
    """By the worker that runs it again, and by the process that waits for the worker."""
    code, printed = end_of(start_session([sys.executable, LOADS, "unguarded"], env=environment()))
    assert code == 1 and "put what trains under it, or let this process load the clips" in printed, printed
    assert "a script that trains with workers must do so under `if __name__" in printed, printed
