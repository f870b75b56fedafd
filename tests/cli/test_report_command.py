"""`sparsevid report` as it is called."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sparsevid.cli import run_tool

ROOT = Path(__file__).parents[2]


def test_a_page_is_written_and_said_where(tmp_path):
    results = tmp_path / "small.jsonl"
    results.write_text(json.dumps({"study": "small", "row": "dense", "seed": 0, "loss": 0.5}) + "\n", encoding="utf-8")
    command = [sys.executable, ROOT / "tools" / "report.py", "small.jsonl", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "small: 1 rows, 1 measurements" in done.stdout
    assert "out/index.html" in done.stdout
    assert "small" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["{folder}/none"], "is not there; accepted are a study's results"), (["{folder}"], "is neither"), ([], "RUN_OR_STUDY")],
)
def test_what_cannot_be_shown_is_an_error_that_says_what_can(tmp_path, capsys, arguments, reason):
    try:
        status = run_tool("report", [each.format(folder=tmp_path) for each in arguments] + ["--out", str(tmp_path / "out")])
    except SystemExit as error:  # argparse leaves this way
        status = error.code
    assert status == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_negative_number_of_clips_is_refused(tmp_path, capsys):
    assert run_tool("report", [str(tmp_path), "--out", str(tmp_path / "out"), "--clips", "-1"]) == 2
    assert "-1" in capsys.readouterr().err
