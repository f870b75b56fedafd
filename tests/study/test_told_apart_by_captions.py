"""Rows of text: what features of captions are, and not where they lie, tells them apart; chance beside the share."""

import itertools
import shutil

import pytest
import torch
from study.tiny_study import write_data, write_study
from training.captions import random_cache

from sparsevid.evaluation.classifier import shuffled_share
from sparsevid.study.plan import Study

WORDS = {"left": "a bright square moves to the left", "right": "it goes right"}


def test_the_share_of_shuffled_labels_is_the_mean_over_all_ways_to_deal_them_out():
    found, labels = [0, 1, 1, 2, 1], [0, 0, 1, 2, 2]
    ways = list(itertools.permutations(labels))
    mean = sum(sum(a == b for a, b in zip(found, way, strict=True)) for way in ways) / len(ways) / len(labels)
    assert shuffled_share(found, labels) == pytest.approx(mean)
    guessed = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    assert shuffled_share(guessed, list(range(4)) * 100) == pytest.approx(0.25)


def test_rows_are_told_apart_by_the_features_of_captions_and_not_by_their_place(tmp_path):
    write_data(tmp_path, 2, 2)
    caches = {
        name: random_cache(tmp_path / name, texts)
        for name, texts in (("own", list(WORDS.values())), ("other", [*WORDS.values(), "one more"]))
    }
    shutil.copytree(tmp_path / "own", tmp_path / "moved")

    def plan(place: str):
        given = {"data.captions": str(tmp_path / place), "text.tokens": caches["own"].tokens}
        study = write_study(tmp_path, rows={"dense": {}}, data=tmp_path, overrides=given)
        return Study(study, tmp_path / "runs").plan("dense", 0)

    own = plan("own")
    assert own.run.spec.num_classes == 0 and own.of_training["captions"] == caches["own"].fingerprint()
    assert (plan("moved").settings, plan("moved").of_training) == (own.settings, own.of_training)
    absent = plan("nowhere")  # where the features are not, lines of them count all the same
    assert absent.settings == own.settings and absent.of_training["captions"] is None
    assert plan("other").of_training != own.of_training
    classes = Study(write_study(tmp_path, rows={"dense": {}}, data=tmp_path), tmp_path / "runs").plan("dense", 0)
    assert classes.settings != own.settings and classes.of_training["captions"] is None
