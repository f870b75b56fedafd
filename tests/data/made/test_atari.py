"""A made set is a function of its settings: whoever makes it, in whatever order, interrupted or not."""

import hashlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sessions import LIMIT

from sparsevid.cli import run_tool
from sparsevid.data.made import MADE, atari
from sparsevid.data.made.atari import GAMES, AtariSet
from sparsevid.data.made.base import SPLITS, MadeSettings
from sparsevid.data.made.default import against_card, set_class
from sparsevid.data.made.folder import RECORD, SUMS, MadeError, clips_of, make
from sparsevid.data.open import open_data
from sparsevid.data.tree.cards import load_card
from sparsevid.data.tree.manifest import build_manifest
from sparsevid.runs.config import load_config
from sparsevid.videos.read import read_frames

ROOT = Path(__file__).parents[3]
SMALL = MadeSettings(size=(24, 20), frames=3, skip=4, classes=("breakout", "pong"), seed=0)
COUNTS = {"train": 2, "test": 1}
OPTIONS = ["--train", "2", "--test", "1", "--games", "breakout", "pong", "--size", "24", "20", "--frames", "3"]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="needs ale-py (extra `atari`)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a small set was made; not to be changed."""
    path = tmp_path_factory.mktemp("made") / "atari"
    make(AtariSet(SMALL), path, COUNTS)
    return path


@pytest.fixture(scope="module")
def sha256(folder) -> str:
    """Of the small set, as read back."""
    return make(AtariSet(SMALL), folder, COUNTS).sha256


def command(out: Path, *options: str, **environment: str) -> subprocess.Popen:
    """The command in a process of its own."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    arguments = [sys.executable, "-m", "sparsevid.cli", "make_data", "atari", "--out", str(out), *OPTIONS, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": paths, **environment}, **pipes)


def test_files_give_the_frames_that_were_made_and_the_hash_is_theirs(folder, sha256):
    """In the documented order: train before test, classes by name, clips by number; (T,H,W,C) of each."""
    made, digest = AtariSet(SMALL), hashlib.sha256()
    for split, name, index in [("train", "breakout", 0), ("train", "breakout", 1), ("train", "pong", 0), ("train", "pong", 1),
                               ("test", "breakout", 0), ("test", "pong", 0)]:  # fmt: skip
        clip = made.clip(SPLITS.index(split), name, index)
        assert clip.shape == (3, 3, 24, 20) and clip.dtype == torch.uint8
        frames = read_frames(folder / split / name / f"{index:06d}.mkv", range(3))
        assert torch.equal(frames.transpose(0, 1), clip)
        digest.update(frames.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    assert digest.hexdigest() == sha256


@pytest.mark.parametrize("game", GAMES)
def test_a_clip_does_not_depend_on_what_was_played_before(game):
    """On one console, in any order, and on a fresh one; clips of other splits, numbers and seeds are others."""
    made, keys = AtariSet(replace(SMALL, classes=(game,))), [(0, 0), (0, 1), (1, 0)]
    alone = {}
    for split, index in keys:
        atari._console.cache_clear()
        alone[split, index] = made.clip(split, game, index)
    for split, index in random.Random(0).sample(2 * keys, 6):
        assert torch.equal(made.clip(split, game, index), alone[split, index])
    other = AtariSet(replace(SMALL, classes=(game,), seed=1)).clip(0, game, 0)
    clips = [*alone.values(), other]
    assert all(not torch.equal(a, b) for place, a in enumerate(clips) for b in clips[:place])


@pytest.mark.parametrize("game", GAMES)
def test_clips_move_and_are_not_dark(game):
    """In every one most frames differ from the one before, no frame is of one colour, and none is a flash."""
    made = AtariSet(replace(SMALL, size=(64, 64), frames=16, classes=(game,)))
    for index in range(2):
        frames = made.clip(0, game, index).transpose(0, 1).flatten(1).float()
        assert ((frames[1:] != frames[:-1]).any(dim=1)).sum() >= 11
        assert frames.std(dim=1).min() > 10 and frames.diff(dim=0).abs().mean(dim=1).max() < 40


def test_the_scene_does_not_depend_on_the_size():
    large, small = (AtariSet(replace(SMALL, size=size)).clip(0, "pong", 0).float() for size in ((210, 160), (42, 32)))
    assert (large.unflatten(3, (32, 5)).unflatten(2, (42, 5)).mean(dim=(3, 5)) - small).abs().max() <= 0.5


def test_fewer_clips_are_the_first_of_more(folder, sha256, tmp_path):
    made = AtariSet(SMALL)
    more = make(made, tmp_path, {"train": 3, "test": 1})
    assert more.videos == 8 and more.frames == 24 and more.sha256 != sha256
    again = make(made, tmp_path, COUNTS)
    assert again.sha256 == sha256 and again.new == 0
    for clip in clips_of(made, COUNTS):
        assert (tmp_path / clip.path).read_bytes() == (folder / clip.path).read_bytes()


def test_threads_instructions_and_processes_change_nothing(sha256, tmp_path):
    kinds = {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default"}
    begun = [command(tmp_path / "a", "--json", "--workers", "0", **kinds), command(tmp_path / "b", "--json", "--workers", "2")]
    for process in begun:
        printed, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, errors
        said = json.loads(printed)
        assert (said["videos"], said["frames"], said["sha256"], said["card"]) == (6, 18, sha256, None)


def test_a_killed_command_goes_on(sha256, tmp_path):
    """Wherever it was killed: what is there is kept, what was being written is made again, and drafts are gone."""
    (tmp_path / ".made.json.0123abcd.partial").write_bytes(b"{")  # of one that was killed before all else
    process = command(tmp_path, "--train", "100", "--workers", "1")
    end = time.monotonic() + LIMIT
    while len(list(tmp_path.rglob("0*.mkv"))) < 3:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=LIMIT)
    draft = tmp_path / "train" / "breakout" / ".000000.mkv.0123abcd.partial"
    draft.write_bytes(b"half")
    result = make(AtariSet(SMALL), tmp_path, COUNTS)
    assert result.sha256 == sha256 and result.new < 6 and not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("damage", ["cut", "changed", "exchanged", "unlisted"])
def test_files_that_are_not_what_was_written_are_made_again(damage, sha256, tmp_path, caplog):
    make(AtariSet(SMALL), tmp_path, COUNTS)
    first, other = tmp_path / "train/pong/000000.mkv", tmp_path / "test/pong/000000.mkv"
    content = bytearray(first.read_bytes())
    if damage == "unlisted":
        (tmp_path / SUMS).write_text("no sums\n")
    cut = content[:99]
    content[len(content) // 2] ^= 1
    changes = {"cut": cut, "changed": content, "exchanged": other.read_bytes()}
    if damage in changes:
        first.write_bytes(changes[damage])
    result = make(AtariSet(SMALL), tmp_path, COUNTS)
    assert result.sha256 == sha256 and result.new == (6 if damage == "unlisted" else 1)
    assert f"{first} " in caplog.text and "made again" in caplog.text
    assert make(AtariSet(SMALL), tmp_path, COUNTS).new == 0


def test_another_set_in_the_folder_is_an_error_that_names_both(folder):
    with pytest.raises(MadeError, match=r"seed is 0 there and 7 here"):
        make(AtariSet(replace(SMALL, seed=7)), folder, COUNTS)
    with pytest.raises(MadeError, match=r"size is \[24, 20\] there and \[24, 24\] here"):
        make(AtariSet(replace(SMALL, size=(24, 24))), folder, COUNTS)


def test_what_is_not_of_the_set_is_an_error_that_names_it(tmp_path):
    (tmp_path / "holiday.mkv").write_text("mine")
    with pytest.raises(MadeError, match=f"holds holiday.mkv, and no {RECORD}"):
        make(AtariSet(SMALL), tmp_path, COUNTS)
    (tmp_path / "holiday.mkv").unlink()
    make(AtariSet(SMALL), tmp_path, {"train": 1, "test": 0})
    (tmp_path / "train/pong/mine.mkv").write_text("mine")
    with pytest.raises(MadeError, match=r"holds train/pong/mine\.mkv, which is not of the set"):
        make(AtariSet(SMALL), tmp_path, {"train": 1, "test": 0})
    assert (tmp_path / "train/pong/mine.mkv").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--games", "pongg"], "no class 'pongg'; did you mean 'pong'?"),
        (["--frames", "0"], "--frames is at least 1"),
        (["--train", "0", "--test", "0"], "not all of them 0"),
        (["--workers", "-1"], "--workers is at least 0"),
        (["--out", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_bad_input_is_a_message(options, reason, tmp_path, capsys):
    assert run_tool("make_data", ["atari", "--out", str(tmp_path / "new"), "--workers", "0", *options]) == 2
    assert reason in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_without_the_emulator_its_extra_is_named(tmp_path):
    code = "import sys; sys.modules['ale_py'] = None; from sparsevid.cli import run_tool; sys.exit(run_tool('make_data'))"
    arguments = [sys.executable, "-c", code, "atari", "--out", str(tmp_path / "new")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and 'pip install "sparsevid[atari]"' in done.stderr and "Traceback" not in done.stderr


def test_the_command_prints_a_table(folder, sha256, capsys):
    assert run_tool("make_data", ["atari", "--out", str(folder), *OPTIONS, "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert sha256 in printed and "6 videos" in printed and "ale-py" in printed


@pytest.mark.parametrize("same", [True, False])
def test_the_default_set_is_compared_with_its_card(same, tmp_path, monkeypatch, caplog):
    """A mismatch names both hashes and both versions. The card of the working directory comes before the repository's."""
    made, said = AtariSet(AtariSet.defaults), "1" * 64
    (tmp_path / "datasets").mkdir()
    card = f"name: atari\nmade:\n  sha256: '{said}'\n  made_with: ale-py 0.0.1\n"
    (tmp_path / "datasets" / "atari.yaml").write_text(card)
    monkeypatch.chdir(tmp_path)
    found = said if same else "2" * 64
    compared = against_card(made, {"train": 100, "test": 20}, found)
    assert compared.same == same and compared.say() == (0 if same else 1)
    assert "ale-py 0.0.1" in caplog.text
    assert same or all(each in caplog.text for each in (said, found, made.made_with))


def test_another_set_than_the_default_one_is_compared_with_nothing():
    assert against_card(AtariSet(SMALL), COUNTS, "0" * 64) is None
    assert against_card(AtariSet(AtariSet.defaults), {"train": 101, "test": 20}, "0" * 64) is None


@pytest.mark.parametrize("name", MADE)
def test_the_card_describes_the_default_set(name):
    made, card = set_class(name), load_card(name)
    settings, counts = made.defaults, made.default_counts
    assert (made.name, tuple(card.classes)) == (name, settings.classes)
    assert (card.clip.frames, card.clip.stride, tuple(card.clip.size)) == (settings.frames, 1, settings.size)
    classes = len(settings.classes)
    videos = {split: classes * counts[split] for split in SPLITS}
    frames = sum(videos.values()) * settings.frames
    assert card.counts == {"videos": sum(videos.values()), "frames": frames, "classes": classes, **videos}
    assert len(card.made.sha256) == 64 and card.made.made_with.startswith(made.distribution)


def test_its_card_reads_it(tmp_path):
    """Splits, twelve classes in the card's order, and clips of the card's shape, which are those that were made."""
    made = AtariSet(AtariSet.defaults)
    make(made, tmp_path, {"train": 1, "test": 1})
    manifest = build_manifest(tmp_path, load_card("atari").rules())
    assert manifest.classes == made.all_classes and len(manifest.classes) == 12
    assert manifest.splits == {"train": 12, "test": 12} and not manifest.rejects
    config = load_config(ROOT / "configs" / "demo" / "natural.yaml", ["data.card=atari", f"data.root={tmp_path}"])
    nothing = {"frames": None, "stride": None, "size": None, "flip": None}
    _, _, dataset = open_data(replace(config, data=replace(config.data, **nothing)))
    sample = dataset[0, 0]
    video = dataset.videos[sample["video"]]
    assert sample["clip"].shape == (3, 16, 64, 64) and len(dataset) == 12
    assert torch.equal(sample["clip"], made.clip(0, manifest.classes[video.label], 0))


def test_no_two_clips_are_the_same(tmp_path):
    """Games begin alike, and what ends a stretch that is not taken may be the same in many."""
    made = AtariSet(replace(SMALL, frames=16, classes=("qbert",)))
    clips = [made.clip(split, "qbert", index) for split in (0, 1) for index in range(8)]
    assert len({clip.numpy().tobytes() for clip in clips}) == 16


@pytest.mark.slow
def test_the_default_set_has_the_cards_hash(tmp_path, capsys):
    assert run_tool("make_data", ["atari", "--out", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    card = load_card("atari")
    assert said["sha256"] == card.made.sha256 and said["card"] is True
    assert (said["videos"], said["frames"]) == (card.counts["videos"], card.counts["frames"])
    sums = [line.split()[0] for line in (tmp_path / SUMS).read_text().splitlines()]
    assert len(set(sums)) == len(sums) == said["videos"]  # no two clips are the same
