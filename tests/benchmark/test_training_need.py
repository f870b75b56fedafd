"""What a run's training needs, from its configuration alone."""

import json

import pytest

from sparsevid.benchmark.candidates import open_run
from sparsevid.benchmark.memory import need_as_json, need_tables, training_need
from sparsevid.cli import run_tool
from sparsevid.runs.config import ConfigError
from sparsevid.sparsity.cost import forward_macs, parameter_count

CARD = "name: few\nlabel_rule: folder\nclip: {frames: 4, size: [32, 48]}\nclasses: [a, b, c]\n"
RUN = """
name: mine
model: {layout: 1P 1(1M1S1R1D) 1D, hidden_size: 32, num_heads: 2, patch_size: 1}
schedule: {frames: 2, r_min: 0.3, r_max: 0.8}
autoencoder: {kind: linear, channels: 6, patch: 8}
objective: {kind: flow, times: uniform}
train: {global_batch: 12, micro_batch: 3}
"""


@pytest.fixture
def run(tmp_path):
    """A run's file, of a card whose data are not here."""
    (tmp_path / "few.yaml").write_text(CARD, encoding="utf-8")
    (tmp_path / "run.yaml").write_text(f"{RUN}data: {{card: {tmp_path / 'few.yaml'}}}\n", encoding="utf-8")
    return tmp_path / "run.yaml"


def test_batch_arithmetic_and_parameters_are_those_of_the_run(run):
    need = training_need(open_run(run))
    spec, schedule = need.model.spec, need.model.schedule
    splits = {each.gpus: (each.micro_batch, each.accumulation) for each in need.ranks}
    assert splits == {1: (3, 4), 2: (3, 2), 4: (3, 1)}  # 8 ranks cannot have 12 clips
    assert sum(each.share for each in need.stages) == pytest.approx(1.0) and len(need.stages) == len(schedule.stages)
    mean = sum(each.share * 3 * forward_macs(spec, grid=each.grid) for each in need.stages)
    assert need.macs == pytest.approx(12 * mean) and need.parameters == parameter_count(spec)
    assert {each.zero_stage for each in need.ranks} == {0, 1, 2, 3} and need.zero_stage == 0
    assert all(each.most.most == max(memory.most for memory in each.by_stage) for each in need.ranks)


def test_what_cannot_be_is_named(run):
    with pytest.raises(ConfigError, match="12 is not a multiple of the 5 ranks"):
        training_need(open_run(run), [5])
    with pytest.raises(ConfigError, match="0 GPUs"):
        training_need(open_run(run), [0])


def test_only_stages_that_go_with_optimizer_and_precision_are_counted(run):
    stages = {
        setting: {each.zero_stage for each in training_need(open_run(run, [setting]), [1]).ranks}
        for setting in ("train.optimizer=muon", "train.precision=float16", "train.precision=bfloat16")
    }
    assert [*stages.values()] == [{0}, {1, 2, 3}, {0, 1, 2, 3}]


def test_a_deepspeed_file_says_what_lies_on_the_host(run, tmp_path):
    settings = {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": True, "offload_optimizer": {"device": "cpu"}}
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": settings}), encoding="utf-8")
    need = training_need(open_run(run, [f"train.deepspeed={tmp_path / 'zero.json'}"]), [2])
    by_stage = {each.zero_stage: each.most for each in need.ranks}
    assert need.zero_stage == 2 and by_stage[2].on_host > 0 and not any(by_stage[stage].on_host for stage in (0, 1, 3))
    assert by_stage[2].buffers == 2 * 1000 * 4


def test_the_command_and_a_dry_run_print_the_same(run, capsys):
    assert run_tool("memory", [str(run), "train.zero_stage=1", "--gpus", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(need_as_json(training_need(open_run(run, ["train.zero_stage=1"]), [2]))))
    assert run_tool("train", [str(run), "train.zero_stage=1", "--dry-run", "--gpus", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == printed
    assert run_tool("train", [str(run), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(title in shown for title, *_ in need_tables(training_need(open_run(run))))
    assert not (run.parent / "runs").exists()
    assert run_tool("train", [str(run), "--json"]) == 2
    assert "--json and --gpus go with --dry-run" in capsys.readouterr().err
