"""The demo's own end, with a run of a few steps."""

import importlib.util
import json
from types import MappingProxyType

import pytest
import torch
from PIL import Image

from sparsevid.cli import demo, run_tool
from sparsevid.data.made.base import MadeSettings
from sparsevid.runs.config import load_config
from sparsevid.training.trainer import split_batch

KEYS = {"parameters", "dense_macs", "sparse_macs", "dense_step_seconds", "sparse_step_seconds", "loss_first", "loss_last"}
KEYS |= {"score", "score_untrained", "contact_sheet"}
NATURAL = str(demo.CONFIG.parent / "natural.yaml")
SMALL = ["model.hidden_size=32", "train.steps=6", "train.global_batch=4", "train.log_every=1", "sample.steps=4"]
GAMES = ("breakout", "pong")

needs_ale = pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="needs ale-py (extra `atari`)")


@pytest.fixture
def few_clips(monkeypatch):
    monkeypatch.setattr(demo, "SCORED_CLIPS", 4)


@pytest.fixture
def small_set(monkeypatch):
    """A standard set of two games and some clips; its card's hash is then another, and nothing depends on that."""
    from sparsevid.data.made.atari import AtariSet

    monkeypatch.setattr(AtariSet, "defaults", MadeSettings(size=(64, 64), frames=16, skip=4, classes=GAMES, seed=0))
    monkeypatch.setattr(AtariSet, "default_counts", MappingProxyType({"train": 6, "test": 4}))


@pytest.mark.slow
def test_demo_of_natural_clips_ends_with_a_summary_and_pictures(few_clips, tmp_path, capsys):
    assert run_tool("demo", ["--config", NATURAL, "--out", str(tmp_path / "demo"), "--processes", "1", *SMALL]) == 0
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text(encoding="utf-8"))
    assert summary.keys() >= KEYS and summary["classes"] == {}
    assert summary["sparse_macs"] < summary["dense_macs"] and summary["score"] > 0
    assert (tmp_path / "demo" / "contact_sheet.png").is_file()
    assert len(list((tmp_path / "demo" / "samples").glob("*.mp4"))) == 4
    assert "contact sheet:" in capsys.readouterr().out


@needs_ale
def test_demo_makes_its_data_and_has_a_row_for_each_class(few_clips, small_set, tmp_path, capsys):
    data = ["data.card_options.classes=[breakout, pong]", f"data.root={tmp_path / 'atari'}", "autoencoder.fit_clips=8"]
    assert run_tool("demo", ["--out", str(tmp_path / "demo"), "--processes", "1", *SMALL, *data]) == 0
    assert json.loads((tmp_path / "atari" / "made.json").read_text(encoding="utf-8"))["train"] == 6
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text(encoding="utf-8"))
    assert summary.keys() >= KEYS and summary["score_untrained"] > summary["score_real_again"] > 0
    assert list(summary["classes"]) == list(GAMES) and all(0 <= share <= 1 for share in summary["classes"].values())
    assert summary["sparse_macs"] < 0.75 * summary["dense_macs"]
    printed = capsys.readouterr().out
    assert all(f"of their class: {name}" in printed for name in GAMES)
    with Image.open(tmp_path / "demo" / "contact_sheet.gif") as playing, Image.open(summary["contact_sheet"]) as sheet:
        assert playing.n_frames == 8 and sheet.height == playing.height == 2 * 128 + 2


def test_the_nearest_real_clip_gives_the_class():
    """Samples are of classes in turn; two of three owls lie at the real owls, and each elk at an elk."""
    real = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    samples = torch.tensor([[1.0, 0.0], [9.0, 0.0], [0.0, 2.0], [10.0, 1.0], [9.0, 3.0], [11.0, 0.0]])
    found = demo.recognised({"real": real[:1], "again": real[1:], "samples": samples}, [0, 1], ["owl", "elk"])
    assert found == {"owl": pytest.approx(2 / 3), "elk": 1.0}


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
    small = ["--config", NATURAL, "model.hidden_size=32", "train.steps=2", "train.log_every=1", "sample.steps=2"]
    assert run_tool("demo", ["--out", str(tmp_path / "demo"), "--processes", "3", *small]) == 0
    assert "train.global_batch = 9 in place of 8: 3 processes share it evenly" in caplog.text
    assert (tmp_path / "demo" / "summary.json").is_file()
