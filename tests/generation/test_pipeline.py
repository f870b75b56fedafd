"""The pipeline: what it loads, what it refuses, and what its settings do."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generation.sampled import SPEC, write_checkpoint
from huggingface_hub.utils import filter_repo_objects
from parity import relative_error
from safetensors.torch import load_file

from sparsevid.autoencoder.linear import LinearAutoencoder
from sparsevid.autoencoder.pixels import Pixels
from sparsevid.cli import run_tool
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.generation.pretrained import HUB_FILES, HUB_IGNORED, parse_autoencoder
from sparsevid.generation.sampling import class_labels, class_names
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.scaling import scaled_grid, scaled_schedule
from sparsevid.sparsity.schedule import paper_schedule, table_schedule

QUIET = {"show_progress": False, "steps": 3}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def pipeline(checkpoint) -> VideoPipeline:
    return VideoPipeline.from_pretrained(checkpoint)


def latents_of(pipeline: VideoPipeline, **options) -> torch.Tensor:
    return pipeline.denoise([0, 1, 2, 3], pipeline.sampling(**{"steps": 4} | options))


def test_an_exported_folder_gives_the_clips_of_its_checkpoint(checkpoint, pipeline, tmp_path):
    assert run_tool("convert", [str(checkpoint), str(tmp_path / "model")]) == 0
    exported = VideoPipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(exported(2, **QUIET), pipeline(2, **QUIET))
    assert exported.fingerprint() == pipeline.fingerprint() and exported.classes == pipeline.classes
    with pytest.raises(ValueError, match="holds one model"):
        VideoPipeline.from_pretrained(tmp_path / "model", weights="model")


def test_weights_are_the_average_unless_asked_for(checkpoint, pipeline):
    raw = VideoPipeline.from_pretrained(checkpoint, weights="model")
    stored = load_file(checkpoint / "model" / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in raw.model.state_dict().items())
    assert raw.fingerprint() != pipeline.fingerprint()
    with pytest.raises(ValueError, match="a checkpoint has ema and model"):
        VideoPipeline.from_pretrained(checkpoint, weights="best")


def test_a_model_alone_needs_an_autoencoder(checkpoint, pipeline):
    with pytest.raises(FileNotFoundError, match=r"autoencoder=kl:SOURCE .* such as stabilityai"):
        VideoPipeline.from_pretrained(checkpoint / "ema")
    alone = VideoPipeline.from_pretrained(checkpoint / "ema", autoencoder=f"linear:{checkpoint / 'autoencoder'}")
    assert alone.default_sampler == "ddim" and alone.sampling().schedule == "constant"
    assert torch.equal(alone(1, schedule="constant", **QUIET), pipeline(1, schedule="constant", **QUIET))
    with pytest.raises(ValueError, match="the autoencoder gives 3 channels, the model takes 4"):
        VideoPipeline.from_pretrained(checkpoint / "ema", autoencoder=Pixels())
    with pytest.raises(ValueError, match="accepted are kl:SOURCE"):
        parse_autoencoder("vae")


def test_a_kl_autoencoder_from_a_folder(checkpoint, tmp_path):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4)  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    half, full = (
        VideoPipeline.from_pretrained(checkpoint / "ema", autoencoder=f"kl:{tmp_path / 'vae'}", dtype=dtype)
        for dtype in ("bfloat16", "float32")
    )
    assert half(2, **QUIET).shape == (2, 3, 4, 8, 12)
    assert half.autoencoder.vae.dtype == torch.bfloat16 and full.autoencoder.vae.dtype == torch.float32
    assert half.fingerprint() == full.fingerprint()


def test_what_is_no_model_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "public.pt").write_bytes(b"")
    for source, reason in (
        (tmp_path / "public.pt", "sparsevid convert"),
        ("nothing", "neither a checkpoint"),
        (tmp_path, "neither a checkpoint"),
        ("nobody/no-model", "cannot be fetched from the hub"),
    ):
        with pytest.raises(FileNotFoundError, match=reason):
            VideoPipeline.from_pretrained(source)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("config.yaml", "guidance:", "guidances:"), ("ema/config.json", '"mlp_ratio"', '"mlp_size"')],
)
def test_a_checkpoint_of_another_version_says_which(file, old, new, checkpoint, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    text = (other / file).read_text(encoding="utf-8")
    assert old in text
    (other / file).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=r"written with sparsevid 0\.0\.9; this is sparsevid"):
        VideoPipeline.from_pretrained(other)


def test_a_damaged_model_is_named(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "broken")
    weights = tmp_path / "broken" / "ema" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        VideoPipeline.from_pretrained(tmp_path / "broken")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("autoencoder.safetensors", b"\x10\x00\x00", "autoencoder.safetensors is damaged"),
        ("autoencoder.json", b'{"channels": 4, "patch": 4}', "autoencoder.json is damaged: it is no JSON object with a kind"),
        ("autoencoder.json", b'["linear", 4, 4]', "autoencoder.json is damaged: it is no JSON object with a kind"),
        ("autoencoder.json", b'{"kind": "lin', "autoencoder.json is damaged: Unterminated string"),
        ("autoencoder.json", b'{"kind": "linear", "channels": 4}', "autoencoder.json is damaged: .*patch = None"),
        ("autoencoder.json", b'{"kind": "linear", "channels": 3, "patch": 4}', "autoencoder.json says"),
    ],
)
def test_a_damaged_autoencoder_is_named(name, content, reason, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "autoencoder" / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"broken/autoencoder.*{reason}"):
        VideoPipeline.from_pretrained(tmp_path / "broken")


def test_clips_are_saved_without_loss(pipeline, tmp_path):
    clips = pipeline(2, **QUIET)
    assert clips.dtype == torch.uint8 and clips.shape == (2, 3, 4, 16, 24)
    paths = pipeline.save(clips, tmp_path / "clips", format="ffv1")
    assert [path.name for path in paths] == ["000000.mkv", "000001.mkv"]


def test_samples_do_not_depend_on_the_batch(pipeline):
    together = latents_of(pipeline, sampler="ddpm")
    settings = pipeline.sampling(steps=4, sampler="ddpm")
    alone = torch.cat([pipeline.denoise([index], settings) for index in range(4)])
    assert relative_error(alone, together) < 1e-4


def test_guidance_of_scale_one_and_savings_that_leave_nothing_out_change_nothing(pipeline):
    plain = latents_of(pipeline)
    same = {"guidance": 1.0, "guidance_interval": (0.2, 0.8), "guidance_channels": 2}
    same["savings"] = ["steps:every=1", "guidance:every=2"]
    assert torch.equal(latents_of(pipeline, **same), plain)
    reuse = {"savings": "steps:every=2", "schedule": "constant"}
    for change in ({"guidance": 3.0}, reuse, {"schedule": "off"}, {"classes": ["run"]}):
        assert not torch.allclose(latents_of(pipeline, **change), plain), change
    assert not torch.equal(latents_of(pipeline, guidance=3.0, guidance_interval=(0.0, 0.5)), latents_of(pipeline, guidance=3.0))


def test_schedules_give_the_model_their_grids(pipeline):
    grids = []
    hook = pipeline.model.register_forward_pre_hook(lambda module, args, kwargs: grids.append(kwargs["grid"]), with_kwargs=True)
    seen = {}
    for schedule in ("paper", "constant", "off"):
        latents_of(pipeline, schedule=schedule)
        seen[schedule], grids[:] = set(grids), []
    hook.remove()
    assert seen["off"] == {SPEC.dense_grid()} and seen["constant"] == {SPEC.sparse_grid}
    assert seen["paper"] == {pipeline.schedule.grid(u) for u in pipeline.sampling(steps=4).times()}


def test_classes_by_name_and_number(pipeline):
    orders = {pipeline.sampling(seed=seed).labels for seed in range(40)}
    assert all(sorted(labels) == [0, 1, 2] for labels in orders) and len(orders) == 6
    assert pipeline.sampling(seed=3).labels == pipeline.sampling(seed=3).labels
    assert pipeline.sampling(classes=["jump", 1, "0"]).labels == (2, 1, 0)
    assert (pipeline.sampling(classes="walk").labels, pipeline.sampling(classes=2).labels) == ((0,), (2,))
    assert [pipeline.sampling(classes=["jump", "run"]).label(index) for index in range(3)] == [2, 1, 2]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"classes": ["rum"]}, "no class 'rum'; nearest are run"),
        ({"classes": [3]}, "0 … 2"),
        ({"classes": []}, "no class is given"),
        ({"sampler": "euler"}, "accepted are ddpm, ddim"),
        ({"steps": 0}, "1 to 1000 steps"),
        ({"batch": 0}, "batch is at least 1"),
        ({"eta": 0.5, "sampler": "ddpm"}, "option of the sampler ddim"),
        ({"schedule": "dense"}, "accepted are paper, constant, off"),
        ({"savings": ["steps:every=0"]}, "saving steps: every = 0; it is at least 1"),
        ({"guidance": 2.0, "guidance_channels": 5}, "1 to 4 channels"),
        ({"guidance": 2.0, "guidance_interval": (0.8, 0.2)}, "0 ≤ low ≤ high ≤ 1"),
        ({"size": (16, 26)}, "width = 26; accepted are multiples of 4 pixels .* 24 or 28"),
        ({"size": (2, 24)}, "such as 4"),
        ({"frames": 0}, "at least 1"),
        ({"classes": [1.7]}, "a class = 1.7; it is a whole number"),
        ({"seed": 1.5}, "seed = 1.5; it is a whole number"),
        ({"steps": 2.5}, "steps = 2.5; it is a whole number"),
        ({"batch": "2"}, "batch = '2'; it is a whole number"),
        ({"guidance": float("nan")}, "guidance = nan; it is a finite number"),
        ({"guidance": float("inf")}, "guidance = inf; it is a finite number"),
        ({"guidance_interval": (0.5,)}, r"guidance_interval = \(0.5,\); it is \(low, high\)"),
        ({"guidance_interval": (0.8, 0.2)}, "0 ≤ low ≤ high ≤ 1"),
        ({"guidance_channels": 9}, "1 to 4 channels"),
    ],
)
def test_settings_that_cannot_be_are_named(options, reason, pipeline):
    with pytest.raises(ValueError, match=reason):
        pipeline.sampling(**options)


@pytest.mark.parametrize("guidance", [4.0, 0.0])
def test_guidance_by_what_was_not_trained_is_refused(checkpoint, tmp_path, guidance):
    """By the run's config, also for the model alone in its checkpoint and for an exported one; and by the model's own spec."""
    shutil.copytree(checkpoint, tmp_path / "never")
    text = (checkpoint / "config.yaml").read_text(encoding="utf-8")
    never = text.replace("label_dropout: 0.1", "label_dropout: 0.0")
    assert never != text
    (tmp_path / "never" / "config.yaml").write_text(never, encoding="utf-8")
    assert run_tool("convert", [str(tmp_path / "never"), str(tmp_path / "exported")]) == 0
    own = {"autoencoder": f"linear:{checkpoint / 'autoencoder'}"}
    for source, options in (("never", {}), ("exported", {}), ("never/ema", own)):
        untrained = VideoPipeline.from_pretrained(tmp_path / source, **options)
        assert untrained.sampling(guidance=1).guidance == 1.0
        with pytest.raises(
            ValueError, match=f"guidance = {guidance}: .* objective.label_dropout=0, .* accepted is 1, .* above 0"
        ):
            untrained.sampling(guidance=guidance)
    write_checkpoint(tmp_path / "rows", replace(SPEC, no_class=False))
    rows = VideoPipeline.from_pretrained(tmp_path / "rows")
    assert rows(3, **QUIET).shape[0] == 3 and sorted(rows.sampling().labels) == [0, 1, 2]
    with pytest.raises(ValueError, match=f"guidance = {guidance}: this model has no label that means 'no class'"):
        rows.sampling(guidance=guidance)


def test_no_clip_is_refused(pipeline):
    with pytest.raises(ValueError, match="num is at least 1, got 0"):
        pipeline(0, **QUIET)


def test_class_names_that_are_missing_or_digits():
    assert class_names(["walk"], 3) == ["walk", "1", "2"] and class_names(["walk", "run"], 1) == ["walk"]
    assert class_labels(["walk", "2"], ["walk"], 3) == (0, 2)
    assert class_labels(["7", 0, "1"], ["7", "1", "run"], 3) == (0, 0, 1)
    with pytest.raises(ValueError, match="'2' is the name of label 0, and 2 is the label of another class"):
        class_labels(["2"], ["2", "1", "run"], 3)
    assert class_labels([2], ["2", "1", "run"], 3) == (2,)


def test_a_hub_download_leaves_out_what_resuming_needs():
    names = [
        "ema/model.safetensors",
        "training/state.json",
        "step-4/training/rank-0.safetensors",
        "config.yaml",
    ]
    kept = filter_repo_objects(names, allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED)
    assert list(kept) == ["ema/model.safetensors", "config.yaml"]


def test_warm_up_agrees_with_sampling_at_the_cuts_of_a_schedule(tmp_path):
    """A cut at 0.8, which float32 does not hold, and a step of euler there."""
    spec = replace(SPEC, learn_sigma=False)
    pipeline = VideoPipeline.from_pretrained(write_checkpoint(tmp_path / "flow", spec, "flow"))
    pipeline.schedule = table_schedule([(0.8, (2, 2, 3)), (1.0, (1, 1, 1))], spec.dense_grid())
    settings, grids = pipeline.sampling(steps=5, batch=2), []
    pipeline.model.register_forward_pre_hook(lambda module, args, kwargs: grids.append(tuple(kwargs["grid"])), with_kwargs=True)
    pipeline.denoise([0, 1], settings)
    assert grids == [(1, 1, 1)] + [(2, 2, 3)] * 4
    grids.clear()
    pipeline.warm_up(settings)
    assert grids == [(1, 1, 1)] + [(2, 2, 3)] * 2


def test_a_dense_unconditional_flow_model(tmp_path):
    spec = replace(SPEC.dense(), num_classes=0, learn_sigma=False)
    pipeline = VideoPipeline.from_pretrained(write_checkpoint(tmp_path / "flow", spec, "flow"))
    assert pipeline.sampling().schedule == "off" and pipeline.default_sampler == "euler" and pipeline.classes == []
    assert pipeline(1, sampler="heun", **QUIET).shape == (1, 3, 4, 16, 24)
    for options, reason in (
        ({"guidance": 2.0}, "unconditional"),
        ({"guidance_interval": (0.2, 0.8)}, "unconditional"),
        ({"guidance_channels": 3}, "unconditional"),
        ({"classes": [0]}, "unconditional"),
        ({"schedule": "paper"}, "is dense; accepted is off"),
        ({"savings": ["steps:every=2"]}, "no sparse layers"),
        ({"savings": ["guidance:every=2"]}, "unconditional"),
    ):
        with pytest.raises(ValueError, match=reason):
            pipeline.sampling(**options)


def test_other_sizes_and_lengths(pipeline, caplog):
    clips = pipeline(2, size=(32, 24), frames=6, **QUIET)
    assert clips.shape == (2, 3, 6, 32, 24)
    assert "trained on 4 frames of 16×24 pixels, and is asked for 6 frames of 32×24" in caplog.text
    assert torch.equal(pipeline(1, size=(16, 24), frames=4, **QUIET), pipeline(1, **QUIET))


def test_frames_of_a_patch_are_counted_in_clips(tmp_path, caplog):
    folder = write_checkpoint(tmp_path / "step")
    noise = torch.randint(0, 256, (8, 3, 4, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    LinearAutoencoder.fit(noise, patch=4, patch_frames=2, channels=4).save(folder / "autoencoder")
    pipeline = VideoPipeline.from_pretrained(folder)
    assert pipeline(1, **QUIET).shape == (1, 3, 8, 16, 24)  # latents of 4 frames
    assert pipeline(1, frames=12, **QUIET).shape == (1, 3, 12, 16, 24)
    assert "trained on 8 frames of 16×24 pixels, and is asked for 12 frames" in caplog.text
    with pytest.raises(ValueError, match="frames = 5; accepted is multiples of 2"):
        pipeline.sampling(frames=5)


def test_scaled_schedules_keep_proportions():
    trained, dense = Grid(16, 16, 16), Grid(24, 32, 16)
    schedule = paper_schedule(trained, 4, 0.61, 0.86)
    scaled = scaled_schedule(schedule, trained, dense)
    assert scaled_schedule(schedule, trained, trained) is schedule
    assert [stage.high for stage in scaled.stages] == [stage.high for stage in schedule.stages]
    assert [stage.grid for stage in scaled.stages] == [Grid(6, 2 * g.h, g.w) for _, _, g in schedule.stages]
    assert scaled_grid(Grid(4, 6, 6), trained, Grid(17, 1, 3)) == (1, 1, 1)  # 17 has no divisor up to 4.25 but 1


def test_bfloat16_is_near_float32(checkpoint, pipeline):
    half = VideoPipeline.from_pretrained(checkpoint, dtype="bfloat16")
    assert relative_error(latents_of(half), latents_of(pipeline)) < 0.1
    with pytest.raises(ValueError, match="accepted are float32, bfloat16"):
        VideoPipeline.from_pretrained(checkpoint, dtype="float16")


@pytest.mark.parametrize("savings", [[], ["steps:every=3"], ["first_block:threshold=0.5"], ["guidance:every=2,grid=1x2x2"]])
def test_warm_up_calls_each_kind_of_layer_as_sampling_does(pipeline, savings):
    """With savings also for the clips of one half of guidance, which sampling may come to."""
    calls = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args, index=index: calls.append((index, *(tuple(x.shape) for x in args[:2]))))
        for index, block in enumerate(pipeline.model.blocks)
    ]
    options = {"steps": 12, "batch": 4, "guidance": 2.0, "guidance_interval": (0.3, 1.0), "savings": savings}
    pipeline.warm_up(pipeline.sampling(**options))
    warmed, calls[:] = set(calls), []
    latents_of(pipeline, **options)
    for hook in hooks:
        hook.remove()
    assert set(calls) == warmed if not savings else set(calls) <= warmed


def test_graphs_are_of_gpus_alone(checkpoint, pipeline):
    assert pipeline.graph and pipeline.device.type == "cpu" and not pipeline.graphed
    assert not VideoPipeline.from_pretrained(checkpoint, graph=False).graph


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-5), ("bfloat16", 3e-2)])
def test_compiled_samples_are_those_of_the_model(checkpoint, dtype, tolerance):
    plain, compiled = (VideoPipeline.from_pretrained(checkpoint, dtype=dtype, compile=each) for each in (False, True))
    options = {"steps": 4, "savings": ["steps:every=2"], "guidance": 2.0}
    compiled.warm_up(compiled.sampling(batch=4, **options))
    assert relative_error(latents_of(compiled, **options), latents_of(plain, **options)) < tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_samples_by_cuda_graphs_are_those_without(checkpoint, dtype, compiled):
    """Bit for bit, in batches of two sizes, with guidance in an interval and noise in every step; with savings, none."""
    made = {graph: VideoPipeline.from_pretrained(checkpoint, dtype=dtype, compile=compiled, graph=graph) for graph in (0, 1)}
    options = {"steps": 9, "sampler": "ddpm", "guidance": 2.0, "guidance_interval": (0.2, 0.8)}
    assert made[1].graphed and not made[0].graphed
    for savings in (["steps:every=2"], []):
        for indices in ([0, 1, 2, 3], [4, 5, 6, 7], [8]):
            assert len(made[1]._networks.graphs) == 0 or not savings
            settings = made[0].sampling(savings=savings, **options)
            found, expected = (made[graph].denoise(indices, settings) for graph in (1, 0))
            assert torch.equal(found, expected)
    assert len(made[1]._networks.graphs) > 3


def test_a_callback_sees_every_step_of_every_batch(pipeline):
    seen = []
    clips = pipeline(3, batch=2, **QUIET, on_step=lambda step, time, latents: seen.append((step, time, latents.clone())))
    assert [step for step, _, _ in seen] == [0, 1, 2] * 2
    assert seen[0][1] > seen[1][1] >= seen[2][1] == seen[-1][1] == 0.0
    assert [len(latents) for _, _, latents in seen] == [2, 2, 2, 1, 1, 1]
    assert torch.equal(pipeline.decode(torch.cat([seen[2][2], seen[-1][2]])), clips)

    def stops(step, time, latents):
        raise KeyboardInterrupt(step)

    with pytest.raises(KeyboardInterrupt, match="0"):
        pipeline(1, **QUIET, on_step=stops)
