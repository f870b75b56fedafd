"""A rank that is killed or stopped is named by the others, also while they wait for it; a pause that all share is none."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsevid.system.heartbeat import LEFT, Silence

BEATS = Path(__file__).with_name("beats.py")
LIMIT = 12.0  # seconds of silence; long enough for a busy machine
END = 180.0


def test_silence_is_counted_until_a_rank_is_heard():
    silence = Silence(["1", "2"], most=10.0)
    assert silence.look(5.0, {"1": "1"}) == {"1": 0.0, "2": 5.0}, "a rank that never said anything is silent from the start"
    assert silence.look(5.0, {"1": "1", "2": "1"}) == {"1": 5.0, "2": 0.0}
    assert silence.look(5.0, {"1": "1", "2": "2"}) == {"1": 10.0, "2": 0.0}
    assert silence.look(5.0, {"1": "2", "2": "2"}) == {"1": 0.0, "2": 5.0}


def test_who_has_left_is_not_waited_for():
    silence = Silence(["1"], most=10.0)
    assert [silence.look(10.0, {"1": LEFT})["1"] for _ in range(9)] == [0.0] * 9


def test_a_pause_of_this_process_is_not_held_against_the_others():
    """After an hour of suspension, all ranks begin where they were, but for the length of a look."""
    silence = Silence(["1"], most=10.0)
    silence.look(5.0, {"1": "7"})
    assert silence.look(3600.0, {"1": "7"}) == {"1": 10.0}
    assert silence.look(5.0, {"1": "8"}) == {"1": 0.0}


@pytest.fixture
def ranks():
    """A function that starts two ranks by their environment, rank 0 with the store, and waits until both are ready."""
    started: list[subprocess.Popen] = []

    def start(*arguments: object) -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        for number in range(2):
            environment = {**os.environ, **shared, "RANK": str(number), "LOCAL_RANK": str(number)}
            command = [sys.executable, str(BEATS), *map(str, arguments)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            started.append(subprocess.Popen(command, env=environment, **pipes))
        for process in started:
            lines = iter(process.stdout.readline, "")
            assert any(line == "ready\n" for line in lines)
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "number", "how"),
    [("hang", 1, signal.SIGKILL), ("hang", 0, signal.SIGKILL), ("collective", 1, signal.SIGSTOP), ("hang", 0, signal.SIGSTOP)],
)
def test_a_rank_that_is_gone_is_named_while_the_other_waits(ranks, what, number, how):
    both = ranks(LIMIT, what)
    lost, left = both[number], both[1 - number]
    lost.send_signal(how)
    printed, _ = left.communicate(timeout=END)
    assert left.returncode == 1 and printed.endswith("closed\n"), printed
    named = f"another rank ended or did not answer during step 3; rank {number} on {socket.gethostname()} (pid {lost.pid}): "
    assert named + f"no sign of life for {LIMIT:g} s" in printed


@pytest.mark.slow
def test_a_pause_that_all_ranks_share_ends_nothing(ranks, tmp_path):
    """As by Ctrl-Z, or of a machine that sleeps; they go on one after the other."""
    both = ranks(LIMIT, "go", tmp_path / "end")
    for process in both:
        process.send_signal(signal.SIGSTOP)
    time.sleep(2 * LIMIT)
    for process in both:
        process.send_signal(signal.SIGCONT)
        time.sleep(1)
    time.sleep(1.5 * LIMIT)
    assert [process.poll() for process in both] == [None, None]
    (tmp_path / "end").touch()
    for process in both:
        printed, _ = process.communicate(timeout=END)
        assert process.returncode == 0 and printed == "done\n", printed
