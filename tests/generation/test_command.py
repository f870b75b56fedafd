"""Bulk generation in processes of its own: the same files however it is run, and nothing half-written."""

import json
import os
import resource
import signal
from pathlib import Path

import pytest
from generation.sampled import command, digests, sample, start, write_checkpoint

DIES = Path(__file__).with_name("dies.py")
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
    process = start(command(checkpoint, *OPTIONS, "--num", 5, "--out", out, script=DIES))
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    (out / ".contact_sheet.png.0123abcd.partial").write_bytes(b"of an earlier death")
    assert list(out.glob(".*.partial")) and not (out / "000003.mkv").exists()
    os.truncate(out / "000000.mkv", (out / "000000.mkv").stat().st_size // 2)
    assert "7 clips in" in sample(checkpoint, *OPTIONS, "--num", 7, "--out", out)
    assert digests(out) == whole


@pytest.mark.slow
def test_one_of_two_processes_killed_and_resumed(checkpoint, whole, tmp_path):
    out = tmp_path / "out"
    process = start(command(checkpoint, *OPTIONS, "--num", 7, "--out", out, processes=2, script=DIES))
    printed, _ = process.communicate(timeout=300)
    assert process.returncode != 0 and "SIGKILL" in printed
    assert list(out.glob(".000003.mkv.*.partial")) and not (out / "000003.mkv").exists()
    there = len(list(out.glob("*.mkv")))
    printed = sample(checkpoint, *OPTIONS, "--num", 7, "--out", out, processes=2)
    assert there == 0 or f"{there} of 7 clips are there already" in printed
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
    assert f"could not be written to {out}: File too large" in printed and "Traceback" not in printed
    assert {path.name for path in out.iterdir()} == {"samples.json"}
