"""Runs of text in a study: prompts of held-out clips with their classes, chance beside the share, and what tells rows apart."""

import csv
import itertools
import shutil
from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers (extra `text`)")

from study.study_runs import do
from study.tiny_study import CLASSES, ROWS, SPARSE, write_data, write_study

from sparsevid.data.open import filled_from_card
from sparsevid.data.tree.cards import load_card
from sparsevid.study import StudyError
from sparsevid.study.file import MeasureSettings
from sparsevid.study.plan import Study
from sparsevid.study.prompts import heldout_prompts, shuffled_share
from sparsevid.study.run import chosen_plans
from sparsevid.text.cache import TextCache
from sparsevid.text.encoder import TextEncoder
from sparsevid.text.small import make_small_encoder
from sparsevid.text.write import write_captions

PHRASES = {"left": ("a square goes left", "it moves to the left"), "right": ("a square goes right", "it moves to the right")}
TOKENS = 8
TEXT = {"text": {"tokens": TOKENS}, "train.steps": 2}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Clips with two captions each, and a cache of their features."""
    folder = tmp_path_factory.mktemp("captioned")
    write_data(folder)
    with (folder / "videos" / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "caption"))
        for path in sorted((folder / "videos").rglob("*.mkv")):
            rows.writerows((path.relative_to(folder / "videos").as_posix(), text) for text in PHRASES[path.parent.name])
    with (folder / "moving.yaml").open("a") as card:
        card.write("captions: {rule: csv}\n")
    texts = [text for own in PHRASES.values() for text in own]
    make_small_encoder(folder / "words", texts, channels=16)
    encoder = TextEncoder.from_pretrained(folder / "words", tokens=TOKENS, device="cpu")
    write_captions(folder / "captions", texts, encoder)
    return folder


def text_study(folder, data, captions="captions", rows=ROWS, **keys) -> Study:
    overrides = {**TEXT, "data.captions": str(data / captions)}
    return Study(write_study(folder, rows=rows, data=data, overrides=overrides, **keys), folder / "runs")


def test_prompts_are_captions_of_held_out_clips_evenly_over_classes(captioned, tmp_path):
    config = text_study(tmp_path, captioned).plan("dense", 0).config
    config = replace(config, data=filled_from_card(config.data, load_card(config.data.card)))
    found = heldout_prompts(config, MeasureSettings(), 6)
    assert all(text in PHRASES[CLASSES[label]] for text, label in zip(found.texts, found.labels, strict=True))
    assert sorted(found.labels) == [0, 0, 0, 1, 1, 1] and len(set(found.texts)) > 2
    cache = TextCache.open(captioned / "captions")
    text, mask, _ = cache.read([cache.index(each) for each in found.texts])
    assert found.encoded.text.equal(text) and found.encoded.mask.equal(mask)
    again = heldout_prompts(replace(config, seed=7), MeasureSettings(), 4)  # the same for all seeds of training
    assert (again.texts, again.labels) == (found.texts[:4], found.labels[:4])


def test_the_share_of_shuffled_prompts_is_the_mean_over_all_ways_to_deal_them_out():
    found, labels = [0, 1, 1, 2, 1], [0, 0, 1, 2, 2]
    ways = list(itertools.permutations(labels))
    mean = sum(sum(a == b for a, b in zip(found, way, strict=True)) for way in ways) / len(ways) / len(labels)
    assert shuffled_share(found, labels) == pytest.approx(mean)
    generator = torch.Generator().manual_seed(0)
    guessed = torch.randint(0, 4, (400,), generator=generator).tolist()
    assert shuffled_share(guessed, list(range(4)) * 100) == pytest.approx(0.25)


def test_rows_are_told_apart_by_the_features_of_captions_and_not_by_their_place(captioned, tmp_path):
    plain = text_study(tmp_path, captioned).plan("dense", 0)
    assert plain.run.spec.text_channels == 16 and plain.run.spec.num_classes == 0
    moved = shutil.copytree(captioned / "captions", captioned / "moved")
    other = text_study(tmp_path, captioned, moved.name).plan("dense", 0)
    assert (other.settings, other.of_training) == (plain.settings, plain.of_training) and plain.of_training["captions"]
    absent = text_study(tmp_path, captioned, "nowhere").plan("dense", 0)
    assert absent.settings == plain.settings and absent.of_training["captions"] is None
    classes = Study(write_study(tmp_path, rows=ROWS, data=captioned, overrides={"train.steps": 2}), tmp_path / "runs")
    assert classes.plan("dense", 0).settings != plain.settings


def test_what_runs_of_text_cannot_be_measured_by_is_said_when_they_are_planned(captioned, tmp_path):
    for sample, reason in (
        ({"sampler": "ddim"}, "does not fit"),
        ({"schedule": "paper"}, "is dense"),
        ({"guidance": "nan"}, "finite"),
    ):
        rows = {"dense": {"sample": sample}}
        with pytest.raises(StudyError, match=reason):
            chosen_plans(text_study(tmp_path, captioned, rows=rows))
    with pytest.raises(StudyError, match="label_dropout"):
        chosen_plans(text_study(tmp_path, captioned, rows={"dense": {"overrides": {"objective.label_dropout": 0.0}}}))


@pytest.mark.slow
def test_a_study_of_text_is_measured_like_one_of_classes(captioned, tmp_path):
    rows = ROWS | {"late": {"like": "sparse", "overrides": {**SPARSE, "model.merge_text": "sparse"}}}
    study = text_study(tmp_path, captioned, rows=rows)
    lines = do(study.path)
    assert list(lines) == [("dense", 0), ("sparse", 0), ("late", 0)]
    assert all(0 <= line["accuracy"] <= 1 and line["accuracy_shuffled"] == 0.5 for line in lines.values())
    assert len({line["measured"] for line in lines.values()}) == len({line["captions"] for line in lines.values()}) == 1
    assert lines["sparse", 0]["macs"] < lines["dense", 0]["macs"] and lines["sparse", 0]["classes"] == list(CLASSES)
    before = study.path.parent / "out" / "tiny.jsonl"
    content = before.read_bytes()
    do(study.path)
    assert before.read_bytes() == content
