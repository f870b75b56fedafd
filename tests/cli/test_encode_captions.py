"""`sparsevid encode_captions`: from a card to a cache that a run reads; any number of ranks writes the same files."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest
import torch
from data.caches import contents, shard_times
from data.trees import plant_video
from launch import run_all
from text.tiny import tiny_text_encoder

from sparsevid.cli import run_tool
from sparsevid.data.open import open_data
from sparsevid.runs.config import load_config
from sparsevid.text.cache import TextCache
from sparsevid.text.encoder import TextEncoder

TOOL = Path(__file__).parents[2] / "tools" / "encode_captions.py"
CAPTIONS = [
    f"{number} {animal} {does}" for number in ("one", "two") for animal in ("frog", "fox") for does in ("runs", "sleeps")
]


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    """Eight captions of four videos of two splits; a fifth video has none."""
    root = tmp_path_factory.mktemp("data")
    rows = []
    for place, name in enumerate(["train/a", "train/b", "test/c", "test/d", "test/e"]):
        plant_video(root / "videos" / f"{name}.mp4")
        rows += [f"{name}.mp4,{caption}" for caption in CAPTIONS[2 * place : 2 * place + 2]]
    (root / "videos" / "captions.csv").write_text("\n".join(["path,caption", *rows, f"train/a.mp4,{CAPTIONS[7]}", ""]))
    path = root / "card.yaml"
    path.write_text(
        f"name: animals\nroot: {root / 'videos'}\ncaptions: {{rule: csv}}\nclip: {{frames: 3, stride: 1, size: [16, 16]}}\n"
        "split: {rule: folders, folders: {train: [train], test: [test]}, default: train}\n"
    )
    return path


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return tiny_text_encoder(tmp_path_factory.mktemp("t5"), CAPTIONS, channels=2048)


def arguments(card, t5, out, *options):
    """Shards of three captions: 4 tokens × 2048 channels in 2 bytes each are 16 KiB."""
    return [
        str(each) for each in (card, "--out", out, "--encoder", t5, "--tokens", 6, "--device", "cpu", "--batch", 2, *options)
    ]


def encode(card, t5, out, *options):
    return run_tool("encode_captions", arguments(card, t5, out, *options))


@pytest.fixture(scope="module")
def cache(card, t5, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    assert encode(card, t5, folder) == 0
    return folder


def test_all_captions_of_all_splits_are_encoded_once(card, t5, cache, caplog):
    found = TextCache.open(cache)
    assert sorted(found.captions) == sorted(["", *CAPTIONS]) and found.dtype == "float16"
    encoder = TextEncoder.from_pretrained(t5, tokens=6, device="cpu")
    expected = encoder(found.captions)
    torch.testing.assert_close(found.read(range(9)).text.float(), expected.text, rtol=1e-3, atol=1e-3)
    run = open_data(load_config(None, [f"data.card={card}", f"data.captions={cache}", "text.tokens=6", "data.split=all"]))
    assert {run.dataset[index]["text"].shape for index in range(5)} == {(6, 2048)} and run.config.text.encoder == str(t5)


def test_what_was_encoded_is_said(card, t5, tmp_path, caplog):
    assert encode(card, t5, tmp_path) == 0
    assert "1 of 5 videos have no caption, such as test/e.mp4: theirs is the empty one" in caplog.text
    assert "holds 9 captions" in caplog.text and "of 5 videos, 1 without a caption: data.captions=" in caplog.text
    assert encode(card, t5, tmp_path / "short", "--tokens", 2) == 0
    assert "8 of 9 prompts are longer than 2 tokens: 16 tokens are cut off" in caplog.text


def test_the_same_command_adds_what_is_new_and_verify_finds_damage(card, t5, cache, tmp_path, capsys):
    assert encode(card, t5, cache, "--verify") == 0
    options = ["--card-option", "captions.rule=csv"]
    assert encode(card, t5, tmp_path, *options) == 0
    times = shard_times(tmp_path)
    table = card.parent / "videos" / "captions.csv"
    before = table.read_text()
    try:
        table.write_text(before + "test/e.mp4,a bear\n")
        assert encode(card, t5, tmp_path, "--verify") == 2
        assert "lacks 1 of 10 captions, such as 'a bear'" in capsys.readouterr().err
        assert encode(card, t5, tmp_path) == 0 and encode(card, t5, tmp_path, "--verify") == 0
        assert times.items() <= shard_times(tmp_path).items()
    finally:
        table.write_text(before)
    path = next((tmp_path / "shards").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert encode(card, t5, tmp_path, "--verify", "--card-option", "captions.files=[captions.csv]") == 2
    assert "checksum" in capsys.readouterr().err


def test_what_cannot_be_done_is_said(card, t5, tmp_path, capsys):
    assert encode(card, tmp_path / "none", tmp_path / "out") == 2
    assert "no folder" in capsys.readouterr().err
    assert encode("demo", t5, tmp_path / "out") == 2
    assert "says nothing of captions" in capsys.readouterr().err
    assert encode(card, t5, tmp_path / "out", "--verify") == 2
    assert "is no cache of captions" in capsys.readouterr().err
    other = tiny_text_encoder(tmp_path / "other", CAPTIONS, channels=2048, seed=1)
    assert encode(card, t5, tmp_path / "out") == 0 and encode(card, other, tmp_path / "out", "--verify") == 2
    said = capsys.readouterr().err
    assert f"holds features of {t5}" in said and f"not of {other}" in said
    assert encode(card, other, tmp_path / "out") == 2
    assert "made with other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_any_number_of_ranks_writes_the_same_files(card, t5, tmp_path):
    write_small(card, t5, tmp_path / "one")
    script = tmp_path / "small.py"
    script.write_text(f'if __name__ == "__main__":\n{indent(SCRIPT, "    ")}')
    printed = run_all(script, *arguments(card, t5, tmp_path / "two"), processes=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one") and len(shard_times(tmp_path / "one")) > 2, printed


SCRIPT = """
import sys
from sparsevid.cli import run_tool
from sparsevid.system import shards
shards.MEGABYTE = 512  # a limit of 32 KiB in place of 64 MiB
raise SystemExit(run_tool("encode_captions", sys.argv[1:]))
"""


def write_small(card, t5, folder, *lines):
    """The command in a process of its own, in shards of 32 KiB, with more lines of code before it."""
    code = SCRIPT.replace("raise ", "\n".join([*lines, "raise "]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TOOL.parents[1]), *sys.path])}
    command = [sys.executable, "-c", code, *arguments(card, t5, folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_a_killed_command_goes_on(card, t5, tmp_path):
    whole = write_small(card, t5, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    killed = write_small(
        card, t5, tmp_path / "killed",
        "import os, signal", "from sparsevid.text.write import CaptionWriter", "encode, left = CaptionWriter._encode, [3]",
        "def dies(self, items):", "    left[0] -= 1", "    left[0] or os.kill(os.getpid(), signal.SIGKILL)",
        "    return encode(self, items)", "CaptionWriter._encode = dies",
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "captions.json").exists(), killed.stderr
    finished = shard_times(tmp_path / "killed")
    again = write_small(card, t5, tmp_path / "killed")
    assert again.returncode == 0 and contents(tmp_path / "killed") == contents(tmp_path / "whole"), again.stderr
    assert len(finished) > 0 and finished.items() <= shard_times(tmp_path / "killed").items()
