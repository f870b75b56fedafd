"""Folders and files whose names are in bytes of another encoding than UTF-8 go all the way."""

import os

import pytest
from data.trees import plant_video

from sparsevid.data.open import open_data
from sparsevid.data.tree.manifest import build_manifest
from sparsevid.data.tree.rules import TreeRules
from sparsevid.evaluation.record import ProtocolRecord, load_record
from sparsevid.runs.config import RunConfig, load_config, save_config

NAMES = ("\u4e2d\u6587", "\u8dd1\u6b65")  # Chinese for Chinese, and for running


@pytest.fixture
def tree(tmp_path):
    """A tree whose classes and files are named in GBK."""
    for name in NAMES:
        for file in range(2):
            encoded = [os.fsdecode(each.encode("gbk")) for each in (name, f"{name}{file}.mp4")]
            plant_video(tmp_path / "data" / encoded[0] / encoded[1])
    return tmp_path / "data"


@pytest.mark.parametrize("rule", ["folder", "file"])
def test_names_of_classes_are_text_and_those_of_files_stay(tree, rule):
    manifest = build_manifest(tree, TreeRules(rule))
    assert len(manifest.classes) == (2 if rule == "folder" else 4)
    assert all(name.encode("utf-8") for name in manifest.classes)
    assert {os.fsencode(video.path).decode("gbk") for video in manifest.videos} == {
        f"{name}/{name}{file}.mp4" for name in NAMES for file in range(2)
    }


def test_a_run_on_such_classes_is_saved_and_read_back(tree, tmp_path):
    (tmp_path / "card.yaml").write_text(f"name: x\nroot: {tree}\nlabel_rule: folder\nclip: {{frames: 2, stride: 1}}\n")
    config = RunConfig()
    config.data.card = str(tmp_path / "card.yaml")
    opened = open_data(config)
    save_config(opened.config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == opened.config
    assert len(opened.config.record.classes) == 2
    assert opened.dataset[0]["clip"].shape[1] == 2


def test_the_record_of_a_score_names_such_a_folder(tmp_path):
    values = {"protocol": None, "protocol_fingerprint": None, "detector": {}, "real": None, "warnings": (), "versions": {}}
    record = ProtocolRecord("FVD", 1.0, {"frechet": 1.0}, fake={"root": os.fsdecode(NAMES[0].encode("gbk"))}, **values)
    record.save(tmp_path / "score.json")
    assert load_record(tmp_path / "score.json") == record
