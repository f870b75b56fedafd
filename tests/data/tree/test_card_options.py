"""Every key of a card can be set by a run and by each command that takes one; text in cards stays text."""

import argparse
import json
import re
from importlib import import_module
from operator import attrgetter

import pytest
from data.trees import UCF_CLASSES, plant_frames, plant_video, ucf101, ucf_lists

from sparsevid.cli import main
from sparsevid.data.open import open_data
from sparsevid.data.tree.cards import Card, load_card
from sparsevid.data.tree.manifest import build_manifest, manifest_path
from sparsevid.evaluation.clips.clips import CardSource, choose_clips
from sparsevid.evaluation.protocols import load_protocol
from sparsevid.runs.config import load_config, save_config
from sparsevid.system.schema import all_keys

VALUES = {
    "trees": "[a, b]",
    "label_rule": "folder",
    "label_order": "sorted",
    "classes": "[2024_01, on]",
    "label_pattern": "v_(.+)",
    "containers": "[007]",
    "ignore": "[2024_01, '*_x']",
    "media": "image",
    "fps": "12.5",
    "split_at_gaps": "true",
    "split.rule": "folders",
    "split.folders": "{train: [x, 001]}",
    "split.lists": "{train: 'a.txt'}",
    "split.fold": "2",
    "split.max_missing": "1",
    "split.default": "train",
    "clip.frames": "4",
    "clip.stride": "2",
    "clip.rule": "latte_linspace",
    "clip.short": "repeat_last",
    "clip.target_fps": "8",
    "clip.size": "[16, 24]",
    "clip.flip": "true",
    "clip.images": "3",
    "clip.display": "false",
    "captions.rule": "beside",
    "captions.files": "[a.csv]",
    "captions.path": "'{folder}/{name}.mp4'",
    "captions.missing": "exclude",
    "counts": "{videos: 3}",
    "fold_counts": "{2: {train: 1}}",
}
NEEDED = {"split.rule": ["split.folders={train: [x]}"], "split.default": ["split.folders={train: [x]}"]}


@pytest.fixture
def part(tmp_path):
    """A part of UCF101, one class of five, under a card of its own, with the official lists of all."""
    ucf101(tmp_path / "all")
    ucf_lists(tmp_path / "part" / "ucfTrainTestlist", list(UCF_CLASSES))
    (tmp_path / "all" / "UCF-101" / "Hammering").rename(tmp_path / "part" / "Hammering")
    values = load_card("ucf101")
    text = f"name: part\nroot: {tmp_path / 'part'}\nlabel_rule: folder\nclass_list: {values.class_list}\n"
    text += "clip: {frames: 2, stride: 1, size: [16, 16]}\nsplit:\n  rule: lists\n  default: train\n  lists:\n"
    text += "    train: ucfTrainTestlist/trainlist01.txt\n    test: ucfTrainTestlist/testlist01.txt\n"
    (tmp_path / "part.yaml").write_text(text)
    return tmp_path / "part.yaml"


@pytest.mark.parametrize("key", [key for key in all_keys(Card) if key not in ("split", "clip", "captions", "made")])
def test_every_key_can_be_set(tmp_path, key):
    (tmp_path / "c.yaml").write_text("name: c\n")
    option = f"{key}={VALUES.get(key, '2024_01')}"
    texts = [*NEEDED.get(key, []), option]
    card = load_card(tmp_path / "c.yaml", texts)
    assert attrgetter(key)(card) != attrgetter(key)(Card(name="c"))
    run = load_config(None, [f"data.card_options.{text}" for text in texts])
    assert load_card(tmp_path / "c.yaml", run.data.card_options) == card


def test_text_of_a_card_stays_as_it_was_typed(tmp_path):
    for folder in ("2024_01", "202401", "on", "True", "keep"):
        plant_video(tmp_path / "data" / folder / "v.mp4")
    text = "name: 007\ntitle: 2024-11-28\nignore: [2024_01, on]\nsplit: {rule: folders, folders: {1_0: [0x1], on: [keep]}}\n"
    (tmp_path / "c.yaml").write_text(text)
    card = load_card(tmp_path / "c.yaml")
    assert (card.name, card.title, card.ignore) == ("007", "2024-11-28", ["2024_01", "on"])
    assert card.split.folders == {"1_0": ["0x1"], "on": ["keep"]}
    manifest = build_manifest(tmp_path / "data", card.rules())
    assert {video.path.split("/")[0] for video in manifest.videos} == {"202401", "True", "keep"} and manifest.splits == {
        "on": 1
    }


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("split.maxmissing=1", "unknown key 'split.maxmissing'; did you mean 'split.max_missing'"),
        ("max_missing=1", "unknown key 'max_missing'; did you mean 'split.max_missing'"),
        ("split=1", "split is a section"),
        ("split.max_missing=many", "split.max_missing: .*many"),
        ("split.max_missing=2", "split.max_missing is 2.0; accepted: a share from 0 to 1"),
        ("clip.size=[1]", r"clip.size is \['?1'?\]; accepted: \[height, width\]"),
        ("ignore=x", "ignore: "),
    ],
)
def test_mistakes_name_the_option(part, option, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_card(part, [option])
    assert option in str(caught.value)
    options = load_config(None, [f"data.card_options.{option}"]).data.card_options
    with pytest.raises(ValueError, match=message) as caught:
        load_card(part, options)
    assert "data.card_options" in str(caught.value)


def test_a_part_of_a_dataset_is_opened_by_a_run_whose_config_keeps_how(part, tmp_path):
    with pytest.raises(ValueError, match="8 of 10 entries .*--card-option split.max_missing=1.*data.card_options.split.max"):
        open_data(load_config(None, [f"data.card={part}"]))
    options = ["split.max_missing=1", "clip.frames=3", "clip.stride=2"]
    config = load_config(None, [f"data.card={part}", *(f"data.card_options.{each}" for each in options), "data.stride=1"])
    opened = open_data(config)
    assert (opened.config.data.frames, opened.config.data.stride) == (3, 1), "the run's own keys come before the card's"
    assert opened.manifest.splits == {"test": 1, "train": 1}
    save_config(opened.config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == opened.config
    assert open_data(load_config(tmp_path / "config.yaml")).manifest == opened.manifest


def test_what_is_kept_of_a_tree_follows_the_card_as_it_is_used(part):
    root = load_card(part).root
    cards = [load_card(part, options) for options in ([], ["split.max_missing=1"], ["ignore=[Hammering]"], ["media=image"])]
    kept = [manifest_path(root, card.rules()) for card in cards]
    assert kept[0] == kept[1], "lists and labels are applied anew each time"
    assert len({*kept}) == 3


def test_a_protocol_takes_clips_of_the_card_as_it_is_used(part):
    protocol = load_protocol("sparsevid/fd-transnetv2-v1")
    source = CardSource(part, ["split.max_missing=1", "fps=5"])
    with pytest.raises(ValueError, match="2 of 2 real videos are shorter"):
        choose_clips(source, "real", protocol)
    with pytest.raises(ValueError, match=r"is a folder, and options \(fps=5\) are those of a card"):
        choose_clips(CardSource(part.parent, ["fps=5"]), "real", protocol)


def test_a_card_is_one_also_beside_a_folder_of_its_name(part, tmp_path, monkeypatch):
    """A run that was trained on the card is scored where somebody keeps the data in a folder of that name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "own.yaml").write_text(part.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "own").mkdir()
    protocol = load_protocol("sparsevid/fd-transnetv2-v1")
    with pytest.raises(ValueError, match="2 of 2 real videos are shorter"):
        choose_clips(CardSource("own", ["split.max_missing=1", "fps=5"]), "real", protocol)


def test_commands_take_options_of_the_card(part, tmp_path, capsys):
    assert main(["prepare_data", str(part), "--clips", "0"]) == 2
    assert "--card-option split.max_missing=1" in capsys.readouterr().err
    given = ["--card-option", "split.max_missing=1", "--card-option", "ignore=[x]"]
    assert main(["prepare_data", str(part), "--clips", "0", "--json", str(tmp_path / "r.json"), *given]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["counts"]["train"]["found"] == 1
    cache = str(tmp_path / "cache")
    assert main(["encode_latents", str(part), "--out", cache, "--autoencoder", "pixels", *given]) == 0
    assert main(["encode_latents", str(part), "--out", cache, "--autoencoder", "pixels", "--card-option", "x=1"]) == 2
    assert "card option x=1: unknown key 'x'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["prepare_data", "encode_latents", "benchmark data", "evaluate score", "evaluate features"])
def test_each_command_with_a_card_declares_them(command, capsys):
    name, *action = command.split()
    parser = argparse.ArgumentParser()
    import_module(f"sparsevid.cli.{name}").add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([*action, "--help"])
    assert re.search(r"--card-option KEY=VALUE", capsys.readouterr().out)


def test_paths_of_commands_know_the_home_folder(part, tmp_path, monkeypatch):
    """Shells leave `--out=~/x` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    plant_frames(tmp_path / "frames" / "v", ["1.png", "2.png", "3.png"])
    (tmp_path / "frames.yaml").write_text("name: frames\nroot: ~/frames\nclip: {frames: 2, stride: 1, size: [8, 8]}\n")
    assert main(["prepare_data", "~/frames.yaml", "--root=~/frames", "--out=~/sheet.png", "--json=~/r.json"]) == 0
    assert main(["encode_latents", "~/frames.yaml", "--out=~/cache", "--autoencoder=pixels"]) == 0
    assert (tmp_path / "sheet.png").is_file() and (tmp_path / "r.json").is_file() and (tmp_path / "cache").is_dir()
    assert not (tmp_path / "~").exists()


def test_a_run_reads_real_files_of_ucf101_strictly(real_ucf101):
    """A part of the data set, with the lists of all of it."""
    overrides = ["data.card=ucf101", f"data.root={real_ucf101}", "data.strict=true", "data.target_fps=25"]
    opened = open_data(load_config(None, [*overrides, "data.card_options.split.max_missing=1"]))
    assert set(opened.manifest.splits) == {"train", "test"} and len(opened.config.record.classes) == 101
    assert opened.config.record.fps == pytest.approx(25 / 3)
    with pytest.raises(ValueError, match="data.card_options.split.max_missing=1"):
        open_data(load_config(None, overrides))
