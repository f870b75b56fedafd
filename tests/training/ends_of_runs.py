"""What runs end with, compared: weights, averages, optimizer and losses."""

import json
import shutil
from pathlib import Path

import torch
from launch import run_all, weights
from ranks import NEXT_LAUNCH
from safetensors.torch import load_file

from sparsevid.runs.checkpoints import checkpoint_path
from sparsevid.training.trainer import Trainer

RUNS = Path(__file__).with_name("runs.py")


def metrics(config) -> list[dict]:
    """Rows of the run's metrics, the last that was written for each step."""
    lines = (config.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return list({row["step"]: row for row in map(json.loads, lines)}.values())


def same_end(one, other, *, step: int = 6) -> bool:
    """Whether two runs ended in the same weights, averages and optimizer, bit for bit, with the same losses on the way."""
    ours, theirs = (
        {**weights(path), **_states(path)} for path in (checkpoint_path(each.folder, step) for each in (one, other))
    )
    losses = [[(row["step"], row.get("train/loss"), row["train/skipped"]) for row in metrics(each)] for each in (one, other)]
    return (
        losses[0] == losses[1] and ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    )


def _states(checkpoint: Path) -> dict[str, torch.Tensor]:
    files = sorted((checkpoint / "training").glob("*.safetensors"))
    return {f"{file.name}:{name}": value for file in files for name, value in load_file(file).items()}


def assert_close_ends(one, other, *, step: int = 6) -> None:
    ours, theirs = (weights(checkpoint_path(each.folder, step)) for each in (one, other))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-4)


def check_two_processes(tiny, stage: int, *overrides: str) -> None:
    """Two ranks with two slots each equal one rank with four; stopped half-way and resumed equals both, on other ranks too.

    And a rank whose numbers go bad: the step is skipped on both, and nothing of it is left.
    """
    common = (f"train.zero_stage={stage}", "train.micro_batch=1", "train.steps=4", *overrides)
    whole, whole_path = tiny("name=whole", *common)
    half_path = tiny("name=halved", *common, "train.steps=2")[1].rename(whole_path.with_name("half.yaml"))
    halved, halved_path = tiny("name=halved", *common)
    bad, bad_path = tiny("name=bad", *common)
    printed = run_all(RUNS, whole_path, half_path, f"nan:{bad_path}", NEXT_LAUNCH, halved_path, processes=2)
    assert "step-0000002" in printed.partition("resumed from")[2].split("\n")[0]
    assert same_end(whole, halved, step=4)
    fewer, _ = tiny("name=fewer", *common)
    shutil.copytree(halved.folder, fewer.folder)
    shutil.rmtree(checkpoint_path(fewer.folder, 4))
    trainer = Trainer(fewer)  # from two ranks to one
    assert trainer.step == 2
    trainer.train()
    assert_close_ends(fewer, whole, step=4)
    single, _ = tiny("name=single", *common)
    Trainer(single).train()
    assert_close_ends(single, whole, step=4)
    rows = {row["step"]: row for row in metrics(bad)}
    assert [rows[step]["train/skipped"] for step in range(1, 5)] == [0, 0, 1, 0]
    assert all(value.isfinite().all() for value in weights(checkpoint_path(bad.folder, 4)).values())
