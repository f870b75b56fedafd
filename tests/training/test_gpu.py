"""Training on a GPU: the precision and stage that long runs use."""

import json
import shutil
import warnings

import pytest
import torch
from launch import finish, start

from sparsevid.runs.checkpoints import checkpoint_path
from sparsevid.training.trainer import Trainer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("stage", [2, 3])
def test_bfloat16_on_a_gpu_trains_and_resumes(tiny, stage):
    """Losses after a resumption are those of the run that was not interrupted, as far as a GPU repeats itself."""
    options = ("train.precision=bfloat16", f"train.zero_stage={stage}", "train.ema_device=cpu")
    whole, path = tiny("name=whole", *options)
    assert "bfloat16, cuda" in finish(start(path))
    again, path = tiny("name=again", *options)
    shutil.copytree(checkpoint_path(whole.folder, 4), checkpoint_path(again.folder, 4))
    assert "resumed from" in finish(start(path))
    losses = []
    for config in (whole, again):
        lines = (config.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append({row["step"]: row["train/loss"] for row in map(json.loads, lines)})
    assert [losses[1][step] for step in (5, 6)] == pytest.approx([losses[0][step] for step in (5, 6)], rel=1e-2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_optimizer_step_waits_for_the_device_once(tiny, precision):
    """At stage 0, with the average on the CPU and two micro-batches; PyTorch says where the host waits."""
    options = (f"train.precision={precision}", "train.zero_stage=0", "train.micro_batch=2", "train.ema_device=cpu")
    trainer = Trainer(tiny(*options)[0])
    with trainer._batches() as batches:
        trainer.optimizer_step(batches)  # tables come to the device
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                trainer.optimizer_step(batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in said if "synchroniz" in str(warning.message)]
    assert len(waits) <= 1, waits
