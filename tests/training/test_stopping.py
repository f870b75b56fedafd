"""What a signal leaves, at any moment of a run, and what the next process makes up for."""

import json
import os
import shutil
import signal

import pytest
import torch

from sparsevid.runs.checkpoints import checkpoint_path, list_checkpoints
from sparsevid.runs.config import RunConfig
from sparsevid.system.logging import MetricWriter
from sparsevid.training.monitor import Interrupted
from sparsevid.training.resume import TO_BE_RESUMED
from sparsevid.training.signals import StopRequest
from sparsevid.training.trainer import Trainer

LOOKS = (
    "monitor.validate_every=2",
    "monitor.validate_clips=2",
    "monitor.sample_every=2",
    "monitor.sample_clips=2",
    "sample.steps=2",
)


def rows(config: RunConfig, key: str) -> dict[int, float]:
    """A metric by step, the last that was written."""
    lines = (config.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["step"]: row[key] for row in map(json.loads, lines) if key in row}


def sheets(config: RunConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (config.folder / "samples").iterdir()}


def test_a_signal_that_comes_while_the_run_is_built_is_heard(tiny):
    config, _ = tiny("train.checkpoint_every=1000")
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not Trainer(config).train(stop)
    assert list_checkpoints(config.folder) == [checkpoint_path(config.folder, 1)]
    assert (config.folder / TO_BE_RESUMED).is_file()
    trainer = Trainer(config)
    assert (config.folder / TO_BE_RESUMED).is_file()  # a process that dies before its first step has to be started again
    assert trainer.train()
    assert not (config.folder / TO_BE_RESUMED).exists()


def test_a_full_disk_does_not_hide_that_a_run_is_to_be_resumed(tiny, caplog):
    """With its checkpoint saved, that no text goes into the file is a warning; scripts ask only whether the file is there."""
    config, _ = tiny("train.checkpoint_every=1000")
    trainer = Trainer(config)
    step = trainer.optimizer_step

    def interrupted(batches, stop):
        if trainer.step == 2:
            (config.folder / TO_BE_RESUMED).symlink_to("/dev/full")
        return step(batches, stop=trainer.step == 2)

    trainer.optimizer_step = interrupted
    assert not trainer.train()
    assert list_checkpoints(config.folder) == [checkpoint_path(config.folder, 3)]
    assert f"{TO_BE_RESUMED} cannot be written: [Errno 28]" in caplog.text


def test_a_task_that_fails_is_a_warning_and_the_run_goes_on(tiny, caplog):
    """Also at the last step, and at the next start, where it is tried once more."""
    config, _ = tiny(*LOOKS)
    trainer = Trainer(config)
    (config.folder / "samples").write_text("", encoding="utf-8")  # no folder can be made of that name
    assert trainer.train()
    for step in (2, 4, 6):
        assert caplog.text.count(f"step {step}: sample failed, and training goes on: [Errno 17]") == 1
    assert list(rows(config, "validation/loss")) == [2, 4, 6] and not (config.folder / TO_BE_RESUMED).exists()
    assert Trainer(config).train() and caplog.text.count("step 6: sample failed") == 2
    (config.folder / "samples").unlink()
    assert Trainer(config).train() and list(sheets(config)) == ["step-0000006.png"]


def test_what_was_due_at_the_step_of_a_signal_is_made_up_for(tiny):
    plain, _ = tiny("name=plain", *LOOKS)
    assert Trainer(plain).train()
    config, _ = tiny("name=stopped", *LOOKS)
    trainer = Trainer(config)
    step = trainer.optimizer_step

    def interrupted(batches, stop):
        return step(batches, stop=trainer.step == 3)  # the signal comes during the fourth step, at which two tasks are due

    trainer.optimizer_step = interrupted
    assert not trainer.train()
    assert list(rows(config, "validation/loss")) == [2] and list(sheets(config)) == ["step-0000002.png"]
    again = Trainer(config)
    assert again.step == 4 and again.train()
    assert rows(config, "validation/loss") == pytest.approx(rows(plain, "validation/loss"), rel=1e-5)
    assert sheets(config).keys() == sheets(plain).keys() == {f"step-000000{step}.png" for step in (2, 4, 6)}
    assert not again.monitor.undone(4) and not again.monitor.undone(0)


def test_a_signal_during_monitoring_is_heard_between_batches_and_steps(tiny):
    """Nothing half-done is left, the averaged model is back on the CPU, and what is not done is known."""
    config, _ = tiny(*LOOKS, "monitor.sample_clips=8", "train.micro_batch=2")
    trainer, asked = Trainer(config), []

    def stop() -> bool:
        asked.append(True)
        return len(asked) == last

    stages = len(trainer.schedule.stages)
    # Before validation and its batches, of one clip of each stage; before the sheet, after a step of its first batch.
    last = 1 + stages + 1 + 1
    with MetricWriter(config.folder) as metrics, pytest.raises(Interrupted):
        trainer.monitor.run(["validate", "sample"], 2, trainer.ema.state_dict, metrics, stop)
    assert len(asked) == last and trainer.monitor.undone(2) == ["sample"]
    assert not (config.folder / "samples").exists() and list(rows(config, "validation/loss")) == [2]
    asked, last = [], 3
    with MetricWriter(config.folder) as metrics, pytest.raises(Interrupted):
        trainer.monitor.run(["validate"], 4, trainer.ema.state_dict, metrics, stop)
    assert len(asked) == 3 and list(rows(config, "validation/loss")) == [2]
    assert all(weight.device == torch.device("cpu") for weight in trainer.monitor.pipeline.model.parameters())


def test_a_run_stopped_at_its_end_by_its_monitor_is_to_be_resumed(tiny):
    config, _ = tiny(*LOOKS)
    trainer = Trainer(config)
    with StopRequest() as stop:
        look = trainer.monitor.run

        def signalled(tasks, step, *rest):
            stop.flag = step == 6
            return look(tasks, step, *rest)

        trainer.monitor.run = signalled
        assert not trainer.train(stop)
    assert (config.folder / TO_BE_RESUMED).is_file() and trainer.monitor.undone(6) == ["validate", "sample"]
    again = Trainer(config)
    assert again.train() and not again.monitor.undone(6)
    assert not (config.folder / TO_BE_RESUMED).exists()


def test_logged_means_do_not_lose_steps_before_a_checkpoint(tiny):
    """Three steps a checkpoint, four a row: the row after a kill has the mean of all its steps."""
    options = ("train.log_every=4", "train.checkpoint_every=3", "train.steps=8")
    plain, _ = tiny("name=plain", *options)
    assert Trainer(plain).train()
    killed, _ = tiny("name=killed", *options)
    shutil.copytree(checkpoint_path(plain.folder, 3), checkpoint_path(killed.folder, 3))
    trainer = Trainer(killed)
    assert trainer.step == 3 and len(trainer.recent) == 3
    assert trainer.train()
    assert list(rows(killed, "train/loss")) == [4, 8]
    for key in ("train/loss", "train/grad_norm", "train/skipped"):
        assert rows(killed, key) == pytest.approx(rows(plain, key), rel=1e-5)
