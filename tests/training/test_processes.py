"""Runs in processes of their own: killed, stopped, resumed, split over ranks, with a rank whose numbers go bad."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from launch import finish, run_all, start, train_on_two_nodes, weights
from training.ends_of_runs import RUNS, assert_close_ends, check_two_processes, same_end

from sparsevid.runs.checkpoints import checkpoint_path, list_checkpoints
from sparsevid.runs.config import ConfigError
from sparsevid.training.resume import TO_BE_RESUMED
from sparsevid.training.trainer import Trainer


@pytest.mark.slow
def test_killed_run_goes_on_from_its_last_checkpoint(tiny):
    """SIGKILL, then the same command again: the end is that of a run that was never killed, bit for bit."""
    steps = ("train.steps=30",)
    config, path = tiny(*steps)
    process = start(path)
    while not list_checkpoints(config.folder) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    survived = list_checkpoints(config.folder)
    assert survived and checkpoint_path(config.folder, 30) not in survived
    assert "resumed from" in finish(start(path))
    plain, path = tiny(*steps, "name=plain")
    finish(start(path))  # in a process of its own too, for other tests may have left another state of PyTorch here
    assert same_end(config, plain, step=30)


@pytest.mark.slow
def test_two_launches_do_not_write_one_run(tiny):
    """The second is told who trains it; when that one is gone, however, the run is free."""
    config, path = tiny("train.steps=100000", "train.checkpoint_every=100000")
    process = start(path)
    while not (config.folder / "metrics.jsonl").is_file() and process.poll() is None:
        time.sleep(0.01)
    before = (config.folder / "config.yaml").stat().st_mtime_ns
    with pytest.raises(ConfigError, match=rf"{config.name} is being trained by pid {process.pid} on \S+: wait for its end"):
        Trainer(config)
    assert (config.folder / "config.yaml").stat().st_mtime_ns == before
    process.kill()
    process.communicate()
    Trainer(config).lock.release()


@pytest.mark.slow
def test_stopped_by_a_signal(tiny):
    """SIGUSR1: a checkpoint of the step, exit code 0, and word of it; started again, the end is as without the signal."""
    config, path = tiny("train.steps=40", "train.checkpoint_every=1000")
    process = start(path)
    while not (config.folder / "metrics.jsonl").is_file() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    assert "stopped by SIGUSR1" in finish(process)
    (stopped,) = list_checkpoints(config.folder)
    assert stopped < checkpoint_path(config.folder, 40) and (config.folder / TO_BE_RESUMED).is_file()
    assert "resumed from" in finish(start(path))
    assert not (config.folder / TO_BE_RESUMED).exists()
    plain, path = tiny("train.steps=40", "train.checkpoint_every=1000", "name=plain")
    finish(start(path))
    assert same_end(config, plain, step=40)


@pytest.mark.parametrize(("stage", "optimizer"), [(3, "adamw"), pytest.param(0, "muon", marks=pytest.mark.slow)])
def test_two_processes_train_the_same_model_as_one(tiny, stage, optimizer):
    check_two_processes(tiny, stage, f"train.optimizer={optimizer}")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_processes_at_every_zero_stage(tiny, stage):
    """With loader workers too, which no clip depends on."""
    check_two_processes(tiny, stage, "data.cache_frames=false", "data.workers=1")


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "optimizer"), [(1, "adamw"), (2, "adamw"), (3, "adamw"), (0, "muon")])
def test_from_one_rank_to_two(tiny, stage, optimizer):
    common = (f"train.zero_stage={stage}", f"train.optimizer={optimizer}", "train.micro_batch=1")
    Trainer(tiny("name=more", *common, "train.steps=4")[0]).train()
    more, path = tiny("name=more", *common)
    assert "step-0000004" in run_all(RUNS, path, processes=2)
    single, _ = tiny("name=single", *common)
    Trainer(single).train()
    assert_close_ends(more, single)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "optimizer"), [(0, "adamw"), (1, "adamw"), (2, "adamw"), (3, "adamw"), (0, "muon")])
def test_bfloat16_at_every_zero_stage(tiny, stage, optimizer):
    """bfloat16 keeps float32 masters: checkpoints hold weights that bfloat16 cannot represent. Resumed equals uninterrupted."""
    common = ("train.precision=bfloat16", f"train.zero_stage={stage}", f"train.optimizer={optimizer}")
    whole, whole_path = tiny("name=whole", *common)
    _, half_path = tiny("name=halved", *common, "train.steps=4")
    run_all(RUNS, whole_path, half_path, processes=2)
    halved, halved_path = tiny("name=halved", *common)
    run_all(RUNS, halved_path, processes=2)
    assert same_end(whole, halved)
    saved = weights(checkpoint_path(whole.folder, 6))
    moved = [value for name, value in saved.items() if name.endswith("blocks.0.mlp.fc1.weight")]
    assert all(not torch.equal(value, value.bfloat16().float()) for value in moved)


@pytest.mark.slow
def test_two_nodes(tiny):
    """Two launchers train and resume as one with two ranks does."""
    common = ("train.zero_stage=2", "train.micro_batch=1")
    together, path = tiny("name=together", *common)
    run_all(RUNS, path, processes=2)
    train_on_two_nodes(tiny("name=apart", *common, "train.steps=4")[1])
    apart, path = tiny("name=apart", *common)
    assert "step-0000004" in train_on_two_nodes(path)
    assert same_end(together, apart)


def soak(folder: Path, kills: int, steps: int) -> str:
    """What `tests/soak.py` prints."""
    command = [sys.executable, str(Path(__file__).parents[1] / "soak.py"), "--kills", str(kills), "--steps", str(steps)]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([*command, "--folder", str(folder)], env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_short_soak(tmp_path):
    assert "killed 3 times, and equal to the run left alone" in soak(tmp_path / "soak", kills=3, steps=40)
