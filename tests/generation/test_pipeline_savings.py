"""Savings where users meet them: a pipeline, its config, the command, the record of a job; and what was said before."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generation.sampled import SPEC, write_checkpoint

from sparsevid.cli import run_tool
from sparsevid.diffusion.samplers import call_once
from sparsevid.generation import GenerationError
from sparsevid.generation.job import generate
from sparsevid.generation.networks import Networks
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.models.graphs import Captured, GraphedModel
from sparsevid.runs.config import ConfigError, load_config
from sparsevid.savings import parse_saving
from sparsevid.savings.base import SavingError
from sparsevid.savings.options import SAVINGS
from sparsevid.savings.tally import Tally

BOTH = ("guidance:every=2,sparse=on", "static:every=2")
GUIDED = {"guidance": 3.0, "steps": 6}
TEXTS = {"guidance": BOTH[0]}  # where the defaults leave nothing out
INSIDE = "what acts inside of layers takes those that are not compiled"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def pipeline(checkpoint) -> VideoPipeline:
    return VideoPipeline.from_pretrained(checkpoint)


@pytest.fixture
def configured(checkpoint, tmp_path):
    """A function that gives the checkpoint with another line in place of the savings in its config."""

    def write(line: str, source: Path = checkpoint) -> Path:
        shutil.copytree(source, tmp_path / "other")
        text = (source / "config.yaml").read_text(encoding="utf-8")
        assert "  savings: []\n" in text
        (tmp_path / "other" / "config.yaml").write_text(text.replace("  savings: []\n", line), encoding="utf-8")
        return tmp_path / "other"

    return write


def latents_of(pipeline: VideoPipeline, **options) -> torch.Tensor:
    return pipeline.denoise([0, 1], pipeline.sampling(**GUIDED | options))


@pytest.mark.parametrize("name", SAVINGS)
def test_each_saving_samples_or_says_what_it_lacks(pipeline, name):
    text, tally = TEXTS.get(name, name), Tally()
    try:
        settings = pipeline.sampling(savings=text, **GUIDED)
    except SavingError as error:
        assert "sparsevid calibrate" in str(error)
        return
    assert settings.savings == (str(parse_saving(text)),)
    latents = pipeline.denoise([0, 1], settings, tally=tally)
    assert latents.isfinite().all() and tally.macs > 0 and tally.share <= 1.0
    again = pipeline.denoise([0, 1], pipeline.sampling(**GUIDED), savings=pipeline.policies(settings))
    assert torch.equal(again, latents)


def test_what_a_call_says_wins_over_the_pipeline_and_the_pipeline_over_the_config(checkpoint, pipeline, configured):
    plain, cached = latents_of(pipeline), latents_of(pipeline, savings="static:every=2")
    assert not torch.equal(cached, plain)
    own = VideoPipeline.from_pretrained(checkpoint, savings=["static:every=2"])
    by_config = VideoPipeline.from_pretrained(configured("  savings: [static:every=2]\n"))
    for made in (own, by_config):
        assert made.sampling().savings == ("static:every=2",)
        assert torch.equal(latents_of(made), cached) and torch.equal(latents_of(made, savings=[]), plain)
    assert VideoPipeline.from_pretrained(by_config.weights_file.parents[1], savings="steps").sampling().savings == (
        "steps:every=2",
    )


def test_settings_name_what_acts_in_one_order(pipeline):
    options = {"guidance": 3.0}
    assert pipeline.sampling(savings=["static", "guidance:every=2"], **options).savings == BOTH
    assert pipeline.sampling(savings=["guidance:every=2", "static:every=2"], **options).savings == BOTH
    assert pipeline.sampling(savings=["static:every=1", "guidance"], **options).savings == ()
    assert pipeline.sampling(savings=["guidance:every=2", "static"]).savings == BOTH[1:]  # nothing is guided


@pytest.mark.parametrize(
    ("savings", "reason"),
    [
        (["statik"], "no saving 'statik'; did you mean 'static'"),
        (["static:evry=2"], "no option 'evry'; did you mean 'every'"),
        (["static", "steps"], "savings static and steps do not go together"),
        (["guidance:grid=3x1x1"], "t = 3 does not divide the 4 frames"),
    ],
)
def test_savings_that_cannot_be_are_named_before_anything_is_computed(pipeline, savings, reason):
    with pytest.raises(ValueError, match=reason):
        pipeline.sampling(savings=savings, guidance=2.0)


@pytest.mark.parametrize("savings", [3, [3], [None], parse_saving("static"), [parse_saving("static")]], ids=str)
def test_what_is_no_text_is_refused_as_a_saving(checkpoint, pipeline, savings):
    with pytest.raises(SavingError, match="a saving is given as text, such as static:every=2, got"):
        pipeline.sampling(savings=savings)
    with pytest.raises(SavingError, match="a saving is given as text"):
        VideoPipeline.from_pretrained(checkpoint, savings=savings)


@pytest.mark.parametrize(
    "savings",
    ["guidance:grid=2x4x6", "merging:ratio=0.01", "foresight:warmup=1", "faster:start=1", "first_block:threshold=1e-9"],
)
def test_savings_without_effect_are_named_once(checkpoint, savings, caplog):
    own = VideoPipeline.from_pretrained(checkpoint)
    for _ in range(2):
        found = latents_of(own, savings=["steps:every=2", savings] if "guid" in savings or "merg" in savings else savings)
        own.denoise([0, 1], own.sampling(**GUIDED, savings=["static", "guidance:every=2"]))
    assert found.isfinite().all()
    told = [record.message for record in caplog.records if "left nothing out" in record.message]
    assert told == [f"saving {parse_saving(savings)}: it left nothing out of a batch, in none of its calls"]


@pytest.mark.parametrize(
    ("savings", "options", "reason"),
    [
        ("guidance", GUIDED, "saving guidance:every=1,sparse=on: it leaves nothing out with these options"),
        ("teacache:threshold=0", {}, "saving teacache:threshold=0.0: it leaves nothing out with these options"),
        (BOTH, {}, f"saving {BOTH[0]}: it leaves nothing out without guidance"),
    ],
    ids=str,
)
def test_savings_that_are_left_out_of_the_settings_are_named(checkpoint, savings, options, reason, caplog):
    for own, given in (
        (VideoPipeline.from_pretrained(checkpoint), {"savings": savings}),
        (VideoPipeline.from_pretrained(checkpoint, savings=savings), {}),
    ):
        caplog.clear()
        for _ in range(2):
            own.sampling(**options, **given)
        assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [reason]


def test_a_saving_of_guidance_is_named_where_there_is_none(tmp_path):
    unconditional = VideoPipeline.from_pretrained(write_checkpoint(tmp_path / "none", replace(SPEC, num_classes=0)))
    with pytest.raises(ValueError, match="unconditional: leave out all its options and the saving guidance:every=2"):
        unconditional.sampling(savings=["guidance:every=2"])


def test_a_config_that_asks_a_dense_model_for_sparse_layers_says_so(configured, tmp_path):
    dense = write_checkpoint(tmp_path / "dense", SPEC.dense())
    made = VideoPipeline.from_pretrained(configured("  savings: [steps]\n", dense))
    with pytest.raises(SavingError, match=r"has no sparse layers .* \(by sample.savings of the run's config; --saving none"):
        made.sampling()
    assert made.sampling(savings=[]).savings == ()
    with pytest.raises(SavingError, match="has no sparse layers whose output could be reused$"):
        made.sampling(savings="steps")


def test_a_config_is_checked_when_it_is_read(tmp_path):
    assert load_config(None, ["sample.savings=[steps:every=2, guidance:every=3]"]).sample.savings == [
        "steps:every=2",
        "guidance:every=3",
    ]
    for value, reason in (
        ("[stepz]", "sample.savings: no saving 'stepz'; did you mean 'steps'"),
        ("['steps:each=2']", "sample.savings: saving steps: no option 'each'"),
        ("[steps, static]", "sample.savings: savings steps and static do not go together"),
    ):
        with pytest.raises(ConfigError, match=reason):
            load_config(None, [f"sample.savings={value}"])


@pytest.mark.parametrize(("every", "expected"), [(1, ()), (3, ("steps:every=3",))])
def test_configs_of_before_say_what_they_said(configured, every, expected, tmp_path):
    made = VideoPipeline.from_pretrained(configured(f"  reuse_every: {every}\n"))
    assert made.sampling().savings == expected
    above = tmp_path / "run.yaml"
    above.write_text(f"base: {tmp_path / 'other' / 'config.yaml'}\nsample: {{steps: 7}}\n", encoding="utf-8")
    assert load_config(above).sample.savings == list(expected)
    for text in ("sample: {reuse_every: 0}", "sample: {reuse_every: 2, savings: [static]}"):
        above.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match="unknown key 'sample.reuse_every'"):
            load_config(above)


@pytest.mark.parametrize("model", ["layout: 4D", "preset: Latte-XL/2", "layout: 1P 1(1M1S1R1D) 1D", "preset: SparseLatte-XL/2"])
def test_reuse_meant_nothing_to_dense_models(tmp_path, model):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {{{model}}}\nsample: {{reuse_every: 2}}\n", encoding="utf-8")
    assert load_config(file).sample.savings == (["steps:every=2"] if "M" in model or "Sparse" in model else [])


def test_a_job_of_other_savings_is_another_job(pipeline, tmp_path):
    """Also where its record was written when step reuse was the only one."""

    def job(num: int, savings: list[str]) -> int:
        settings = pipeline.sampling(steps=2, batch=2, savings=savings)
        return generate(pipeline, settings, num, tmp_path / "out", ("ffv1",), show_progress=False).written

    def recorded() -> list[str]:
        return json.loads(record.read_text(encoding="utf-8"))["settings"]["savings"]

    record = tmp_path / "out" / "samples.json"
    assert job(1, ["steps:every=2"]) == 1 and recorded() == ["steps:every=2"]
    assert job(1, ["steps"]) == 0
    for other in ([], ["steps:every=3"], ["static"]):
        with pytest.raises(GenerationError, match=r"savings is \['steps:every=2'\] there and \["):
            job(1, other)
    for every, same in ((2, ["steps:every=2"]), (1, [])):
        values = json.loads(record.read_text(encoding="utf-8"))
        del values["settings"]["savings"]
        record.write_text(json.dumps(values | {"settings": values["settings"] | {"reuse_every": every}}), encoding="utf-8")
        with pytest.raises(GenerationError, match=r"savings is \["):
            job(1, ["static"])
        assert job(1, same) == 0 and recorded() == same


def said(capsys: pytest.CaptureFixture) -> str:
    """What a command printed, in one line."""
    printed = capsys.readouterr()
    return (printed.out + printed.err).replace("\n", " ")


def test_the_command_takes_savings_and_lists_them(checkpoint, tmp_path, capsys, caplog):
    job = [str(checkpoint), "--num", "1", "--steps", "3", "--guidance", "3", "--format", "ffv1", "--device", "cpu"]
    job += ["--out", str(tmp_path / "out"), "--schedule", "constant"]
    assert run_tool("sample", [*job, "--saving", "static:every=2", "--saving", "guidance:every=2"]) == 0
    settings = json.loads((tmp_path / "out" / "samples.json").read_text(encoding="utf-8"))["settings"]
    assert settings["savings"] == list(BOTH) and "reuse_every" not in settings
    # Of three calls of two halves: at two of one, and at the first of the other, which the third call counts as its second.
    assert f"{', '.join(BOTH)}: 50% of the layers computed" in caplog.messages
    for options, reason in (
        (["--saving", "none"], "savings is ['guidance:every=2,sparse=on', 'static:every=2'] there and [] here"),
        (["--saving", "firstblock"], "no saving 'firstblock'; did you mean 'first_block'"),
    ):
        assert run_tool("sample", [*job, *options]) == 2
        printed = said(capsys)
        assert reason in printed and "Traceback" not in printed
    for options, reason in ((["--reuse-every", "4"], "--saving steps:every=4"), (["--help"], "static:every=2\n")):
        with pytest.raises(SystemExit):
            run_tool("sample", [*job, *options])
        printed = capsys.readouterr()
        assert reason in printed.out + printed.err
    assert all(f"\n  {name}" in printed.out for name in SAVINGS)


def test_the_command_names_savings_that_leave_nothing_out(checkpoint, tmp_path, caplog):
    job = [str(checkpoint), "--num", "1", "--batch", "1", "--steps", "2", "--format", "ffv1", "--device", "cpu"]
    given = ["--saving", "static:every=2", "--saving", "guidance"]
    for number, (options, why) in enumerate((([], ", without guidance"), (["--guidance", "3"], ""))):
        assert run_tool("sample", [*job, *given, *options, "--out", str(tmp_path / str(number))]) == 0
        assert f"guidance: nothing is left out with these options{why}" in caplog.messages
    assert not any("static" in each and "nothing" in each for each in caplog.messages)


def test_no_graph_is_recorded_of_calls_that_leave_something_out(pipeline):
    """What records stands in for a GPU: `tests/models/test_graphs.py`."""
    networks, settings = Networks(pipeline.model, compile=False), pipeline.sampling(steps=6, schedule="constant")
    recorded = []

    def capture(function, device, pool):
        recorded.append(function())
        return Captured(recorded[-1], lambda: None, pool or "pool")

    networks.graphs = GraphedModel(pipeline.model, capture=capture)
    for texts, count in (["steps:every=2"], 0), (["static:every=1"], 1), ([], 1):
        savings = [parse_saving(text) for text in texts]
        model = networks.denoiser(settings, pipeline.token_schedule(settings), savings, graphed=True)
        x, labels = torch.zeros(2, *(SPEC.in_channels, *SPEC.input_size)), torch.tensor([0, 1])
        with torch.inference_mode():
            for u in settings.times()[:4]:
                call_once(settings.sampler, model, x, u, labels=labels)
        assert len(recorded) == count, texts


def test_what_acts_inside_of_layers_takes_those_that_are_not_compiled(checkpoint, pipeline, caplog):
    compiled = VideoPipeline.from_pretrained(checkpoint, compile=True)
    with caplog.at_level("INFO", logger="sparsevid"):
        for _ in range(2):
            assert torch.equal(latents_of(compiled, savings="static"), latents_of(pipeline, savings="static"))
    assert caplog.text.count(f"saving static: {INSIDE}") == 1


def test_savings_in_bfloat16_are_near_those_in_float32(checkpoint, pipeline):
    half = VideoPipeline.from_pretrained(checkpoint, dtype="bfloat16")
    for savings in (["steps:every=2"], list(BOTH)):
        found, expected = (latents_of(made, savings=savings) for made in (half, pipeline))
        assert found.dtype == torch.float32
        assert ((found - expected).norm() / expected.norm()).item() < 0.1
