"""What a run can be told about its data reaches the model: stills beside clips, latents out of a cache, other clip rules."""

import pytest
import torch
from launch import weights

from sparsevid.autoencoder.pixels import Pixels
from sparsevid.data.latents.write import write_cache
from sparsevid.data.tree.manifest import build_manifest
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.runs.checkpoints import checkpoint_path
from sparsevid.runs.config import ConfigError
from sparsevid.system.logging import read_metrics
from sparsevid.training.trainer import Trainer

CARD = "name: two\ntitle: Two clips\nlabel_rule: file\nclip: {frames: 4, stride: 2, size: [32, 32], flip: true, images: 2}\n"


def with_card(config, path):
    """The run on a card with two classes and two stills a clip."""
    card = path.with_name("card.yaml")
    card.write_text(CARD, encoding="utf-8")
    config.data.card, config.data.size, config.data.frames = str(card), None, None
    return config


def test_joint_image_and_video_training(tiny):
    """Stills pass the model as stills, each with its own label and noise; the clips and their order stay as without."""
    config = with_card(*tiny("train.micro_batch=2"))
    trainer = Trainer(config)
    calls, alone = [], Trainer(with_card(*tiny("name=alone", "data.images=0")))

    def record(module, args, kwargs):
        calls.append((args[0].shape, kwargs["images"], kwargs["labels"].shape, kwargs["grid"]))

    trainer.engine.engine.module.register_forward_pre_hook(record, with_kwargs=True)
    trainer.train()
    assert len(calls) == 12
    assert {(tuple(shape), images, tuple(labels)) for shape, images, labels, _ in calls} == {((2, 8, 6, 4, 4), 2, (2, 3))}
    assert {grid for *_, grid in calls} <= {stage.grid for stage in trainer.schedule.stages}
    assert trainer.spec.input_size == alone.spec.input_size == (4, 4, 4)
    with_stills, without = trainer.dataset[3, 1], alone.dataset[3, 1]
    assert torch.equal(with_stills["clip"][:, :4], without["clip"]) and with_stills["start"] == without["start"]
    pipeline = VideoPipeline.from_pretrained(config.folder)
    assert pipeline(2, steps=2, show_progress=False).shape == (2, 3, 4, 32, 32)


def test_runs_from_videos_and_from_their_cache_are_one_run(tiny, clips_folder, tmp_path):
    """A cache holds every frame, so that starts, flips and stills are drawn as from the videos: equal bit for bit."""
    options = ("autoencoder.kind=pixels", "data.cache_frames=false", "data.flip=true", "data.images=1", "train.steps=4")
    small = ("data.size=[8,8]", "schedule.frames=2")
    write_cache(tmp_path / "cache", build_manifest(clips_folder), Pixels(), (8, 8), True, rule_record={})
    videos, _ = tiny(*options, *small, "name=videos")
    cache, _ = tiny(*options, *small, "name=cache", f"data.latents={tmp_path / 'cache'}", "data.workers=2")
    for config in (videos, cache):
        Trainer(config).train()
    one, other = (weights(checkpoint_path(config.folder, 4)) for config in (videos, cache))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    with pytest.raises(ValueError, match="size: the cache has 8×8, the run needs 16×16"):
        Trainer(tiny(*options, "data.size=[16,16]", "name=other", f"data.latents={tmp_path / 'cache'}")[0])
    with pytest.raises(ConfigError, match="choose one"):
        Trainer(tiny(f"data.latents={tmp_path / 'cache'}")[0])


def test_clips_as_the_config_says(tiny):
    config, _ = tiny("data.rule=latte_linspace", "data.stride=3", "data.short=repeat_last")
    trainer = Trainer(config)
    assert trainer.dataset.rule.span == 12
    assert trainer.config.record.fps == pytest.approx(sum(v.fps for v in trainer.manifest.videos) / 2 / (12 / 4))
    slow = Trainer(tiny("data.target_fps=5", "data.stride=1", "name=slow")[0])
    assert slow.config.record.fps == 5.0 and slow.dataset[0]["clip"].shape == (3, 4, 32, 32)


def test_what_was_drawn_again_is_counted_in_the_metrics(tiny, tmp_path):
    """One of two videos goes bad while the run is under way: it goes on, and says how often."""
    config, _ = tiny("data.cache_frames=false", "autoencoder.fit_clips=4")
    trainer = Trainer(config)
    broken = tmp_path / "videos"
    broken.mkdir()
    for video in trainer.manifest.videos:
        (broken / video.path).write_bytes((trainer.manifest.root / video.path).read_bytes())
    (broken / trainer.manifest.videos[0].path).write_bytes(b"no longer a video")
    trainer.dataset.source.root = broken
    trainer.train()
    rows = read_metrics(config.folder)
    counts = [row["data/redraws"] for row in rows]
    assert counts == sorted(counts) and counts[-1] == 12, "half of 24 samples"
