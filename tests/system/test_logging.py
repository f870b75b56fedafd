"""What the console shows, and metrics beside a run: JSON lines, TensorBoard, Weights & Biases if it is asked for."""

import contextlib
import importlib.util
import logging
import os
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sparsevid.system.logging import MetricWriter, get_logger, print_table, progress, read_metrics

PACKAGE = logging.getLogger("sparsevid")


def board(folder) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()


def test_scalars_reach_json_lines_and_tensorboard(tmp_path):
    """What is written is read back; a second writer of the same folder, as a resumed run has, goes on after the first."""
    for step in (1, 2):
        with MetricWriter(tmp_path) as metrics:
            metrics.scalars({"train/loss": 0.5 / step, "data/redraws": step}, step)
    assert read_metrics(tmp_path) == [{"step": step, "train/loss": 0.5 / step, "data/redraws": step} for step in (1, 2)]
    assert [(each.step, each.value) for each in board(tmp_path).Scalars("train/loss")] == [(1, 0.5), (2, 0.25)]


def test_a_value_that_is_not_finite_is_a_word_in_json_lines(tmp_path):
    with MetricWriter(tmp_path) as metrics:
        metrics.scalars({"validation/loss": float("nan"), "score/frechet": float("inf")}, 1)
    assert read_metrics(tmp_path) == [{"step": 1, "validation/loss": "nan", "score/frechet": "inf"}]


def test_tensorboard_forgets_steps_that_are_made_again(tmp_path):
    """Four steps and a kill; the run goes on from step 2."""
    for done, steps in ((0, (1, 2, 3, 4)), (2, (3,))):
        with MetricWriter(tmp_path, step=done) as metrics:
            for step in steps:
                metrics.scalars({"train/loss": 1.0 + done}, step)
    assert [(each.step, each.value) for each in board(tmp_path).Scalars("train/loss")] == [(1, 1.0), (2, 1.0), (3, 3.0)]


@pytest.mark.parametrize("cut", ['{"step": 2, "train/lo', '{"step": 2, "train/loss": 0.25}'])
def test_a_row_that_a_kill_cut_off_takes_no_other_with_it(cut, tmp_path):
    """It stays as it is, rows of before and after are whole, and a reader passes over it."""
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n' + cut, encoding="utf-8")
    for step in (2, 3):
        with MetricWriter(tmp_path) as metrics:
            metrics.scalars({}, step)
    assert file.read_text(encoding="utf-8") == f'{{"step": 1}}\n{cut}\n{{"step": 2}}\n{{"step": 3}}\n'
    assert [row for row in read_metrics(tmp_path) if len(row) == 1] == [{"step": step} for step in (1, 2, 3)]
    assert read_metrics(tmp_path / "none") == []


def test_image_comes_back_from_tensorboard(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    with MetricWriter(tmp_path) as metrics:
        metrics.image("samples", array, 4)
    (event,) = board(tmp_path).Images("samples")
    assert event.step == 4 and np.array_equal(np.asarray(Image.open(BytesIO(event.encoded_image_string))), array)


def test_asking_for_wandb_without_the_package_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(ImportError, match="pip install wandb"):
        MetricWriter(tmp_path, wandb=True)
    with MetricWriter(tmp_path) as metrics:  # never required
        metrics.scalars({"train/loss": 1.0}, 1)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_resumed_run_keeps_its_wandb_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for step in (1, 2):
        with MetricWriter(tmp_path, wandb=True, config={"train": {"lr": 1e-4}}) as metrics:
            metrics.scalars({"train/loss": 1.0}, step)
            metrics.image("samples", np.zeros((4, 4, 3), dtype=np.uint8), step)
            ids.append(metrics.wandb.id)
    assert ids[0] == ids[1] == (tmp_path / "wandb_id").read_text().strip()
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{ids[0]}"))) == 2


def test_a_full_disk_ends_no_run_and_cuts_no_row(tmp_path):
    """A limit on the size of files stands for the disk; when there is room again, no row is lost. Each is told once."""
    script = f"""
import resource, sys
from pathlib import Path
from sparsevid.system.logging import MetricWriter
with MetricWriter(Path({str(tmp_path)!r})) as metrics:
    for step in range(200):
        limit = 1000 if 5 <= step < 150 else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        metrics.scalars({{"train/loss": 1 / (1 + step)}}, step)
        metrics.board is None or metrics.board.flush() if step == 10 else None
        if step == 149:
            print((Path({str(tmp_path)!r}) / "metrics.jsonl").read_text()[-1] == chr(10), metrics.board is None)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ["True", "True"], done.stderr
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(200))
    assert done.stderr.count("metrics.jsonl cannot be written, its lines wait until it can: [Errno 27]") == 1
    assert done.stderr.count("TensorBoard's files cannot be written, and show no more of this process: [Errno 27]") == 1


def test_rows_that_never_found_room_are_told(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sparsevid"), "propagate", True)  # to where caplog listens
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with MetricWriter(tmp_path) as metrics:
        for step in (1, 2):
            metrics.scalars({"train/loss": 0.5}, step)
    assert "metrics.jsonl cannot be written" in caplog.text and "lacks its last 2 lines" in caplog.text
    assert board(tmp_path).Scalars("train/loss")[-1].step == 2


def test_a_log_that_cannot_be_written_ends_no_loop(monkeypatch):
    """Of a progress bar; standard error then goes to a full disk."""
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert list(progress(range(3), mininterval=0)) == [0, 1, 2]
        monkeypatch.undo()
        with pytest.raises(OSError):  # what was to be written is still in its buffer
            full.close()


def test_a_table_has_words_to_the_left_numbers_to_the_right_and_facts_no_head(capsys):
    print_table("t", ["name", "number", "where"], [["a", "1", "/x"], ["b", "1.25", "/long"]], "how to read it")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip() == "t" and lines[-1] == "how to read it"
    assert [[cell[1:-1] for cell in line.split("│")[1:-1]] for line in lines[4:6]] == [
        ["a   ", "     1", "/x   "],
        ["b   ", "  1.25", "/long"],
    ]
    print_table("t", [], [["a", "1"], ["long", "25"]])
    assert [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines()[2:4]] == [
        [" a    ", " 1  "],
        [" long ", " 25 "],
    ]


def test_a_bar_is_shown_on_a_terminal_that_says_it_is_0_wide(monkeypatch):
    main, end = os.openpty()
    with os.fdopen(end, "w") as terminal:
        assert os.get_terminal_size(end).columns == 0
        monkeypatch.setattr(sys, "stderr", terminal)
        list(progress(range(3), desc="clips"))
        monkeypatch.undo()
    shown = b""
    with contextlib.suppress(OSError):  # of a terminal whose other end is closed, once all is read: it may come in parts
        while part := os.read(main, 10_000):
            shown += part
    os.close(main)
    assert b"clips: 100%" in shown and b"3/3" in shown


def test_a_message_comes_from_the_room_of_its_module():
    """However deep the module lies; what another library logs is left to it."""
    for name in ("sparsevid.data.tree.walk", "sparsevid.data.clips", "sparsevid.training.trainer"):
        get_logger(name)
    shown = PACKAGE.handlers[0]
    records = [PACKAGE.makeRecord(get_logger(name).name, logging.WARNING, "", 0, "%d files", (3,), None)
               for name in ("sparsevid.data.tree.walk", "sparsevid.training.trainer", "sparsevid")]  # fmt: skip
    assert [shown.format(record) for record in records] == ["W data: 3 files", "W training: 3 files", "W sparsevid: 3 files"]
    assert get_logger("sparsevid.data.tree.walk") is get_logger("sparsevid.data.clips")
    assert get_logger("__main__").name == "sparsevid.__main__"  # a script's, under the same handler


def test_bars_in_a_log_file_are_few_whole_lines(capsys):
    """Also where one stands below another; nothing moves the cursor, and a clip a millisecond is no line each."""
    with progress(total=500, desc="outer") as outer, progress(total=500, desc="inner", position=1, leave=False) as inner:
        for _ in range(500):
            outer.set_postfix_str("loss 1", refresh=False)
            outer.update()
            inner.update()
    said = capsys.readouterr().err
    assert "\r" not in said and "\x1b" not in said and said.endswith("\n")
    lines = said.splitlines()
    assert all(line.startswith(("outer: ", "inner: ")) for line in lines) and len(lines) <= 4
    assert any("500/500" in line for line in lines)
