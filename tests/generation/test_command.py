"""Bulk generation in processes of its own: the same files however it is run, and nothing half-written."""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
from generation.sampled import digests, sample, start, write_checkpoint

OPTIONS = ("--batch", "2", "--steps", "3", "--sampler", "ddpm", "--format", "ffv1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory) -> dict[str, str]:
    """Digests of seven clips by one process without interruption."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert "7 clips in" in sample(checkpoint, *OPTIONS, "--num", 7, "--out", out)
    record = json.loads((out / "samples.json").read_text(encoding="utf-8"))
    assert record["num"] == 7 and record["settings"]["classes"] == ["walk", "run", "jump"]
    return digests(out)


def test_two_processes_give_the_same_files(checkpoint, whole, tmp_path):
    assert whole.keys() == {f"{index:06d}.mkv" for index in range(7)} | {"samples.json", "contact_sheet.png"}
    assert "7 clips in" in sample(checkpoint, *OPTIONS, "--num", 7, "--out", tmp_path / "out", processes=2)
    assert digests(tmp_path / "out") == whole


def test_killed_then_damaged_then_asked_for_more(checkpoint, whole, tmp_path):
    """Killed by SIGKILL half way to five clips, a file cut short; resumed, and asked for seven."""
    out = tmp_path / "out"
    arguments = [str(checkpoint), *OPTIONS, "--num", "5", "--out", str(out)]
    process = start([sys.executable, str(Path(__file__).with_name("dies.py")), *arguments])
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert list(out.glob(".*.partial")) and not (out / "000003.mkv").exists()
    os.truncate(out / "000000.mkv", (out / "000000.mkv").stat().st_size // 2)
    assert "7 clips in" in sample(checkpoint, *OPTIONS, "--num", 7, "--out", out)
    assert digests(out) == whole


@pytest.mark.slow
def test_a_full_disk_is_a_message_and_leaves_no_part_of_a_file(checkpoint, tmp_path):
    """A limit on the size of files stands for the disk: samples.json is smaller, clips are larger."""
    out, limit = tmp_path / "out", 3000
    printed = sample(
        *(checkpoint, *OPTIONS, "--num", 2, "--out", out),
        succeeds=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "sample: error: a clip could not be written: File too large" in printed and "Traceback" not in printed
    assert {path.name for path in out.iterdir()} == {"samples.json"}
