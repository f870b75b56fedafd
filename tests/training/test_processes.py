"""Runs in processes of their own: killed, resumed, and split over ranks."""

import time

import pytest
import torch
from launch import finish, start, weights

from sparsevid.checkpoints import checkpoint_path, list_checkpoints
from sparsevid.training.trainer import Trainer


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
    plain, _ = tiny(*steps, "name=plain")
    Trainer(plain).train()
    killed, uninterrupted = (weights(checkpoint_path(each.folder, 30)) for each in (config, plain))
    assert killed.keys() == uninterrupted.keys()
    assert all(torch.equal(value, uninterrupted[name]) for name, value in killed.items())


def check_two_processes(tiny, *overrides: str) -> None:
    """Two ranks with two slots each equal one rank with four; and stopped half-way and resumed equals both."""
    steps = ("train.micro_batch=1", *overrides)
    whole, path = tiny("name=whole", *steps)
    assert "2 ranks × 2 slots × 1 clips" in finish(start(path, processes=2))
    finish(start(tiny("name=halved", *steps, "train.steps=4")[1], processes=2))
    halved, path = tiny("name=halved", *steps)
    assert "step-0000004" in finish(start(path, processes=2))
    single, _ = tiny("name=single", *steps)
    Trainer(single).train()
    two, resumed, one = (weights(checkpoint_path(config.folder, 6)) for config in (whole, halved, single))
    for name, value in two.items():
        torch.testing.assert_close(value, one[name], atol=1e-5, rtol=1e-4)
        assert torch.equal(value, resumed[name]), name


def test_two_processes_train_the_same_model_as_one(tiny):
    check_two_processes(tiny, "train.zero_stage=1")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_processes_at_every_zero_stage(tiny, stage):
    check_two_processes(tiny, f"train.zero_stage={stage}")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_at_every_zero_stage(tiny, stage):
    """bfloat16 keeps float32 masters: checkpoints hold weights that bfloat16 cannot represent."""
    config, path = tiny("train.precision=bfloat16", f"train.zero_stage={stage}")
    finish(start(path, processes=2))
    saved = weights(checkpoint_path(config.folder, 6))
    moved = [value for name, value in saved.items() if name.endswith("blocks.0.mlp.fc1.weight")]
    assert all(not torch.equal(value, value.bfloat16().float()) for value in moved)
