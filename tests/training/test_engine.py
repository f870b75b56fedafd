"""The engine at every ZeRO stage, in two ranks: masters and averages, one decision to skip, states that fit every stage."""

import math
from pathlib import Path

import pytest
import torch
from launch import run_all
from torch import Tensor, nn

import sparsevid.training.engine
from sparsevid.runs.config import ConfigError, TrainConfig
from sparsevid.training import TrainingError
from sparsevid.training.deepspeed_file import SAID_BY_RUN
from sparsevid.training.engine import Engine, engine_settings

RANKS = Path(__file__).with_name("engine_ranks.py")


class Timeless(nn.Module):
    """A network that is called with times, as an engine calls it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, t: Tensor | None) -> Tensor:
        return self.inner(x)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_stage(precision):
    """What `engine_ranks.py` says of each check. Whole runs at a stage are in `test_processes.py`, and one is fast."""
    stages = range(4)
    printed = run_all(RANKS, precision, *map(str, stages), processes=2)
    assert all(f"stage {stage} {precision}: average, skipping, other stages" in printed for stage in stages)
    assert f"losses and norms {precision}: all stages alike" in printed
    assert precision != "float32" or "stage 3 float32: recomputed activations" in printed


@pytest.mark.parametrize("gradient_clipping", [0.0, 1.0])
def test_finite_gradients_whose_norm_overflows_are_skipped(gradient_clipping):
    model = nn.Linear(3, 2)
    engine = Engine(Timeless(model), TrainConfig(gradient_clipping=gradient_clipping), 1, 1)
    before = model.weight.detach().clone()
    assert not engine.step(engine(torch.full((1, 3), 1e30), None).sum(), 1e-2)
    assert engine.grad_norm == math.inf and torch.equal(model.weight, before)


def test_a_gradient_that_is_applied_although_it_is_not_finite_is_an_error(monkeypatch):
    """As by versions of DeepSpeed that do not look at bfloat16."""
    unchecked = {"bf16": {"enabled": True, "check_grad_overflow": False}}
    monkeypatch.setattr(sparsevid.training.engine, "engine_settings", lambda *given: engine_settings(*given) | unchecked)
    engine = Engine(Timeless(nn.Linear(3, 2)), TrainConfig(precision="bfloat16", zero_stage=1), 1, 1)
    with pytest.raises(TrainingError, match="applied a gradient whose norm is not finite"):
        engine.step(engine(torch.full((1, 3), math.nan), None).sum(), 1e-2)


@pytest.mark.parametrize("tf32", [True, False])
def test_a_run_says_what_float32_means(tf32):
    """For products and convolutions alike, and whatever it meant before in this process."""
    torch.backends.cudnn.allow_tf32 = not tf32
    Engine(Timeless(nn.Linear(3, 2)), TrainConfig(tf32=tf32), 1, 1)
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32


@pytest.mark.parametrize("key", SAID_BY_RUN)
def test_nothing_is_said_twice(tmp_path, key):
    path = tmp_path / "ds.json"
    path.write_text(f'{{"zero_optimization": {{"stage": 2}}, "{key}": {{}}}}', encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{key} are said by the run's own configuration"):
        engine_settings(TrainConfig(deepspeed=str(path)), 1, 1)


def test_deepspeed_files_are_checked(tmp_path):
    path = tmp_path / "ds.json"
    with pytest.raises(ConfigError, match="no such file"):
        engine_settings(TrainConfig(deepspeed=str(path)), 1, 1)
    for content in ("{", "[]", '{"zero_optimization": {}}'):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match="no DeepSpeed configuration"):
            engine_settings(TrainConfig(deepspeed=str(path)), 1, 1)
    path.write_text('{"zero_optimization": {"stage": 2}, "comms_loger": {}}', encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown key 'comms_loger'; did you mean 'comms_logger'"):
        engine_settings(TrainConfig(deepspeed=str(path)), 1, 1)
    path.write_text('{"zero_optimization": {"stage": 2}, "gradient_allreduce_op": "avg"}', encoding="utf-8")
    assert engine_settings(TrainConfig(deepspeed=str(path)), 1, 1)["gradient_allreduce_op"] == "avg"
    path.write_text('{"zero_optimization": {"stage": 2, "overlap_comm": true}}', encoding="utf-8")
    settings = engine_settings(TrainConfig(deepspeed=str(path), precision="bfloat16"), 3, 4)
    assert settings["zero_optimization"] == {"stage": 2, "overlap_comm": True} and settings["bf16"]["enabled"]
    assert (settings["train_micro_batch_size_per_gpu"], settings["gradient_accumulation_steps"]) == (3, 4)
    path.write_text('{"zero_optimization": {"stage": 2, "compute_grad_norm": false}}', encoding="utf-8")
    with pytest.raises(ConfigError, match="compute_grad_norm is off, but the norm says which steps to skip"):
        engine_settings(TrainConfig(deepspeed=str(path)), 1, 1)
    with pytest.raises(ConfigError, match="float16 needs train.zero_stage 1, 2 or 3"):
        engine_settings(TrainConfig(precision="float16"), 1, 1)
    path.write_text('{"zero_optimization": {"stage": 2}}', encoding="utf-8")
    with pytest.raises(ConfigError, match="leave one of them out"):
        engine_settings(TrainConfig(deepspeed=str(path), zero_stage=1), 1, 1)
