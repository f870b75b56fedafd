"""The engine at every ZeRO stage, in two ranks: masters and averages, one decision to skip, states that fit every stage."""

from pathlib import Path

import pytest
from launch import run_all

from sparsevid.config import ConfigError, TrainConfig
from sparsevid.training.engine import SAID_BY_RUN, engine_settings

RANKS = Path(__file__).with_name("engine_ranks.py")


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_every_stage(precision):
    """What `engine_ranks.py` says of each check."""
    printed = run_all(RANKS, precision, processes=2)
    assert all(f"stage {stage} {precision}: average, skipping, other stages" in printed for stage in range(4))
    assert f"losses {precision}: all stages alike" in printed


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
    assert settings["zero_optimization"] == {"stage": 2, "overlap_comm": True} and settings["bf16"] == {"enabled": True}
    assert (settings["train_micro_batch_size_per_gpu"], settings["gradient_accumulation_steps"]) == (3, 4)
    with pytest.raises(ConfigError, match="float16 needs train.zero_stage 1, 2 or 3"):
        engine_settings(TrainConfig(precision="float16"), 1, 1)
    with pytest.raises(ConfigError, match="leave one of them out"):
        engine_settings(TrainConfig(deepspeed=str(path), zero_stage=1), 1, 1)
