"""What captions say of a clip: of its game, and of what moves in it, by whole numbers."""

import csv
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsevid.data.made.atari import GAMES, AtariSet
from sparsevid.data.made.atari_captions import PHRASES, captions_of, motion
from sparsevid.data.made.base import MadeSettings
from sparsevid.data.made.folder import CAPTIONS, make
from sparsevid.data.tree.captions import open_captions
from sparsevid.data.tree.cards import load_card
from sparsevid.data.tree.manifest import build_manifest

SMALL = MadeSettings(size=(24, 20), frames=3, skip=4, classes=("breakout", "pong"), seed=0)


def moving(step: int, size: int, frames: int = 6) -> torch.Tensor:
    """A bright square, its edges soft as in averaged frames, that goes to the right by `step` pixels a frame."""
    x = torch.arange(64)
    places = [abs(step) * frames + step * t + 20 for t in range(frames)]
    rows = torch.stack([(240 - 40 * (x - place).abs().sub(size).clamp(min=0)).clamp(0, 240) for place in places])  # (T,W)
    picture = rows[:, None, :] * (torch.arange(64) < 2 * size)[None, :, None]
    return picture[..., None].expand(-1, -1, -1, 3).to(torch.uint8)


@pytest.mark.parametrize(("step", "side"), [(1, "to the right"), (-1, "to the left")])
@pytest.mark.parametrize(("size", "amount"), [(1, "little moves"), (5, "things move"), (31, "much moves")])
def test_motion_is_seen(step, side, size, amount):
    clip = moving(step, size)
    assert motion(clip) == f"{amount} {side}"
    assert motion(clip.flip(2)) == f"{amount} {'to the left' if step > 0 else 'to the right'}"
    assert motion(clip.flip(0)) == motion(clip.flip(2))


def test_of_still_pictures_nothing_is_said_of_sides():
    still = moving(0, 9)
    assert motion(still) == "little moves" and motion(still[:1]) == ""
    dimmed = torch.stack([still[0], still[0] // 2] * 3)  # brighter and darker, in place
    assert "to the" not in motion(dimmed)


def test_every_game_has_phrases_of_its_own():
    assert set(PHRASES) == set(GAMES) and {len(each) for each in PHRASES.values()} == {3}
    phrases = [phrase for each in PHRASES.values() for phrase in each]
    assert len(set(phrases)) == len(phrases)
    clip = moving(1, 5)
    first, *others = PHRASES["pong"]
    assert captions_of("pong", clip) == (first, *(f"{phrase}, things move to the right" for phrase in others))


needs_emulator = pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="needs ale-py (extra `atari`)")


def rows(folder: Path) -> list[list[str]]:
    with (folder / CAPTIONS).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@needs_emulator
def test_a_set_comes_with_captions_that_its_card_reads(tmp_path):
    made = AtariSet(SMALL)
    result = make(made, tmp_path, {"train": 2, "test": 1})
    first = rows(tmp_path)
    assert first[0] == ["path", "caption"] and len(first) == 1 + 3 * result.videos
    (tmp_path / CAPTIONS).unlink()  # as a tree that was made before there were captions
    again = make(made, tmp_path, {"train": 2, "test": 1})
    assert (again.sha256, again.new) == (result.sha256, 0) and rows(tmp_path) == first
    card = load_card("atari")
    captions = open_captions(build_manifest(tmp_path, card.rules()), card.captions.rules())
    assert not captions.missing and not captions.notes
    assert {captions.texts[captions.of(path)[0]] for path in captions.places} == {PHRASES[name][0] for name in SMALL.classes}


@needs_emulator
def test_captions_of_clips_that_are_not_looked_at_stay(tmp_path):
    make(AtariSet(SMALL), tmp_path, {"train": 2, "test": 1})
    before = rows(tmp_path)
    make(AtariSet(replace(SMALL)), tmp_path, {"train": 1, "test": 0})
    assert rows(tmp_path) == before
