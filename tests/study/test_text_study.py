"""A study of runs with captions: samples are asked for by those of held-out clips, and counted by the classes of these."""

import json
from pathlib import Path

import pytest
import torch
from study.study_runs import do
from study.tiny_study import CLASSES, SPARSE, base_run, write_study
from training.captions import random_cache

from sparsevid.runs.config import load_config
from sparsevid.study import StudyError
from sparsevid.study.file import MeasureSettings
from sparsevid.study.heldout import sample_captions
from sparsevid.study.plan import Study

WORDS = {"left": "a bright square moves to the left", "right": "it goes right"}


@pytest.fixture
def captioned(data, tmp_path):
    """Overrides by which the study's clips have captions, by their classes."""
    videos = data / "videos"
    paths = sorted(path.relative_to(videos).as_posix() for path in videos.rglob("*.mkv"))
    rows = [json.dumps({"path": path, "caption": WORDS[Path(path).parent.name]}) for path in paths]
    (data / "captions.jsonl").write_text("\n".join(rows), encoding="utf-8")  # beside the tree
    cache = random_cache(tmp_path / "features", list(WORDS.values()))
    return {
        "data.captions": str(cache.folder),
        "data.card_options.captions.rule": "jsonl",
        "text.tokens": cache.tokens,
        "objective.label_dropout": 0.5,
    }


def test_samples_are_asked_for_by_held_out_captions_evenly_over_classes(captioned, data, tmp_path):
    study = Study(write_study(tmp_path, data=data, rows={"text": {"overrides": captioned}}), tmp_path / "runs")
    config = study.plan("text", 0).config
    found = sample_captions(config, MeasureSettings(split="test"), 4)
    assert [WORDS[CLASSES[label]] for label in found.labels] == found.texts and sorted(found.labels) == [0, 0, 1, 1]
    assert found.encoded.text.shape[:2] == found.encoded.mask.shape == (4, config.text.tokens)
    again = sample_captions(config, MeasureSettings(split="test"), 2)
    assert again.texts == found.texts[:2] and torch.equal(again.encoded.text, found.encoded.text[:2])
    (tmp_path / "plain.yaml").write_text(json.dumps(base_run(data)), encoding="utf-8")
    assert sample_captions(load_config(tmp_path / "plain.yaml"), MeasureSettings(), 4) is None
    guided = {"overrides": captioned | {"objective.label_dropout": 0.0}}
    with pytest.raises(StudyError, match="guidance"):
        Study(write_study(tmp_path, data=data, rows={"text": guided}), tmp_path / "runs").plan("text", 0)


@pytest.mark.slow
def test_a_study_of_text_is_trained_measured_and_timed(captioned, study_file):
    rows = {
        "pretrain": {"measured": False, "overrides": captioned},
        "dense": {"start": "pretrain", "overrides": captioned},
        "sparse": {"start": "pretrain", "overrides": captioned | SPARSE},
    }
    path = study_file(rows=rows)
    lines = do(path)
    assert list(lines) == [("dense", 0), ("sparse", 0)]
    for line in lines.values():
        assert tuple(line["classes"]) == CLASSES and 0 <= line["accuracy"] <= 1 and len(line["losses"]) == 3
    assert lines["sparse", 0]["macs"] < lines["dense", 0]["macs"]
    assert do(path, "--time")["sparse", 0]["timed"]["rows"] == 2
