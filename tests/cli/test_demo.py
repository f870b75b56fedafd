"""The demo's own end, with a run of a few steps."""

import json

import pytest

from sparsevid.cli import demo, run_tool
from sparsevid.runs.config import load_config
from sparsevid.training.trainer import split_batch

KEYS = {"parameters", "dense_macs", "sparse_macs", "dense_step_seconds", "sparse_step_seconds", "loss_first", "loss_last"}
KEYS |= {"score", "score_untrained", "contact_sheet"}


@pytest.fixture
def few_clips(monkeypatch):
    monkeypatch.setattr(demo, "SCORED_CLIPS", 4)


def test_demo_ends_with_a_summary_and_pictures(few_clips, tmp_path, capsys):
    small = ["model.hidden_size=32", "train.steps=6", "train.global_batch=4", "train.log_every=1", "sample.steps=4"]
    assert run_tool("demo", ["--out", str(tmp_path / "demo"), "--processes", "1", *small]) == 0
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text(encoding="utf-8"))
    assert summary.keys() >= KEYS
    assert summary["sparse_macs"] < summary["dense_macs"] and summary["score"] > 0
    assert (tmp_path / "demo" / "contact_sheet.png").is_file()
    assert len(list((tmp_path / "demo" / "samples").glob("*.mp4"))) == 4
    assert "contact sheet:" in capsys.readouterr().out


@pytest.mark.parametrize("processes", range(1, 9))
def test_any_number_of_processes_shares_the_batch(processes):
    train = load_config(demo.CONFIG, []).train
    batch = demo.batch_for(processes, train.global_batch, train.micro_batch)
    micro, slots = split_batch(batch, train.micro_batch, processes)
    assert micro * slots * processes == batch and 0 <= batch - train.global_batch < processes
    whole = demo.batch_for(processes, 8, 2)
    assert split_batch(whole, 2, processes) == (2, whole // processes // 2)


@pytest.mark.slow
def test_demo_on_three_processes(few_clips, tmp_path, caplog):
    small = ["model.hidden_size=32", "train.steps=2", "train.log_every=1", "sample.steps=2"]
    assert run_tool("demo", ["--out", str(tmp_path / "demo"), "--processes", "3", *small]) == 0
    assert "train.global_batch = 9 in place of 8: 3 processes share it evenly" in caplog.text
    assert (tmp_path / "demo" / "summary.json").is_file()
