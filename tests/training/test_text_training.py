"""Runs with captions: what the model is told, who is told nothing, and that all that holds for classes holds for text."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import weights
from safetensors.torch import load_file
from training.captions import CHANNELS, TOKENS, random_cache
from training.ends_of_runs import check_two_processes, same_end

from sparsevid.models.convert.diffusers_names import NULL_CAPTION
from sparsevid.models.text import null_caption
from sparsevid.runs.checkpoints import CheckpointError, checkpoint_path
from sparsevid.training.objective import told
from sparsevid.training.trainer import Trainer


def told_of(trainer: Trainer) -> list[dict]:
    """What the model is told in every later call, beside latents and times."""
    calls = []
    trainer.engine.module.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    return calls


@pytest.mark.parametrize("images", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_the_model_hears_captions_of_clips_and_of_stills(tiny_text, images):
    trainer = Trainer(tiny_text(f"data.images={images}", "objective.label_dropout=0.5", "train.steps=3")[0])
    spec, cache = trainer.spec, trainer.captions.features.cache
    assert (spec.conditioned_on, spec.text_channels, spec.text_tokens, spec.num_classes) == ("text", CHANNELS, TOKENS, 0)
    calls = told_of(trainer)
    trainer.train()
    null = cache.null()
    captions = [cache.read([index]) for index in range(1, len(cache.captions))]
    heard, dropped = set(), 0
    assert len(calls) == 3
    for call in calls:
        shape = (4, 2) if images else (4,)
        assert call["text"].shape == (*shape, TOKENS, CHANNELS) and call["text_mask"].shape == (*shape, TOKENS)
        assert "labels" not in call
        for text, mask in zip(call["text"].view(-1, TOKENS, CHANNELS), call["text_mask"].view(-1, TOKENS), strict=True):
            if torch.equal(text, null.text[0]):
                assert torch.equal(mask, null.mask[0])
                dropped += 1
                continue
            (number,) = [n for n, each in enumerate(captions) if torch.equal(text, each.text[0])]
            assert torch.equal(mask, captions[number].mask[0])
            heard.add(number)
    assert heard == {0, 1, 2} and 2 <= dropped <= 6 * (1 + images) + 4


def test_no_prompt_is_kept_in_every_checkpoint_and_average_as_it_was(tiny_text):
    config, _ = tiny_text("train.precision=bfloat16", "train.steps=2", "monitor.validate_every=2", "monitor.validate_clips=2")
    trainer = Trainer(config)
    trainer.train()
    null = trainer.captions.null()
    for part in ("model", "ema"):
        held = load_file(checkpoint_path(config.folder, 2) / part / "model.safetensors")[NULL_CAPTION]
        assert torch.equal(held, null.text[0])  # in float32, whatever the model computes in
    monitored = null_caption(trainer.monitor.pipeline.model)
    assert torch.equal(monitored[0], null.text) and torch.equal(monitored[1], null.mask)


@pytest.mark.parametrize("stage", [1, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 2, 3))])
def test_a_resumed_run_of_text_ends_as_one_that_was_never_stopped(tiny_text, stage):
    """Bit for bit; and the null caption, which is of no optimizer, is whole at every stage."""
    ends = []
    for name, starts in (("plain", (3,)), ("stopped", (1, 3))):
        for steps in starts:
            config, _ = tiny_text(
                f"name={name}", f"train.steps={steps}", f"train.zero_stage={stage}", "train.checkpoint_every=3"
            )
            Trainer(config).train()
        ends.append(config)
    assert same_end(*ends, step=3)
    ours = weights(checkpoint_path(ends[0].folder, 3))
    assert sum(name.endswith(NULL_CAPTION) and bool(value.any()) for name, value in ours.items()) == 2


@pytest.mark.slow
def test_zero_stages_train_the_same_model_of_text(tiny_text):
    ends = []
    for stage in range(4):
        config, _ = tiny_text(f"name=zero{stage}", f"train.zero_stage={stage}", "train.steps=3", "train.checkpoint_every=3")
        Trainer(config).train()
        ends.append(weights(checkpoint_path(config.folder, 3)))
    for end in ends[1:]:
        assert all(torch.allclose(value, end[name], atol=1e-5, rtol=1e-4) for name, value in ends[0].items())


def test_features_of_another_encoder_are_not_gone_on_with(tiny_text, tmp_path):
    trainer = Trainer(tiny_text("train.steps=1", "train.checkpoint_every=1")[0])
    trainer.train()
    captions = trainer.captions.texts
    other = random_cache(tmp_path / "other", captions, seed=1)
    with pytest.raises(CheckpointError, match="another encoder of captions: its fingerprint is 'random, seed 0' there and"):
        Trainer(tiny_text("train.steps=4", f"data.captions={other.folder}")[0])
    wide = random_cache(tmp_path / "wide", captions, channels=CHANNELS + 1)
    with pytest.raises(CheckpointError, match="another model: text_channels is 10 there and 11 here"):
        Trainer(tiny_text("train.steps=4", f"data.captions={wide.folder}")[0])
    with pytest.raises(CheckpointError, match="another model: .*text_channels is 10 there and 0 here"):
        Trainer(tiny_text("train.steps=4", "data.captions=null")[0])


def test_captions_that_changed_are_said_when_a_run_goes_on(tiny_text, caplog):
    config, _ = tiny_text("train.steps=1", "train.checkpoint_every=1")
    Trainer(config).train()
    Trainer(tiny_text("train.steps=2")[0])
    assert "record.captions" not in caplog.text
    (file,) = (each for each in Path(config.data.root).glob("*.txt") if "\n" in each.read_text())  # of two captions
    file.write_text("\n".join(reversed(file.read_text().splitlines())))
    Trainer(tiny_text("train.steps=2")[0])
    assert "record.captions is " in caplog.text


@pytest.mark.parametrize("heard", ["prompt", pytest.param("own", marks=pytest.mark.slow)])
def test_no_prompt_is_heard_as_the_config_says(tiny_text, heard):
    trainer = Trainer(tiny_text(f"text.null_mask={heard}", "objective.label_dropout=1.0", "train.steps=1")[0])
    calls = told_of(trainer)
    trainer.train()
    null = trainer.captions.null()
    for call in calls:
        assert torch.equal(call["text"], null.text.expand_as(call["text"]))
        own = torch.equal(call["text_mask"], null.mask.expand_as(call["text_mask"]))
        assert own == (heard == "own")


def test_validation_and_sheets_are_of_the_captions_of_fixed_clips(tiny_text):
    config, _ = tiny_text(
        "monitor.validate_every=2", "monitor.validate_clips=3", "monitor.sample_every=2", "monitor.sample_clips=3",
        "sample.steps=2", "sample.guidance=2.0", "train.steps=2",
    )  # fmt: skip
    trainer = Trainer(config)
    trainer.train()
    monitor, clips = trainer.monitor, trainer.monitor.clips
    assert [clip.caption for clip in clips] == monitor.prompts and len(set(monitor.prompts)) > 1
    for clip in clips:
        (expected,) = trainer.captions.features.cache.read([trainer.captions.features.cache.index(clip.caption)]).text
        assert torch.equal(clip.text, expected)
    values = monitor.run(["validate"], 2, trainer.ema.state_dict, Metrics())
    assert (config.folder / "samples" / "step-0000002.png").is_file() and not monitor.failed
    silent = [clip._replace(text=clip.text + 1) for clip in clips]
    monitor.clips = silent
    assert values != monitor.run(["validate"], 2, trainer.ema.state_dict, Metrics())


class Metrics:
    """What is logged goes nowhere."""

    def scalars(self, *_) -> None: ...

    def image(self, *_) -> None: ...


@pytest.mark.parametrize("objective", ["flow", pytest.param("diffusion", marks=pytest.mark.slow)])
def test_a_dense_teacher_of_text_and_a_sparse_student_that_begins_as_it(tiny_text, objective):
    """Both hear the same prompts, and are told of none alike."""
    shared = (f"objective.kind={objective}", "train.steps=4", "train.checkpoint_every=4", "model.residual_upsampling=true")
    dense, _ = tiny_text("name=dense", "model.layout=6D", *shared)
    Trainer(dense).train()
    options = (f"train.init_from={dense.folder}", f"distill.teacher={dense.folder}", "distill.features=0.1")
    config, _ = tiny_text("name=sparse", *shared, *options, "objective.label_dropout=0.5", "model.checkpoint_layers=PMSRD")
    trainer = Trainer(config)
    begun = trainer.engine.gather(list(trainer.engine.fragments()))
    before = load_file(checkpoint_path(dense.folder, 4) / "ema" / "model.safetensors")
    listening = [name for name in before if "cross_attn" in name or name == NULL_CAPTION]
    assert trainer.spec.is_sparse and len(listening) > 6
    assert all(torch.equal(begun[name], before[name]) for name in listening)
    calls, heard = told_of(trainer), []
    trainer.teacher.teacher.register_forward_pre_hook(lambda _, args, kwargs: heard.append(kwargs), with_kwargs=True)
    trainer.train()
    assert len(calls) == len(heard) == 4
    for own, theirs in zip(calls, heard, strict=True):
        assert torch.equal(own["text"], theirs["text"]) and torch.equal(own["text_mask"], theirs["text_mask"])


def test_sizes_of_pictures_are_told_to_a_model_that_takes_them(tiny_text):
    trainer = Trainer(tiny_text("model.hidden_size=36", "train.steps=1")[0])
    with trainer._batches() as batches:
        batch = next(batches)
    videos = [trainer.dataset.videos[index] for index in batch["video"].tolist()]
    assert batch["sizes"].tolist() == [[video.height, video.width, 1.0] for video in videos] and videos[0].height == 144
    spec = replace(trainer.spec, micro_conditions=True)
    assert torch.equal(told(spec, batch)["sizes"], batch["sizes"]) and "sizes" not in told(trainer.spec, batch)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_processes_train_the_same_model_of_text_as_one(tiny_text, stage):
    check_two_processes(tiny_text, stage, "data.images=1", "data.cache_frames=false", "data.workers=1")


@pytest.mark.slow
def test_compiled_layers_train_a_model_of_text_as_plain_ones_do(tiny_text):
    ends = []
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        config, _ = tiny_text(f"name={name}", f"train.compile={compiled}", "train.steps=3", "train.checkpoint_every=3")
        Trainer(config).train()
        ends.append(weights(checkpoint_path(config.folder, 3)))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], atol=1e-4, rtol=1e-3)


def test_pixarts_features_train_without_a_null_caption(tiny_text, tmp_path, caplog):
    """Features by the names of videos; "no prompt" is that of the weights, or drawn, the same for a seed."""
    trainer = Trainer(tiny_text("name=held", "train.steps=1", "train.checkpoint_every=1")[0])
    trainer.train()
    cache, folder = trainer.captions.features.cache, tmp_path / "caption_feature_wmask"
    folder.mkdir()
    text, mask, _ = cache.read([1, 2])
    for number, video in enumerate(("carphone_pristine", "carphone_distorted")):
        np.savez(folder / f"{video}.npz", caption_feature=text[[number]].numpy(), attention_mask=mask[[number]].numpy())
    files = (f"data.captions={folder}", "text.null_mask=prompt", "train.steps=1", "objective.label_dropout=1.0")
    fresh = [null_caption(Trainer(tiny_text(f"name=fresh{turn}", *files)[0]).engine.module) for turn in range(2)]
    assert torch.equal(fresh[0][0], fresh[1][0]) and fresh[0][1].all() and "does not say what 'no prompt' is" in caplog.text
    trainer = Trainer(tiny_text("name=tuned", *files, f"train.init_from={trainer.config.folder}")[0])
    calls = told_of(trainer)
    trainer.train()
    (call,) = calls
    assert torch.equal(call["text"], cache.null().text.expand_as(call["text"])) and call["text_mask"].sum() > 4
