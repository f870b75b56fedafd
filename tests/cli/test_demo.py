"""The demo's own end, with a run of a few steps."""

import json

import pytest

from sparsevid.cli import demo, run_tool

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
