"""Ways to read clips, the training step beside them, and the memory of a worker. No test looks at the clock."""

from dataclasses import replace

import pytest
import torch
from benchmark.worker_memory import worker_memory
from torch.utils.data import Dataset
from videos.made import REAL, write_video

from sparsevid.autoencoder.pixels import Pixels
from sparsevid.benchmark.data import (
    LATENTS,
    WARM_BATCHES,
    DataMeasurement,
    ReadRate,
    decoded_per_clip,
    measure_data,
    open_sources,
    read_rate,
)
from sparsevid.benchmark.training import TrainingStep, clips_per_second, measure_training, training_spec
from sparsevid.data.clips import ClipDataset
from sparsevid.data.latents.write import write_cache
from sparsevid.data.loader import SampleOrder
from sparsevid.data.sources import VideoFrames
from sparsevid.data.tree.cards import load_card, resolve_root
from sparsevid.data.tree.clip_rule import ClipRule
from sparsevid.data.tree.manifest import build_manifest
from sparsevid.models.presets import PRESETS, build_spec
from sparsevid.sparsity.spec import ModelSpec

CPU = torch.device("cpu")
RULE = ClipRule(frames=4, stride=2)
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Three videos of 20 frames: every frame a key frame, one key frame alone, and B-frames."""
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "a.mp4", frames=20, gop=1)
    write_video(root / "b.mp4", frames=20, gop=100)
    write_video(root / "c.mkv", frames=20, b_frames=2)
    return build_manifest(root)


class Recorder(Dataset):
    """Three samples that note which were read."""

    seed = 7

    def __init__(self):
        self.read = []

    def __len__(self):
        return 3

    def __getitem__(self, key):
        self.read.append(key)
        return {"video": key[1]}


class Hoarder(Dataset):
    """Samples that are never let go of: a megabyte each."""

    def __init__(self):
        self.kept = []

    def __len__(self):
        return 3

    def __getitem__(self, key):
        self.kept.append(torch.ones(MEGABYTE, dtype=torch.uint8))
        return {"video": key[1]}


def test_all_sources_give_the_same_clips(manifest):
    sources = open_sources(manifest, RULE, (32, 48), ["pyav", "decord"])
    assert list(sources) == ["pyav", "decord"]
    for index in range(len(manifest.videos)):
        first, second = (dataset[0, index] for dataset in sources.values())
        assert first["clip"].shape == (3, 4, 32, 48)
        assert torch.equal(first["clip"], second["clip"]) and first["start"] == second["start"]


def test_a_latent_cache_is_a_source_that_decodes_nothing(manifest, tmp_path):
    write_cache(tmp_path, manifest, Pixels(), (32, 48), False, rule_record={}, batch_frames=8)
    sources = open_sources(manifest, RULE, (32, 48), ["pyav"], tmp_path)
    assert list(sources) == ["pyav", LATENTS]
    pixels, latents = (dataset[0, 1] for dataset in sources.values())
    assert torch.equal(pixels["clip"], latents["clip"]) and pixels["start"] == latents["start"]
    assert decoded_per_clip(sources[LATENTS]) == 0 < decoded_per_clip(sources["pyav"])
    assert read_rate(sources[LATENTS], 0, clips=2, batch=1) > 0
    with pytest.raises(ValueError, match=r"latents of \(32, 48\) pixels, clips of \(32, 32\)"):
        open_sources(manifest, RULE, (32, 32), ["pyav"], tmp_path)


def test_an_unknown_decoder_is_refused(manifest):
    with pytest.raises(ValueError, match="opencv"):
        dataset = open_sources(manifest, RULE, (32, 48), ["opencv"])["opencv"]
        dataset[0, 0]


def test_frames_decoded_for_a_clip_lie_between_the_clip_and_the_video(manifest):
    (dataset,) = open_sources(manifest, RULE, (32, 48), ["pyav"]).values()
    assert RULE.frames <= decoded_per_clip(dataset) <= 20
    whole = ClipDataset(manifest, ClipRule(frames=20, stride=1), VideoFrames(manifest.root, (32, 48)))
    assert decoded_per_clip(whole, clips=3) == 20


@pytest.mark.parametrize(("clips", "timed"), [(1, 2), (4, 4), (5, 6)])
def test_first_clips_of_the_order_are_read_in_whole_batches(clips, timed):
    dataset = Recorder()
    assert read_rate(dataset, 0, clips=clips, batch=2) > 0
    order = SampleOrder(3, seed=7)
    assert dataset.read == [order[position] for position in range(2 * WARM_BATCHES + timed)]


def test_readings_and_steps_are_taken_in_turns(manifest):
    sources, steps = open_sources(manifest, RULE, (32, 48), ["pyav", "decord"]), []
    measured = measure_data(sources, [0], lambda: steps.append(1), 3, clips=2, batch=1, repeats=2)
    assert [(rate.source, rate.workers) for rate in measured.rates] == [("pyav", 0), ("decord", 0)]
    assert all(len(rate.turns) == 2 and min(rate.turns) > 0 for rate in measured.rates)
    assert len(steps) == 3 and len(measured.step_turns) == 2  # one is not timed
    assert measured.step_batch == 3


def test_worker_processes_read(manifest):
    (dataset,) = open_sources(manifest, RULE, (32, 48), ["pyav"]).values()
    assert read_rate(dataset, 2, clips=3, batch=1) > 0


@pytest.mark.parametrize("wrong", [{"workers": [-1]}, {"clips": 0}, {"batch": 0}, {"repeats": 0}])
def test_numbers_out_of_range(manifest, wrong):
    values = {"workers": [0], "clips": 1, "batch": 1, "repeats": 1} | wrong
    sources = open_sources(manifest, RULE, (32, 48), ["pyav"])
    with pytest.raises(ValueError, match="workers from 0"):
        measure_data(sources, values.pop("workers"), lambda: None, 1, **values)


def test_a_source_feeds_the_model_as_often_as_its_rate_holds_the_model_s():
    slow, fast = ReadRate("pyav", 1, (1.0, 2.0, 6.0), 9.0), ReadRate("latents", 2, (80.0, 80.0), 0.0)
    measured = DataMeasurement((slow, fast), step_turns=(0.5, 0.25, 4.0), step_batch=2)
    assert slow.clips_per_second == 2.0 and slow.spread == 2.5 and fast.spread == 0.0
    assert measured.consumed_per_second == 4.0
    assert measured.feeds(slow) == 0.5 and measured.feeds(fast) == 20.0


@pytest.mark.parametrize(
    "spec",
    [ModelSpec("1P 1(1M1S1R1D) 1D", 32, 2, (4, 8, 8), sparse_grid=(2, 2, 2)), ModelSpec("2D", 32, 2, (1, 8, 8), num_classes=3)],
    ids=["sparse video", "images of classes"],
)
def test_a_training_step_trains_every_parameter(spec):
    step = TrainingStep(spec, 2, CPU)
    before = {name: parameter.clone() for name, parameter in step.model.named_parameters()}
    step()
    step()
    unchanged = [name for name, parameter in step.model.named_parameters() if torch.equal(parameter, before[name])]
    assert not unchanged and all(parameter.dtype == torch.float32 for parameter in step.model.parameters())


def test_a_preset_is_timed_in_each_of_its_stages():
    """Shares are those of training's draw; the rate over all stages lies between those of the slowest and the fastest."""
    measured = measure_training(["Latte-S/8", "SparseLatte-S/8"], frames=4, size=(256, 256), batch=1, device=CPU, repeats=1)
    sparse = [time for time in measured if time.preset == "SparseLatte-S/8"]
    assert [time.grid for time in measured[:1]] == [None] and len({time.grid for time in sparse}) == len(sparse) > 1
    assert sum(time.share for time in sparse) == pytest.approx(1.0)
    rates = [1 / time.seconds for time in sparse]
    assert min(rates) <= clips_per_second(measured, "SparseLatte-S/8") <= max(rates)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.endswith("Latte-S/2") or name.endswith("Latte-XL/4")])
def test_a_preset_at_its_own_size_is_itself(preset):
    assert training_spec(preset, 16, (256, 256)) == build_spec(preset)


def test_a_preset_takes_latents_of_the_clips():
    spec = training_spec("SparseLatte-S/2", 8, (128, 192))
    assert spec.input_size == (8, 16, 24)
    assert spec.sparse_grid[0] <= 8 and spec.sparse_grid[1] < 8 and spec.sparse_grid[2] < 12
    with pytest.raises(ValueError, match="250×256 pixels have no whole latents: both are multiples of 8"):
        training_spec("Latte-S/2", 16, (250, 256))
    with pytest.raises(ValueError, match="cannot be cut into patches"):
        training_spec("Latte-S/2", 16, (256, 248))


def test_memory_of_a_worker_that_keeps_its_samples_is_seen_to_grow():
    found = worker_memory(Hoarder(), [20, 60])
    if found is None:
        pytest.skip("this system does not tell the resident set")
    assert found[1] - found[0] == pytest.approx(40 * MEGABYTE, rel=0.2)


def growth(dataset, early, late):
    """How much larger the worker is late than it ever was early, as a share. Both are numbers of samples: at any one of them it
    may hold a decoder's buffers more or less, as its threads happened to run."""
    found = worker_memory(dataset, [*early, *late])
    if found is None:
        pytest.skip("this system does not tell the resident set")
    return min(found[len(early) :]) / max(found[: len(early)]) - 1


def test_memory_of_a_worker_stays_flat_over_hundreds_of_samples(manifest):
    dataset = ClipDataset(manifest, RULE, VideoFrames(manifest.root, (32, 48)))
    assert growth(dataset, range(50, 101, 10), range(250, 301, 10)) < 0.1


@pytest.mark.slow
def test_memory_of_a_worker_stays_flat_over_thousands_of_samples():
    """Of the real clips, but for the one of 1280×720, which would take three quarters of the time."""
    manifest = build_manifest(resolve_root(load_card("demo")))
    manifest = replace(manifest, videos=tuple(video for video in manifest.videos if video.height < 720))
    assert len(manifest.videos) == len(REAL) - 1
    dataset = ClipDataset(manifest, ClipRule(frames=4), VideoFrames(manifest.root, (64, 64)))
    assert growth(dataset, range(500, 1501, 100), range(4000, 5001, 100)) < 0.05
