"""A run in this process: what the model is called with, what is averaged, what is refused."""

import importlib.util
import json
import math
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from launch import weights

from sparsevid.autoencoder.load import load_autoencoder
from sparsevid.autoencoder.pixels import Pixels
from sparsevid.cli import run_tool
from sparsevid.data.feed import Feed
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.generation.pretrained import load_model
from sparsevid.runs.checkpoints import checkpoint_path, list_checkpoints
from sparsevid.runs.config import ConfigError, ObjectiveConfig, RunConfig
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.logging import read_metrics
from sparsevid.training import TrainingError
from sparsevid.training.engine import learning_rate
from sparsevid.training.initial import unlike
from sparsevid.training.trainer import Trainer, split_batch


def record_calls(model) -> list[tuple[torch.Tensor, tuple]]:
    """(times u, grid) of every later call of the model."""
    calls = []

    def hook(module, args, kwargs):
        calls.append((args[1].double() / 999, kwargs.get("grid")))

    model.register_forward_pre_hook(hook, with_kwargs=True)
    return calls


@pytest.mark.parametrize("objective", ["flow", "diffusion"])
def test_schedule_rules_training_and_sampling(tiny, objective):
    config, _ = tiny(f"objective.kind={objective}", "train.steps=24", "train.checkpoint_every=24", "train.micro_batch=2")
    trainer = Trainer(config)
    schedule, calls = trainer.schedule, record_calls(trainer.engine.engine.module)
    trainer.train()
    assert len(calls) == 24 * 2
    for u, grid in calls:
        assert {schedule.stage_index(min(each, 1.0)) for each in u.tolist()} == {schedule.stages.index(_stage(schedule, grid))}
    assert {grid for _, grid in calls} == {stage.grid for stage in schedule.stages}

    pipeline = VideoPipeline.from_pretrained(config.folder)
    calls = record_calls(pipeline.model)
    clips = pipeline(3, steps=20, batch=2, show_progress=False)
    assert clips.shape == (3, 3, 4, 32, 32) and clips.dtype == torch.uint8
    first_batch = [grid.tokens for _, grid in calls[:20]]
    assert first_batch == sorted(first_batch)
    assert set(first_batch[:5]) == {min(first_batch)} and first_batch[-1] > first_batch[0]


def _stage(schedule, grid):
    return next(stage for stage in schedule.stages if stage.grid == grid)


def test_latents_of_patches_of_several_frames_are_as_many_fewer(tiny):
    trainer = Trainer(tiny("train.steps=2", "autoencoder.patch_frames=2", "schedule.frames=1")[0])
    assert trainer.spec.input_size == (2, 4, 4)
    trainer.train()
    assert VideoPipeline.from_pretrained(trainer.config.folder)(1, show_progress=False).shape == (1, 3, 4, 32, 32)
    with pytest.raises(ValueError, match="5 frames are no multiple of 2"):
        Trainer(tiny("name=odd", "autoencoder.patch_frames=2", "data.frames=5")[0])
    with pytest.raises(ConfigError, match=r"data.images = 1: stills .* autoencoder.patch_frames=1"):
        tiny("autoencoder.patch_frames=2", "data.images=1")


def test_average_is_that_of_the_weights(tiny):
    config, _ = tiny("train.ema_decay=0.5", "train.checkpoint_every=100")
    trainer = Trainer(config)
    expected = trainer.engine.gather(list(trainer.engine.fragments()))
    for n in range(6):
        with trainer._batches() as batches:
            trainer.optimizer_step(batches)
        decay = min(0.5, (1 + n) / (10 + n))
        for name, value in trainer.engine.gather(list(trainer.engine.fragments())).items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in trainer.ema.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-6)


def test_samples_depend_on_seed_and_index_alone(tiny):
    config, _ = tiny()
    Trainer(config).train()
    pipeline = VideoPipeline.from_pretrained(config.folder)
    options = {"steps": 4, "show_progress": False}
    together = pipeline(5, batch=5, **options)
    parts = torch.cat([clips for _, clips in pipeline.batches([0, 1, 2, 3, 4], batch=2, **options)])
    assert (together.int() - parts.int()).abs().max() <= 1  # sums in another order may round to a neighbouring level
    assert not torch.equal(together, pipeline(5, batch=5, seed=1, **options))
    with pytest.raises(ValueError, match=r"sampler 'ddim' does not fit .*'flow'; accepted are euler"):
        pipeline(1, sampler="ddim")
    with pytest.raises(ValueError, match="unconditional"):
        pipeline(1, guidance=2.0)


@pytest.mark.parametrize("optimizer", ["adam", pytest.param("sgd", marks=pytest.mark.slow)])
def test_other_optimizers_are_the_same_at_every_stage(tiny, optimizer):
    ends = []
    for stage in range(4):
        config, _ = tiny(f"name=zero{stage}", f"train.optimizer={optimizer}", f"train.zero_stage={stage}", "train.steps=3")
        Trainer(config).train()
        ends.append(weights(checkpoint_path(config.folder, 3)))
    for end in ends[1:]:
        assert all(torch.allclose(value, end[name], atol=1e-5, rtol=1e-4) for name, value in ends[0].items())


def test_float16_trains_as_float32_does(tiny):
    """With its loss scale, where that works: from stage 1 on. Where this machine has none of it, that is said first."""
    if torch.float16 not in get_accelerator().supported_dtypes():
        config, _ = tiny("train.precision=float16", "train.zero_stage=1")
        with pytest.raises(
            ConfigError, match=r"train\.precision=float16 does not work on this machine.* accepted here: float32"
        ):
            Trainer(config)
        assert not config.folder.exists()
        return
    losses = []
    for precision in ("float32", "float16"):
        config, _ = tiny(
            f"name={precision}", f"train.precision={precision}", "train.zero_stage=1", "train.gradient_clipping=0.1"
        )
        Trainer(config).train()
        rows = read_metrics(config.folder)
        losses.append([row["train/loss"] for row in rows])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2) and losses[1] != losses[0]


def test_a_step_is_set_aside_as_often_as_it_has_to_be(tiny):
    config, _ = tiny()
    Trainer(config).train()
    for step in (2, 4):
        config.train.resume = str(checkpoint_path(config.folder, step))
        Trainer(config).train()
    (config.folder / "checkpoints" / "step-0000006-copy").mkdir()
    names = {path.name for path in (config.folder / "checkpoints").iterdir()}
    assert {"aside-step-0000006", "aside-step-0000006-1", "step-0000006", "step-0000006-copy"} <= names
    assert list_checkpoints(config.folder)[-1] == checkpoint_path(config.folder, 6)


def test_weights_are_exported_as_they_are(tiny, tmp_path):
    """`convert` takes a run: its average, or its raw weights."""
    config, _ = tiny("train.steps=2", "train.zero_stage=3")
    Trainer(config).train()
    saved = weights(checkpoint_path(config.folder, 2))
    for kind, options in (("ema", []), ("model", ["--weights", "model"])):
        assert run_tool("convert", [str(config.folder), str(tmp_path / kind), *options]) == 0
        exported = load_model(tmp_path / kind).state_dict()
        assert all(torch.equal(value, saved[f"{kind}/model.safetensors:{name}"]) for name, value in exported.items())


def test_checkpoints_that_are_kept(tiny):
    """The newest ones, and every k-th for good."""
    config, _ = tiny("train.steps=12", "train.keep_checkpoints=1", "train.keep_every=4")
    Trainer(config).train()
    assert [path.name for path in list_checkpoints(config.folder)] == ["step-0000004", "step-0000008", "step-0000012"]


def test_a_model_in_a_checkpoint_has_the_autoencoder_beside_it(tiny, tmp_path, caplog):
    """`<checkpoint>/ema` as a source is taken with its latents; a folder that says nothing of them is no teacher."""
    source, _ = tiny("name=source", "seed=1", "model.layout=6D", "train.steps=1", "train.checkpoint_every=1")
    Trainer(source).train()
    checkpoint = checkpoint_path(source.folder, 1)
    theirs = load_autoencoder(checkpoint / "autoencoder").fingerprint()
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint / "ema", bare)
    tuned = Trainer(tiny("name=tuned", f"train.init_from={checkpoint / 'ema'}")[0])
    assert tuned.autoencoder.fingerprint() == theirs and "does not say in which latents" not in caplog.text
    both = (f"train.init_from={bare}", f"distill.teacher={checkpoint / 'ema'}")
    assert Trainer(tiny("name=both", *both)[0]).autoencoder.fingerprint() == theirs
    assert f"{bare} does not say in which latents" in caplog.text
    with pytest.raises(ConfigError, match="has no autoencoder beside it, and means nothing in latents that are fitted anew"):
        Trainer(tiny("name=taught", f"distill.teacher={bare}")[0])


def test_a_run_started_from_nothing_takes_nothing_of_the_current_folder(tiny, tmp_path, monkeypatch):
    """A folder `checkpoints` that happens to lie there is none of its business."""
    (tmp_path / "here" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert Trainer(tiny()[0]).autoencoder.kind == "linear"


def test_what_cannot_be_logged_is_said_before_anything_is_built(tiny, tmp_path, monkeypatch):
    if importlib.util.find_spec("wandb") is None:
        with pytest.raises(ConfigError, match="needs the package wandb"):
            Trainer(tiny("monitor.wandb=true")[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the run's folder .* cannot be written: "):
        Trainer(tiny("name=file")[0])


def test_a_run_starts_from_a_dense_one_and_learns_from_it(tiny):
    """`train.init_from` and `distill.teacher`: a dense run becomes a sparse one of the same depth, taught by it."""
    dense, _ = tiny("name=dense", "model.layout=6D")
    Trainer(dense).train()
    options = (
        "autoencoder.fit_clips=8",
        f"train.init_from={dense.folder}",
        f"distill.teacher={dense.folder}",
        "distill.features=0.5",
    )
    trainer = Trainer(tiny("name=sparse", "data.images=1", *options)[0])
    before = {name: value.clone() for name, value in trainer.teacher.teacher.state_dict().items()}
    kept = weights(checkpoint_path(dense.folder, 6))["ema/model.safetensors:blocks.5.attn.qkv.weight"]
    assert torch.equal(trainer.engine.module.state_dict()["blocks.5.attn.qkv.weight"], kept)
    ours, theirs = (
        trainer.autoencoder.state_dict(),
        load_autoencoder(checkpoint_path(dense.folder, 6) / "autoencoder").state_dict(),
    )
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items()), "the latents that the weights know"
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.teacher.teacher.state_dict().items())
    with pytest.raises(ConfigError, match="linear, channels=8 "):
        Trainer(tiny("name=other", *options, "autoencoder.channels=4")[0])


def test_what_a_source_means_by_its_latents_and_outputs_is_compared(tiny, caplog):
    """A teacher in other latents is refused; weights of another objective, or for other classes, are taken with a warning."""
    short = ("train.steps=1", "train.checkpoint_every=1")
    folders = []
    for seed in (0, 1):
        config, _ = tiny(f"name=source{seed}", f"seed={seed}", *short)
        Trainer(config).train()
        folders.append(config.folder)
    ours = load_autoencoder(checkpoint_path(folders[0], 1) / "autoencoder")
    run, spec = RunConfig(objective=ObjectiveConfig("flow")), ModelSpec("1D", 8, 1)
    assert unlike(str(folders[0]), run, ours, spec) == []
    (other,) = unlike(str(folders[1]), run, ours, spec)
    assert other == "its latents are those of another autoencoder linear, with other weights or settings"
    (other,) = unlike(str(folders[0]), run, Pixels(), spec)
    assert other == "its latents are those of the autoencoder linear, this run's of pixels"
    teacher, _ = tiny("name=teacher", "seed=1", *short, "model.layout=6D")
    Trainer(teacher).train()
    with pytest.raises(ConfigError, match="means something else by its output: its latents are those of another autoencoder"):
        Trainer(tiny("name=student", f"train.init_from={folders[0]}", f"distill.teacher={teacher.folder}")[0])
    Trainer(tiny("name=tuned", f"train.init_from={folders[0]}", "objective.kind=diffusion")[0])
    assert "it was trained by the objective flow, this run by diffusion" in caplog.text
    config = checkpoint_path(folders[0], 1) / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("classes: []", "classes: [a, c]"), encoding="utf-8")
    run.record.classes, known = ["a", "b"], str(checkpoint_path(folders[0], 1))
    assert unlike(known, run, ours, replace(spec, num_classes=2)) == ["label 1 is 'c' there and 'b' here"]
    assert unlike(known, run, ours, replace(spec, text_channels=4)) == []  # classes of data with captions are names
    run.record.text_encoder = "ours"
    config.write_text(
        config.read_text(encoding="utf-8").replace("text_encoder: null", "text_encoder: theirs"), encoding="utf-8"
    )
    (other,) = unlike(known, run, ours, spec)
    assert other == "its captions were encoded by another encoder of text (fingerprint theirs, here ours)"
    run.text.tokens = 300
    assert unlike(known, run, ours, spec) == ["its captions were encoded to 120 tokens each, here to 300"]


def test_class_conditional_run(tiny):
    config, path = tiny("data.frames=2", "objective.label_dropout=0.5")
    card = path.with_name("card.yaml")
    card.write_text("name: two\ntitle: Two clips\nlabel_rule: file\nclip: {stride: 2, size: [32, 32]}\n", encoding="utf-8")
    config.data.card, config.data.size = str(card), None
    trainer = Trainer(config)
    assert trainer.spec.num_classes == 2
    trainer.train()
    pipeline = VideoPipeline.from_pretrained(config.folder)
    assert pipeline.config.record.classes == ["carphone_distorted", "carphone_pristine"]
    assert pipeline(2, steps=2, guidance=2.0, classes=[1], show_progress=False).shape == (2, 3, 2, 32, 32)
    with pytest.raises(ValueError, match="0 … 1"):
        pipeline(1, classes=[7])


def test_resumed_run_follows_its_own_learning_rate(tiny):
    """A finished cosine run, continued to more steps, goes on at the rate of the longer run."""
    Trainer(tiny("train.lr_schedule=cosine", "train.warmup=1", "train.steps=4")[0]).train()
    config, _ = tiny("train.lr_schedule=cosine", "train.warmup=1", "train.steps=8", "train.lr=2e-2")
    Trainer(config).train()
    rows = read_metrics(config.folder)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["train/lr"] for row in rows[4:]] == [learning_rate(config.train, step) for step in range(4, 8)]
    assert rows[4]["train/lr"] == pytest.approx(2e-2 * 0.5 * (1 + math.cos(math.pi * 3 / 7)))


@pytest.mark.slow
def test_warm_up_and_cosine_hold_at_every_zero_stage(tiny):
    """The sharded optimizers take the step's learning rate as the plain one does."""
    schedule = ("train.lr_schedule=cosine", "train.warmup=2", "train.weight_decay=0.1")
    ends = []
    for stage in range(4):
        config, _ = tiny(*schedule, f"train.zero_stage={stage}", f"name=zero{stage}")
        Trainer(config).train()
        ends.append(weights(checkpoint_path(config.folder, 6)))
    constant, _ = tiny("name=constant", "train.weight_decay=0.1")
    Trainer(constant).train()
    other = weights(checkpoint_path(constant.folder, 6))
    for name, value in ends[0].items():
        for end in ends[1:]:
            torch.testing.assert_close(end[name], value, atol=1e-5, rtol=1e-4)
    assert any(not torch.allclose(other[name], value, atol=1e-4) for name, value in ends[0].items())


def test_losses_that_are_not_numbers_stop_the_run_before_they_spread(tiny):
    config, _ = tiny("train.lr=1e30", "train.gradient_clipping=0", "train.checkpoint_every=1", "train.max_skipped=2")
    with pytest.raises(TrainingError, match="2 steps in a row were skipped, the last is 2"):
        Trainer(config).train()
    for path in list_checkpoints(config.folder):
        assert all(value.isfinite().all() for value in weights(path).values())


def test_a_run_that_skipped_too_many_steps_keeps_what_it_learned_and_can_go_on(tiny):
    """It ends with a checkpoint, may skip as many when started again, and then leaves no second one of the same weights."""
    config, _ = tiny("train.lr=1e30", "train.gradient_clipping=0", "train.checkpoint_every=100", "train.max_skipped=2")
    saved = checkpoint_path(config.folder, 3)
    with pytest.raises(TrainingError, match=f"the last is 2: .* The weights from before them are in {saved}"):
        Trainer(config).train()
    state = json.loads((saved / "training" / "state.json").read_text(encoding="utf-8"))
    assert (state["step"], state["skipped"]) == (3, 0) and list_checkpoints(config.folder) == [saved]
    with pytest.raises(TrainingError, match="2 steps in a row were skipped, the last is 4: .* No step was applied since"):
        Trainer(config).train()
    assert list_checkpoints(config.folder) == [saved]


def test_skips_from_before_a_start_count_and_leave_no_checkpoint_of_the_same_weights(tiny):
    options = ("train.lr=1e30", "train.gradient_clipping=0", "train.checkpoint_every=1", "train.max_skipped=2")
    config, _ = tiny(*options, "train.steps=2")
    Trainer(config).train()
    before = list_checkpoints(config.folder)
    state = json.loads((before[-1] / "training" / "state.json").read_text(encoding="utf-8"))
    assert state["skipped"] == 1
    with pytest.raises(TrainingError, match="2 steps in a row were skipped, the last is 2: .* No step was applied since"):
        Trainer(tiny(*options)[0]).train()
    assert list_checkpoints(config.folder) == before


def test_batches_that_do_not_divide_are_refused():
    assert split_batch(16, None, 2) == (8, 1) and split_batch(16, 2, 2) == (2, 4)
    with pytest.raises(ConfigError, match="not a multiple of the 3 ranks"):
        split_batch(16, None, 3)
    with pytest.raises(ConfigError, match=r"accepted are \[1, 2, 4, 8\]"):
        split_batch(16, 3, 2)


def test_data_and_model_mistakes_are_named(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no usable video"):
        Trainer(tiny(f"data.root={tmp_path / 'empty'}")[0])
    with pytest.raises(ValueError, match="does not divide the 4 frames"):
        Trainer(tiny("schedule.frames=3")[0])
    with pytest.raises(ConfigError, match=r"missing are model\.layout"):
        Trainer(tiny("model.layout=null")[0])


def test_a_step_of_many_slots_keeps_no_clips(tiny):
    """Each tensor that a worker gave takes an open file, of which a process may have as few as 1024."""
    trainer = Trainer(tiny("train.global_batch=16", "train.micro_batch=1")[0])
    given, alive = [], []

    def watched(batches):
        for batch in batches:
            alive.append(sum(tensor() is not None for tensor in given))
            given.extend(map(weakref.ref, batch.values()))
            yield batch

    with trainer._batches() as batches:
        trainer.optimizer_step(Feed(watched(batches), trainer.engine.device))
    batches = 16 + 1  # one is taken ahead, for the next step
    assert len(alive) == batches and max(alive) <= 3 * len(given) // batches  # of a batch, the one before, and the one to come
