"""Every config of the repository can be used as it is, and says at its head what it takes and what to expect."""

import json
import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import launch
import pytest
import torch
from parity import relative_error

from sparsevid.benchmark.candidates import open_run
from sparsevid.data.tree.cards import Card, load_card
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.models.presets import T5_CHANNELS, build_spec
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.build import TextSize, schedule_from_config, spec_from_config
from sparsevid.runs.config import ConfigError, load_config, save_config
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.training.deepspeed_file import SAID_BY_RUN
from sparsevid.training.engine import Engine
from sparsevid.training.objective import build_objective

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
DATASETS = ("faceforensics", "sky_timelapse", "ucf101", "taichi_hd")
FACTORS = {"kl": (8, 4)}  # of fixed autoencoders that configs name: pixels of a latent's side, channels
# Files whose names begin with `_` are parts of runs, and those of `study/` are tables of them.
RUNS = sorted(
    path
    for path in CONFIGS.rglob("*.yaml")
    if not any(part.startswith(("_", "study")) for part in path.relative_to(CONFIGS).parts)
)
LONG, QUICK, IMAGES, TEXT = (
    [path for path in RUNS if path.parent.name in names]
    for names in (DATASETS, ("quick",), ("imagenet",), ("sam", "text_to_video"))
)
FLOWS = [path for path in LONG if path.stem.endswith("_flow")]
OTHER_FLOWS = (
    "demo/flow.yaml", "imagenet/sparse_xl2_flow.yaml", "sam/sparse_xl2_flow.yaml", "text_to_video/sparse_latte1_flow.yaml"
)  # fmt: skip
DEEPSPEED = sorted((CONFIGS / "deepspeed").glob("*.json"))


load = cache(load_config)  # several tests read each config


def short(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def facts(path: Path) -> dict[str, str]:
    """What the comment at a config's head says: its lines `# key: value`."""
    head = re.match(r"(#.*\n)*", path.read_text(encoding="utf-8")).group()
    return dict(re.findall(r"^# ([\w ]+): (.+)$", head, re.MULTILINE))


def processes(start: str) -> int:
    """Ranks of a command line."""
    nodes, ranks = (re.search(rf"--{name}[ =](\d+)", start) for name in ("nnodes", "nproc_per_node"))
    return (int(nodes[1]) if nodes else 1) * (int(ranks[1]) if ranks else 1)


@cache
def card_and_spec(path: Path) -> tuple[Card, ModelSpec]:
    """The card of a run and the spec of its model, without data or autoencoder."""
    config = load(path)
    card = load_card(config.data.card)
    own, frames = config.autoencoder, config.data.frames or card.clip.frames
    linear = own.kind == "linear"
    factor, channels = (own.patch, own.channels) if linear else FACTORS[own.kind]
    height, width = config.data.size or card.clip.size
    return card, spec_from_config(
        config,
        input_size=(frames // (own.patch_frames if linear else 1), height // factor, width // factor),
        in_channels=channels,
        num_classes=len(card.classes) or card.counts.get("classes", 0),
        learn_sigma=build_objective(config.objective).learn_sigma,
        text=TextSize(config.text.tokens, T5_CHANNELS) if config.data.captions else None,
    )


@pytest.mark.parametrize("path", RUNS, ids=short)
def test_each_run_has_a_model_and_a_schedule_that_fits_it(path):
    config = load(path)
    assert config.name == short(path)
    _, spec = card_and_spec(path)
    assert open_run(path).spec == spec  # as it is counted and timed
    if spec.is_sparse:
        for stage in schedule_from_config(config.schedule, spec.dense_grid(), config.model.preset).stages:
            assert spec.dense_grid().t % stage.grid.t == 0
            assert stage.grid.h < spec.dense_grid().h and stage.grid.w < spec.dense_grid().w


@pytest.mark.parametrize("path", [*LONG, *QUICK, *IMAGES, *TEXT], ids=short)
def test_each_head_says_what_the_run_takes(path):
    said, config = facts(path), load(path)
    assert int(said["steps"].replace(",", "")) == config.train.steps
    clips, ranks, slots, micro = map(
        int, re.fullmatch(r"(\d+) clips = (\d+) ranks? × (\d+) slots? × (\d+) clips?", said["global batch"]).groups()
    )
    assert clips == config.train.global_batch == ranks * slots * micro
    assert micro == (config.train.micro_batch or clips // ranks)
    assert processes(said["start"]) == ranks
    assert said["start"].endswith(f"tools/train.py {path.relative_to(ROOT).as_posix()}")
    if config.train.deepspeed is not None:
        assert ROOT / config.train.deepspeed in DEEPSPEED


@pytest.mark.parametrize("path", LONG, ids=short)
def test_each_long_run_is_lattes(path):
    said, config = facts(path), load(path)
    card, spec = card_and_spec(path)
    assert re.match(r"(\d+) GPUs? of \d+ GB, ", said["hardware"])[1] == str(processes(said["start"]))
    published = re.fullmatch(
        r"[\d.]+, published for Latte \(arXiv 2401\.03048\); not measured with this code", said["expected FVD"]
    )
    assert bool(published) == (path.stem in ("dense_xl2", "dense_xl2_img")) == (said["expected FVD"] != "not measured")
    assert config.data.card == path.parent.name and spec.input_size == (16, 32, 32)
    train = config.train
    assert (train.optimizer, train.lr, train.weight_decay, train.ema_decay) == ("adamw", 1e-4, 0.0, 0.9999)
    assert (config.objective.kind, config.objective.label_dropout) == ("flow" if path in FLOWS else "diffusion", 0.1)
    assert card.clip.flip == (card.name != "sky_timelapse") and card.clip.stride == 3
    # Latte's own weights want its clips and its order of labels, and so does what starts from them; all else has the card's.
    source = CONFIGS / f"{Path(train.init_from or '').relative_to('runs')}.yaml" if path in FLOWS else path
    from_latte = (load(source).train.init_from or "").startswith("models/latte/")
    assert config.data.rule == ("latte_linspace" if from_latte and card.name in ("faceforensics", "ucf101") else None)
    assert config.data.label_order == ("sorted" if from_latte and card.name == "ucf101" else None)
    assert (config.data.images or 0) == (8 if path.stem.endswith("_img") else 0)
    assert spec.is_sparse == path.stem.startswith("sparse")


@pytest.mark.parametrize("path", IMAGES, ids=short)
def test_each_run_of_images_is_dits_with_the_rates_that_were_published(path):
    said, config = facts(path), load(path)
    card, spec = card_and_spec(path)
    assert re.match(r"(\d+) GPUs? of \d+ GB, ", said["hardware"])[1] == str(processes(said["start"]))
    assert said["expected FID"] == "not measured" or said["expected FID"].endswith("; not measured with this code")
    side = 64 if "512" in path.stem else 32
    assert (card.name, spec.input_size, spec.num_classes, spec.patch_size) == ("imagenet", (1, side, side), 1000, 2)
    train = config.train
    assert (train.optimizer, train.lr, train.weight_decay, train.ema_decay) == ("adamw", 1e-4, 0.0, 0.9999)
    assert (train.global_batch, train.gradient_clipping) == (256, 0.0) and config.objective.label_dropout == 0.1
    assert config.objective.kind == ("flow" if path.stem.endswith("_flow") else "diffusion")
    assert spec == replace(build_spec(config.model.preset), learn_sigma=config.objective.kind == "diffusion")
    grids = {"": ((6, 6), (10, 10)), "_r44": ((10, 10), (12, 12)), "_r90": ((6, 6), (10, 10)), "512": ((12, 12), (20, 20))}
    if spec.is_sparse:
        stages = schedule_from_config(config.schedule, spec.dense_grid(), config.model.preset).stages
        key = next((key for key in ("_r44", "_r90", "512") if key in path.stem), "")
        assert [(stage.grid.h, stage.grid.w) for stage in (stages[-1], stages[0])] in (list(grids[key]), list(grids[key])[::-1])


@pytest.mark.parametrize("path", TEXT, ids=short)
def test_each_run_of_text_is_pixarts_and_starts_from_a_dense_one(path):
    said, config = facts(path), load(path)
    _, spec = card_and_spec(path)
    assert re.match(r"(\d+) GPUs? of \d+ GB, ", said["hardware"])[1] == str(processes(said["start"]))
    assert "not measured" in (said.get("expected FID") or said["expected FVD"])
    train, is_flow = config.train, path.stem.endswith("_flow")
    assert (train.optimizer, train.lr, train.weight_decay, train.ema_decay) == ("adamw", 2e-5, 0.03, 0.9999)
    assert (train.gradient_clipping, config.objective.label_dropout) == (0.01, 0.1)
    assert config.objective.kind == ("flow" if is_flow else "diffusion")
    assert spec == replace(build_spec(config.model.preset), null_caption=True, learn_sigma=not is_flow)
    assert spec.is_sparse == path.stem.startswith("sparse") and (spec.text_tokens, spec.num_classes) == (120, 0)
    assert bool(train.init_from) == (path.stem != "dense_xl2")
    assert config.text.null_mask == ("prompt" if path.parent.name == "sam" else "own")
    assert bool(config.data.latents) == (path.parent.name == "sam" and spec.input_size[1] == 32)


def test_each_dataset_has_the_same_runs():
    stems = {name: {path.stem for path in LONG if path.parent.name == name} for name in DATASETS}
    assert set(stems["ucf101"]) >= {"dense_xl2", "dense_s2", "sparse_xl2", "sparse_s2", "sparse_xl2_finetune", "dense_xl2_img"}
    assert all(each == stems["ucf101"] for each in stems.values())


@pytest.mark.parametrize("path", [path for path in LONG if path.stem.endswith("_finetune")], ids=short)
def test_what_is_fine_tuned_has_a_dense_run_of_its_size(path):
    config = load(path)
    dense = load(path.with_name(path.name.replace("sparse", "dense").replace("_finetune", "")))
    assert config.model.preset == f"Sparse{dense.model.preset}"
    if config.train.init_from.startswith(f"{dense.output}/"):
        assert Path(config.train.init_from) == dense.folder


@pytest.mark.parametrize("path", [*FLOWS, *(CONFIGS / name for name in OTHER_FLOWS)], ids=short)
def test_what_becomes_a_flow_has_a_diffusion_run_of_its_model_and_data(path):
    flow = load(path)
    diffusion = load(CONFIGS / f"{Path(flow.train.init_from).relative_to(flow.output)}.yaml")
    assert Path(flow.train.init_from) == diffusion.folder
    assert (diffusion.objective.kind, flow.objective.kind) == ("diffusion", "flow")
    assert (flow.sample.sampler, flow.sample.steps) == ("euler", 5)
    for part in ("model", "schedule", "data", "autoencoder"):
        assert getattr(flow, part) == getattr(diffusion, part)


@pytest.mark.slow
def test_a_flow_starts_from_the_weights_of_a_diffusion(tmp_path):
    """The demo's two runs, of two steps each: what the first predicts is what the second begins with, without a variance."""
    shrunk = ["train.steps=2", "train.checkpoint_every=2", "autoencoder.fit_clips=4", "train.log_every=1"]
    runs = {}
    learning, kept = ["train.lr=0.01", "train.warmup=0"], ["train.lr=0.0", f"train.init_from={tmp_path}/demo/diffusion"]
    for name, more in (("diffusion", learning), ("flow", kept)):
        config = load_config(CONFIGS / f"demo/{name}.yaml", [f"output={tmp_path}", *shrunk, *more])
        save_config(config, tmp_path / f"{name}.yaml")
        launch.finish(launch.start(tmp_path / f"{name}.yaml", 1))
        runs[name] = VideoPipeline.from_pretrained(config.folder, device="cpu")
    before, after = runs["diffusion"].model, runs["flow"].model
    assert (before.spec.out_channels, after.spec.out_channels) == (32, 16)
    x, t = torch.randn(2, 16, *after.spec.input_size), torch.tensor([900, 100])
    with torch.no_grad():
        predicted = before(x, t)[:, :16]
        assert predicted.std() > 0.01 and relative_error(after(x, t), predicted) <= 1e-6
    assert torch.equal(runs["flow"].autoencoder.mean, runs["diffusion"].autoencoder.mean)
    clips = runs["flow"](num=1, steps=2, show_progress=False)
    assert clips.dtype == torch.uint8 and runs["flow"].default_sampler == "euler"


@pytest.mark.parametrize("path", DEEPSPEED, ids=lambda path: path.stem)
def test_each_deepspeed_file_steps_like_stage_0(path):
    """Losses and weights of three steps are those of plain ZeRO 0; the offloaded ones too, from CPU to CPU."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    assert not set(settings) & set(SAID_BY_RUN)
    assert path.stem.startswith(f"zero{settings['zero_optimization']['stage']}")
    losses, weights = three_steps(f"train.deepspeed={path}")
    expected_losses, expected_weights = three_steps("train.zero_stage=0")
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-4, atol=1e-5)
    assert losses[-1] < losses[0]


def test_activations_computed_again_step_like_those_that_are_kept():
    """Also out of weights that are sharded, and gathered again in the backward pass."""
    losses, weights = three_steps(f"train.deepspeed={CONFIGS / 'deepspeed' / 'zero3.json'}", checkpoint_layers="PMSRD")
    expected_losses, expected_weights = three_steps("train.zero_stage=0")
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-4, atol=1e-5)


@cache
def three_steps(override: str, checkpoint_layers: str = "") -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses, and float32 weights afterwards, of a tiny sparse model that learns one batch."""
    torch.manual_seed(0)
    spec = ModelSpec("1P 1(1M1S1R1D) 1D", 32, 2, (4, 8, 8), sparse_grid=(2, 2, 2), num_classes=0)
    model = DiffusionTransformer(spec, checkpoint_layers=checkpoint_layers)
    engine = Engine(model, load_config(None, [override]).train, 2, 1)
    x = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(engine.device)
    t, losses = torch.tensor([900, 100], device=engine.device), []
    for _ in range(3):
        loss = (engine(x, t)[:, :4] - x).square().mean()
        assert engine.step(loss, 1e-2)
        losses.append(loss.item())
    return losses, engine.gather(list(engine.fragments()))


@pytest.mark.slow
@pytest.mark.parametrize("path", QUICK, ids=short)
def test_quick_run_ends_with_the_loss_that_it_says(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    loss, tolerance, step = map(float, re.fullmatch(r"loss ([\d.]+) ± ([\d.]+) at step (\d+)", facts(path)["expect"]).groups())
    config = load_config(path, [f"output={tmp_path}"])
    save_config(config, tmp_path / "run.yaml")
    launch.finish(launch.start(tmp_path / "run.yaml", processes(facts(path)["start"])))
    rows = map(json.loads, (config.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert max(losses) == config.train.steps == step
    assert math.isclose(losses[step], loss, abs_tol=tolerance)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_a_config_lies_over_its_bases_and_is_saved_without_them(tmp_path):
    write(
        tmp_path,
        {
            "shared.yaml": "seed: 1\ntrain: {lr: 1.0e-3, steps: 1, warmup: 1}\n",
            "models/small.yaml": "base: ../shared.yaml\nmodel: {preset: DiT-S/8}\ntrain: {steps: 2}\n",
            "long.yaml": "base: shared.yaml\ntrain: {steps: 3, warmup: 3}\n",
            "run.yaml": "base: [long.yaml, models/small.yaml]\nname: mine\ntrain: {warmup: 4}\n",
        },
    )
    config = load_config(tmp_path / "run.yaml", ["seed=5"])
    assert (config.name, config.seed, config.model.preset) == ("mine", 5, "DiT-S/8")
    # shared.yaml, which both bases have, lies below both.
    assert (config.train.lr, config.train.steps, config.train.warmup) == (1e-3, 2, 4)
    save_config(config, tmp_path / "elsewhere.yaml")
    assert "base" not in (tmp_path / "elsewhere.yaml").read_text(encoding="utf-8").splitlines()
    assert load_config(tmp_path / "elsewhere.yaml") == config


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"run.yaml": "base: run.yaml\n"}, r"each other's base: .*run\.yaml → .*run\.yaml"),
        ({"run.yaml": "base: [a.yaml]\n", "a.yaml": "base: run.yaml\n"}, r"run\.yaml → .*a\.yaml → .*run\.yaml"),
        ({"run.yaml": "base: [a.yaml]\n"}, r"run\.yaml: its base .*a\.yaml does not exist"),
        ({"run.yaml": "base: a.yaml\n", "a.yaml": "train: {stepz: 1}\n"}, r"a\.yaml: unknown key 'train.stepz'"),
        ({"run.yaml": "base: 3\n"}, r"base = 3; accepted are"),
        ({"run.yaml": "base:\n"}, r"base = None; accepted are"),
        ({"run.yaml": "base: [a.yaml, 3]\n"}, r"base = \['a.yaml', 3\]; accepted are"),
        ({"run.yaml": "train: {base: a.yaml}\n"}, r"unknown key 'train.base'"),
    ],
)
def test_mistakes_in_bases_are_named(tmp_path, files, reason):
    write(tmp_path, files)
    with pytest.raises(ConfigError, match=reason):
        load_config(tmp_path / "run.yaml")
