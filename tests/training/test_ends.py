"""A run that fails ends, with an exit code that says so, and with all its processes: however it fails, and with loader workers.

Its loader alone is tested faster in `tests/data/test_workers.py`.
"""

import os
import resource
import signal
import sys
import time

import psutil
import pytest
from sessions import LIMIT, end_of, members, start_session

WORKERS = ("data.workers=2", "data.cache_frames=false", "train.steps=100000", "train.checkpoint_every=100000")
pytestmark = pytest.mark.slow


def train(path, processes: int = 1, **options):
    """Start a run in a session of its own; the ranks of a launcher have one each."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return start_session([sys.executable, *launcher, "-m", "sparsevid.cli", "train", path], env=environment, **options)


def wait_for_steps(config, process) -> None:
    end = time.monotonic() + LIMIT
    while not (config.folder / "metrics.jsonl").is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)


def workers_of(*sessions: int) -> list[psutil.Process]:
    """The loader's processes in sessions: those whose parent is its server."""
    family = [each for session in sessions for each in members(session)]
    servers = {each.pid for each in family if "forkserver" in " ".join(each.cmdline())}
    return [each for each in family if each.ppid() in servers]


def test_steps_that_cannot_be_applied(tiny):
    options = ("train.lr=1e38", "train.gradient_clipping=0", "train.max_skipped=3")
    code, printed = end_of(train(tiny(*WORKERS, *options)[1]))
    assert code == 2 and "3 steps in a row were skipped" in printed and "Traceback" not in printed, printed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_worker_that_dies(tiny, number):
    config, path = tiny(*WORKERS)
    process = train(path)
    wait_for_steps(config, process)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    workers[0].send_signal(number)
    code, printed = end_of(process)
    assert code == 2 and f"(pid {workers[0].pid}) ended by {number.name}" in printed and "Traceback" not in printed, printed


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGABRT, -6)]
)
def test_a_run_that_is_ended(tiny, number, expected):
    """Killed outright, interrupted, and as by an assertion of a library in C++."""
    config, path = tiny(*WORKERS)
    process = train(path)
    wait_for_steps(config, process)
    process.send_signal(number)
    code, printed = end_of(process)
    assert code == expected, printed


def test_a_worker_of_one_of_two_ranks_that_dies(tiny):
    """The rank says why, the other says so too, and the launcher ends with them."""
    config, path = tiny(*WORKERS)
    process = train(path, processes=2)
    wait_for_steps(config, process)
    sessions = {os.getsid(each.pid) for each in psutil.Process(process.pid).children(recursive=True)} - {process.pid}
    workers = workers_of(*sessions)
    assert len(workers) == 4
    workers[-1].kill()
    code, printed = end_of(process, *sessions)
    assert code != 0 and f"(pid {workers[-1].pid}) ended by SIGKILL" in printed, printed


def test_many_slots_with_few_files(tiny):
    """256 micro-batches a step, and fewer open files allowed than these have tensors."""
    options = ("data.workers=1", "data.cache_frames=false", "train.global_batch=256", "train.micro_batch=1", "train.steps=1")
    code, printed = end_of(train(tiny(*options)[1], limits={resource.RLIMIT_NOFILE: 256}))
    assert code == 0, printed
