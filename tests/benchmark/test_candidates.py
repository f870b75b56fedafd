"""The model of a run, as costs and benchmarks take it: what is asked of a configuration, and what it does not say."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from generation.sampled import SPEC, write_checkpoint

from sparsevid.autoencoder.kl import KLAutoencoder
from sparsevid.benchmark.candidates import Candidate, open_run
from sparsevid.benchmark.model import plan_cases
from sparsevid.benchmark.sampling_cases import plan_sampling
from sparsevid.benchmark.training import measure_training
from sparsevid.cli import run_tool
from sparsevid.data.open import filled_from_card
from sparsevid.data.tree.cards import load_card
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import ConfigError
from sparsevid.sparsity.cost import parameter_count, sampling_macs
from sparsevid.sparsity.schedule import paper_schedule

CARD = "name: few\nlabel_rule: folder\nclip: {frames: 4, size: [32, 48]}\n"
RUN = """
name: mine
model: {layout: 1P 1(1M1S1R1D) 1D, hidden_size: 32, num_heads: 2, patch_size: 1}
schedule: {frames: 2, r_min: 0.3, r_max: 0.8}
autoencoder: {kind: linear, channels: 6, patch: 8}
objective: {kind: flow}
sample: {steps: 7}
"""


@pytest.fixture
def run(tmp_path):
    """A run's file, of a card of three classes whose data are not here."""
    (tmp_path / "few.yaml").write_text(f"{CARD}classes: [a, b, c]\n", encoding="utf-8")
    (tmp_path / "run.yaml").write_text(f"{RUN}data: {{card: {tmp_path / 'few.yaml'}}}\n", encoding="utf-8")
    return tmp_path / "run.yaml"


def test_a_run_says_what_its_model_is(run):
    """Size from card and autoencoder, classes from the card, the head from the objective, the grid from the schedule."""
    found = open_run(run)
    assert (found.name, found.sampler) == ("mine", "euler")
    spec = found.spec
    assert (spec.input_size, spec.in_channels, spec.num_classes, spec.learn_sigma) == ((4, 4, 6), 6, 3, False)
    assert (
        found.schedule == paper_schedule(spec.dense_grid(), 2, 0.3, 0.8) and spec.sparse_grid == found.schedule.stages[0].grid
    )
    changed = open_run(run, ["data.frames=2", "data.size=[16,16]", "autoencoder.kind=pixels", "model.layout=3D"])
    assert (changed.spec.input_size, changed.spec.in_channels, changed.schedule) == ((2, 16, 16), 3, None)
    assert open_run(run, ["objective.kind=diffusion"]).spec.learn_sigma


def test_latents_of_a_kl_autoencoder_are_those_of_its_configuration(run, tmp_path, caplog):
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=5, **blocks)
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()  # weights are not asked for
    kl = KLAutoencoder(vae, "here")
    assert KLAutoencoder.latents_of(str(tmp_path / "vae")) == (1, kl.factor, kl.channels, False) == (1, 2, 5, False)
    spec = open_run(run, ["autoencoder.kind=kl", f"autoencoder.source={tmp_path / 'vae'}"]).spec
    assert (spec.input_size, spec.in_channels) == ((4, 16, 24), 5) and not caplog.text
    open_run(run, ["autoencoder.kind=kl", f"autoencoder.source={KLAutoencoder.example}"])
    assert not caplog.text  # nothing has to be guessed of it
    for source in ("nobody/nothing", str(tmp_path / "absent"), "null"):
        spec = open_run(run, ["autoencoder.kind=kl", f"autoencoder.source={source}"]).spec
        assert (spec.input_size, spec.in_channels) == ((4, 4, 6), 4)
        assert f"autoencoder.source = {source.replace('null', 'None')} is not here: its latents are taken for" in caplog.text


def test_a_checkpoint_and_its_model_are_runs_too(tmp_path):
    """Also a model that is another than its run's, and one without a run."""
    write_checkpoint(tmp_path / "run")
    model = open_run(tmp_path / "run" / "ema")
    assert model.spec == SPEC and model.schedule is not None
    assert run_tool("convert", [str(tmp_path / "run"), str(tmp_path / "exported")]) == 0
    exported = open_run(tmp_path / "exported", ["schedule.kind=constant", "schedule.grid=[2,2,3]"])
    assert exported.spec == SPEC and [tuple(stage.grid) for stage in exported.schedule.stages] == [(2, 2, 3)]
    with pytest.raises(ConfigError, match=r"holds a model, over which model.layout=6D cannot be said; accepted are schedule.…"):
        open_run(tmp_path / "exported", ["model.layout=6D"])
    DiffusionTransformer(replace(SPEC, learn_sigma=False)).save_pretrained(tmp_path / "flow")
    assert open_run(tmp_path / "flow").sampler == "euler"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["data.size=[36,48]"], r"data.size = \[36, 48\]: .* no multiples of 8, the autoencoder's factor"),
        (["model.layout=null"], "missing are model.layout"),
        (["modell.layout=6D"], "did you mean 'model'"),
        (["data.card=unclear.yaml"], "card 'few' does not say how many classes .*counts: {classes: N}"),
    ],
)
def test_what_a_run_does_not_say_is_named(run, overrides, reason, monkeypatch):
    (run.parent / "unclear.yaml").write_text(CARD, encoding="utf-8")
    monkeypatch.chdir(run.parent)
    with pytest.raises(ValueError, match=reason):
        open_run(run, overrides)
    (run.parent / "unclear.yaml").write_text(f"{CARD}counts: {{classes: 9}}\n", encoding="utf-8")
    assert open_run(run, ["data.card=unclear.yaml"]).spec.num_classes == 9


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="is no run: it has no config.yaml"):
        open_run(tmp_path)
    with pytest.raises(ConfigError, match=r"no config file .*nothing.yaml"):
        open_run(tmp_path / "nothing.yaml")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="has no spec"):
        open_run(tmp_path)


def test_plans_put_a_run_beside_its_dense_model_and_presets(run):
    found = open_run(run)
    cases = plan_cases(["SparseLatte-S/8", found])
    assert [case.preset for case in cases] == ["Latte-S/8", "SparseLatte-S/8", "mine, dense", "mine"]
    assert cases[3].spec == found.spec and cases[2].spec == found.spec.dense()
    assert [case.preset for case in plan_cases([found.dense])] == ["mine, dense"]
    dense, sparse = plan_sampling([found], samplers=["euler"], steps=[3])
    assert (dense.preset, sparse.preset) == ("mine, dense", "mine")
    assert sparse.network.spec == found.spec and sparse.network.schedule == found.schedule


def test_training_steps_of_a_run_are_of_its_stages_as_often_as_it_draws_them(run):
    found = open_run(run)
    measured = measure_training([found.dense, found], frames=1, size=(8, 8), batch=1, device=torch.device("cpu"), repeats=1)
    assert [(each.preset, each.grid) for each in measured] == [
        ("mine, dense", None), *(("mine", stage.grid) for stage in found.schedule.stages)
    ]  # fmt: skip
    shares = [each.share for each in measured[1:]]
    assert shares == [found.times.mass(stage) for stage in found.schedule.stages] and sum(shares) == pytest.approx(1)


def test_cost_of_a_run(run, capsys):
    assert run_tool("cost", [str(run), "sample.sampler=heun", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    found: Candidate = open_run(run)
    times = [u for stage in printed["stages"] for u in [stage["high"]] * stage["steps"]]
    assert printed["run"] == "mine" and len(times) == 13  # calls of heun in the run's 7 steps
    assert printed["parameters"] == parameter_count(found.spec)
    assert printed["dense_macs"] == sampling_macs(found.spec, found.schedule, times).dense_macs
    assert run_tool("cost", [str(run), "--steps", "3"]) == 0
    assert "mine: 1P 1(1M1S1R1D) 1D" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "arguments", "reason"),
    [
        ("cost", ["--layout", "6D"], "--layout goes with presets; of a run it is said behind RUN: model.layout=LAYOUT"),
        ("cost", ["--r-min", "0.5"], "schedule.r_min=R"),
        ("cost", ["--preset", "Latte-S/2"], "model.preset=NAME"),
        ("benchmark", ["model", "--input-size", "4", "4", "4"], "--input-size goes with presets; .* data.frames=T"),
        ("benchmark", ["training", "--frames", "4"], "data.frames=T"),
        ("benchmark", ["data", "demo"], "CARD goes with presets"),
        ("benchmark", ["data", "--preset", "Latte-S/2"], "model.preset=NAME"),
    ],
)
def test_what_a_run_says_itself_is_not_said_twice(run, command, arguments, reason, capsys):
    source = [str(run)] if command == "cost" else []
    later = [] if command == "cost" else ["--config", str(run)]
    assert run_tool(command, [*source, *arguments, *later]) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in reason.split(" .* "))


def test_a_preset_has_no_configuration_of_a_run(run):
    assert open_run(run).run_config.name == "mine"
    with pytest.raises(ConfigError, match="Latte-S/2 is a preset, and no run"):
        _ = Candidate("Latte-S/2", SPEC, None).run_config


def test_clips_are_settled_by_run_and_card_together(run):
    config = open_run(run, ["data.frames=4"]).run_config
    with pytest.raises(ConfigError, match=r"data\.stride, data\.rule.*: said neither by the run nor by a card"):
        config.data.clip()
    clip = filled_from_card(config.data, load_card(config.data.card)).clip()
    assert (clip.frames, clip.size, clip.target_fps) == (4, (32, 48), None)
