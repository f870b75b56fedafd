"""Bulk generation in processes of its own: the same files however it is run, and nothing half-written."""

import json
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest
from generation.prompted import write_text_checkpoint
from generation.sampled import command, digests, sample, sample_as_ranks, start, write_checkpoint

from sparsevid.system.locks import FolderLock

DIES = Path(__file__).with_name("dies.py")
OPTIONS = ("--batch", "2", "--steps", "3", "--sampler", "ddpm", "--format", "ffv1", "--device", "cpu")


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
    job = (*OPTIONS, "--num", 7, "--out", tmp_path / "out", "--graph", "off")  # which changes nothing
    assert "7 clips in" in sample(checkpoint, *job, processes=2)
    assert digests(tmp_path / "out") == whole


@pytest.mark.slow
def test_prompts_by_two_processes_give_the_same_files(tmp_path):
    """Of a file and of the line, guided; each rank encodes its own."""
    checkpoint, file = write_text_checkpoint(tmp_path / "text"), tmp_path / "prompts.txt"
    file.write_text("rain\n\nTwo boxers in a ring\n", encoding="utf-8")
    prompts = ("--prompts", "a green frog", file, "--guidance", "3", "--null-caption", "encoded")
    options = (*OPTIONS[:-4], "--format", "mp4", "--device", "cpu", *prompts, "--num", 7, "--grid")
    for processes in (1, 2):
        assert "7 clips in" in sample(checkpoint, *options, "--out", tmp_path / str(processes), processes=processes)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
    record = json.loads((tmp_path / "1" / "samples.json").read_text(encoding="utf-8"))
    assert record["settings"]["prompts"] == ["a green frog", "rain", "Two boxers in a ring"]
    assert "8 clips in" in sample(checkpoint, *options[:-3], "--num", 8, "--out", tmp_path / "2", processes=2)
    printed = sample(checkpoint, *options[:-3], "--num", 2, "--prompts", "fog", "--out", tmp_path / "2", succeeds=False)
    assert "holds clips of other settings: prompts is [" in printed


@pytest.mark.slow
def test_all_ranks_take_the_checkpoint_that_rank_0_finds(checkpoint, whole, tmp_path):
    """What rank 1 would find has other weights, as when training has finished another checkpoint meanwhile."""
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    (other / "ema").rename(other / "was-ema")
    (other / "model").rename(other / "ema")
    job = (*OPTIONS, "--num", 7, "--out", tmp_path / "out")
    printed = sample_as_ranks((checkpoint, *job), (other, *job))
    assert "7 clips in" in printed[0], printed
    assert digests(tmp_path / "out") == whole


@pytest.mark.slow
def test_ranks_of_different_weights_are_refused_alike(checkpoint, tmp_path):
    job = (checkpoint, *OPTIONS, "--num", 4, "--out", tmp_path / "out")
    together = "".join(sample_as_ranks((*job, "--weights", "ema"), (*job, "--weights", "model")))
    said = r"the ranks do not have the same job: checkpoint is '\w+' on rank 0 and '\w+' on rank 1$"
    assert len(re.findall(said, together, re.MULTILINE)) == 1 and "Traceback" not in together, together
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_rank_says_why_another_ended(checkpoint, tmp_path):
    """Rank 1 cannot write its clips: a limit on the size of files stands for a full disk."""
    job, limit = (checkpoint, *OPTIONS, "--num", 4, "--out", tmp_path / "out"), 3000
    full = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))}
    first, second = sample_as_ranks(job, job, options=({}, full))
    reason = rf"clip [23] could not be written to {re.escape(str(tmp_path / 'out'))}: File too large"
    assert re.search(f"rank 1: error: {reason}", second), second
    said = rf"rank 0: error: another rank ended .* during generating clips; rank 1 on .*: GenerationError: {reason}"
    assert re.search(said, first) and "Traceback" not in first, first


@pytest.mark.slow
def test_a_second_job_leaves_the_first_alone(checkpoint, whole, tmp_path):
    """It ends and says who fills the folder; when that is over, it goes on."""
    out = tmp_path / "out"
    job = (checkpoint, *OPTIONS, "--num", 7, "--out", out)
    with FolderLock(out, "filled"):
        draft = out / ".000000.mkv.0123abcd.partial"
        draft.touch()
        printed = sample(*job, succeeds=False)
        assert f"{out} is being filled by pid {os.getpid()} on" in printed and "Traceback" not in printed, printed
        assert draft.exists()
    sample(*job)
    assert digests(out) == whole


@pytest.mark.gpu
def test_cuda_without_an_index_is_a_device(checkpoint, tmp_path):
    assert "2 clips in" in sample(checkpoint, *OPTIONS, "--device", "cuda", "--num", 2, "--out", tmp_path / "out")


@pytest.mark.slow
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
