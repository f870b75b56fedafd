"""Ranks in processes of their own: those that answer, and those that never start, hang, end or raise."""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sparsevid import cli
from sparsevid.runs.config import ConfigError
from sparsevid.system import distributed
from sparsevid.system.distributed import (
    RankError,
    RankInfo,
    any_over_ranks,
    check_device,
    check_ranks,
    default_device,
    first_to_say,
    init_process_group_if_launched,
    peers_may_die,
    shutdown,
)
from sparsevid.system.shared import check_shared
from sparsevid.training.environment import describe_environment

LIMIT = 580  # seconds until a test gives up on a process that hangs
PATIENCE = 5.0  # seconds that ranks wait for one that does not answer; here they begin together, however slow the machine
HERE = Path(__file__)
PATHS = os.pathsep.join(map(str, (HERE.parents[2], HERE.parents[1], HERE.parent)))  # the package, what tests share, this module


def fail(how: str) -> None:
    """A rank's end."""
    if how == "hang":
        time.sleep(LIMIT)
    if how == "exit":
        os._exit(0)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raise":
        raise ArithmeticError("the sum is wrong")


def play(fault: str, timeout: float) -> int:
    """What each rank does here; rank 1 has the fault, such as `step:kill`: where, and how. `cpu` keeps all off the GPUs."""
    me = int(os.environ["RANK"])
    place, _, how = fault.partition(":") if me == 1 else ("", "", "")
    if fault == "mend":
        raise ConfigError("train.lr is the wrong way round")
    device = torch.device("cpu") if fault == "cpu" else None
    init_process_group_if_launched(start_timeout=timeout, device=device)
    if fault.startswith("folders:"):
        os.chdir(fault.split(":")[1 + me])
        check_shared(Path("run"), ConfigError, patience=1.0)
    if place == "check":
        fail(how)
    ranks = check_ranks(timeout, device)
    print("ranks", *(info.rank for info in ranks), "pid", ranks[me].pid == os.getpid())
    print("any", any_over_ranks(me == 1), any_over_ranks(False), "first", first_to_say("hello"))
    with peers_may_die("step 7"):
        if place == "step":
            fail(how)
        dist.all_reduce(torch.ones(3))
    shutdown()
    return 0


def as_command(fault: str, timeout: float) -> int:
    """`play` as one of the console's commands."""
    return cli._run("play", lambda _: play(fault, timeout), argparse.Namespace())


def rank_process(environment: dict[str, str], output: Path, fault: str, timeout: float, started: Barrier) -> None:
    """A rank, its output in a file. Ranks begin together."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    started.wait(LIMIT)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1)  # noqa: SIM115 (as long as the process)
    sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
    sys.exit(as_command(fault, timeout))


@pytest.fixture
def run_ranks(tmp_path, monkeypatch):
    """A function that starts ranks as a scheduler does, and gives what each printed."""

    def run(
        fault: str = "", size: int = 2, absent: tuple[int, ...] = (), timeout: float = 60.0, port: int | None = None
    ) -> dict[int, str]:
        monkeypatch.setenv("PYTHONPATH", PATHS)  # for the server, which would not find this module
        context = get_context("forkserver")
        context.set_forkserver_preload(["test_distributed"])  # imports torch once for all
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or free_port())}
        processes, present = {}, set(range(size)) - set(absent)
        started = context.Barrier(len(present))
        for rank in present:
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), **shared}
            arguments = (environment, tmp_path / str(rank), fault, timeout, started)
            processes[rank] = context.Process(target=rank_process, args=arguments)
            processes[rank].start()
        hanging = {1} if fault.endswith("hang") else set()
        for rank in set(processes) - hanging:
            processes[rank].join(LIMIT)
            assert processes[rank].exitcode is not None, f"rank {rank} did not end: {(tmp_path / str(rank)).read_text()}"
        for rank in hanging:
            processes[rank].kill()
            processes[rank].join()
        return {rank: (tmp_path / str(rank)).read_text() for rank in processes}

    return run


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(*options: str, fault: str = "") -> subprocess.Popen:
    """torchrun, as a module of this file's."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "test_distributed", fault, "60"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_ranks_find_each_other(run_ranks):
    printed = run_ranks()
    for text in printed.values():
        assert "ranks 0 1 pid True" in text and "any True False" in text, text
    assert sorted(re.findall(r"first (\w+)", "".join(printed.values()))) == ["False", "True"]


def test_rank_that_never_arrives_is_named(run_ranks):
    together = "".join(run_ranks(size=3, absent=(2,), timeout=PATIENCE).values())
    assert "telling its host: 1 of 3 ranks ended or did not answer within 5 s: rank 2 (never arrived)" in together


def test_store_that_is_not_there_is_named(run_ranks):
    text = run_ranks(absent=(0,), timeout=PATIENCE)[1]
    assert re.search(r"rank 1: error: no answer at 127\.0\.0\.1:\d+ within 5 s, .*: rank 0 did not start", text), text


@pytest.mark.parametrize("who", ["another store", "another launch", "silence"])
def test_a_port_that_is_in_use_is_said_to_be(run_ranks, who):
    """By rank 0, which cannot listen there, and by a rank that gets an answer which is not that of its rank 0, or none."""
    with socket.socket() as listener:
        if who == "silence":
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
        else:
            store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            port = store.port
        if who == "another launch":  # its ranks are there, and stay
            for rank in range(2):
                dist.PrefixStore("sparsevid-0", store).set(f"info/{rank}", f'[{rank}, "elsewhere", 7, "cpu"]')
        printed = run_ranks(timeout=PATIENCE, port=port)
        said = rf"error: port in use: at 127\.0\.0\.1:{port} is another process, .*; give all ranks another MASTER_PORT"
        assert re.search(f"rank 0: {said}", printed[0]), printed[0]
        others = {"silence": r"error: no answer at .* another process has that port", "another store": said}
        assert re.search(others.get(who, rf"{said} than {port}; its rank 1 on elsewhere \(pid 7\) is there"), printed[1]), (
            printed[1]
        )


def test_ranks_that_do_not_share_their_folder_say_so_at_the_start(run_ranks, tmp_path):
    """The same relative name in two working folders is what two hosts without common storage see."""
    for host in "ab":
        (tmp_path / host / "run").mkdir(parents=True)
    here, there = tmp_path / "a", tmp_path / "b"
    assert "ranks 0 1" in run_ranks(f"folders:{here}:{here}")[1]
    together = "".join(run_ranks(f"folders:{here}:{there}").values())
    said = rf"error: rank 1 on {socket.gethostname()} does not see in {there}/run what rank 0 wrote there 1 s ago\. .* share"
    assert re.search(said, together) and "Traceback" not in together, together
    assert not list((here / "run").iterdir())


@pytest.mark.parametrize("how", ["hang", "exit"])
def test_rank_that_does_not_come_to_the_collective_is_named_with_its_host(run_ranks, how):
    text = run_ranks(f"check:{how}", timeout=PATIENCE)[0]
    found = re.search(r"first collective: 1 of 2 ranks ended or did not answer within 5 s: rank 1 on (\S+) \(pid \d+\)", text)
    assert found and found[1] == socket.gethostname(), text


@pytest.mark.parametrize(("how", "word"), [("kill", "no word from it"), ("raise", "ArithmeticError: the sum is wrong")])
def test_survivor_says_who_ended_and_why_in_one_line(run_ranks, how, word):
    printed = run_ranks(f"step:{how}")
    said = rf"rank 0: error: another rank ended .* during step 7; rank 1 on \S+ \(pid \d+\): {word}$"
    assert re.search(said, printed[0], re.MULTILINE) and "Traceback" not in printed[0], printed[0]
    assert ("Traceback" in printed[1]) == (how == "raise")


def test_mendable_error_of_all_ranks_is_said_once_with_a_rank(run_ranks):
    together = "".join(run_ranks("mend").values())
    assert len(re.findall(r"play: rank \d: error: train.lr is the wrong way round", together)) == 1
    assert "Traceback" not in together


@pytest.mark.slow
def test_rank_that_raises_ends_the_run_with_its_traceback_on_top():
    launcher = launch("--standalone", "--nproc_per_node", "2", fault="step:raise")
    text, _ = launcher.communicate(timeout=LIMIT)
    root = text[text.index("Root Cause") :]
    assert launcher.returncode != 0 and "rank      : 1" in root, text
    assert "Traceback" in root and "ArithmeticError: the sum is wrong" in root, text


@pytest.mark.slow
def test_two_agents_as_two_nodes():
    options = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    nodes = [launch(*options, "--node_rank", str(node)) for node in range(2)]
    for node in nodes:
        text, _ = node.communicate(timeout=LIMIT)
        assert node.returncode == 0 and "ranks 0 1 pid True" in text, text


def test_alone_everything_is_trivial():
    assert not distributed.is_launched()
    (info,) = check_ranks(1.0)
    assert (info.rank, info.host, info.pid) == (0, socket.gethostname(), os.getpid())
    assert check_ranks(1.0, torch.device("cpu"))[0].device == "cpu"
    assert any_over_ranks(True) and not any_over_ranks(False) and first_to_say("hello")
    for error in (ValueError("wrong"), RuntimeError("connection of shapes closed")):
        with pytest.raises(type(error), match=str(error)), peers_may_die():
            raise error


def test_a_device_that_is_not_here_is_refused():
    assert check_device("cpu") == torch.device("cpu")
    for name in ("cuda:99", "tpu", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(ValueError, match=f"no device '{name}'; here there are cpu"):
            check_device(name)


@pytest.mark.gpu
def test_cuda_is_the_ranks_own_gpu(monkeypatch):
    assert check_device("cuda") == default_device() == torch.device("cuda", torch.cuda.current_device())
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(RankError, match="process 99 of this machine has no GPU"):
        check_device("cuda")


def test_environment_groups_ranks_by_host():
    ranks = [RankInfo(0, "a", 10, "GPU X"), RankInfo(1, "a", 11, "GPU X"), RankInfo(2, "b", 12, "GPU Y")]
    rows = dict(describe_environment(ranks, "sdpa", "pyav"))
    assert rows["ranks 0–1"] == "a: 2 × GPU X, first pid 10" and rows["rank 2"] == "b: 1 × GPU Y, first pid 12"
    assert torch.__version__.startswith(rows["torch"]) and rows["attention"] == "sdpa" and rows["decoder"] == "pyav"


@pytest.mark.gpu
def test_first_collective_runs_on_the_gpu():
    launcher = launch("--standalone", "--nproc_per_node", "1")
    text, _ = launcher.communicate(timeout=LIMIT)
    assert launcher.returncode == 0 and "ranks 0 pid True" in text, text


@pytest.mark.gpu
@pytest.mark.parametrize(("fault", "said"), [("cpu", "ranks 0 1"), ("", r"play: rank \d+: error: process \d+ .* has no GPU")])
def test_more_ranks_than_gpus_need_the_cpu(fault, said):
    ranks = torch.cuda.device_count() + 1
    text, _ = launch("--standalone", "--nproc_per_node", str(ranks), fault=fault).communicate(timeout=LIMIT)
    assert re.search(said, text), text


if __name__ == "__main__":
    sys.exit(as_command(sys.argv[1], float(sys.argv[2])))
