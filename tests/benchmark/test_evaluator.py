"""The benchmark of the evaluator: the videos it makes are made once, and the table and the JSON say the same."""

import json

import pytest
import torch

from sparsevid.benchmark.evaluator import (
    FRAMES,
    SIZE,
    evaluator_as_json,
    evaluator_rows,
    make_videos,
    measure_evaluator,
    random_i3d,
)
from sparsevid.cli import run_tool
from sparsevid.videos.read import probe, read_frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two real and two generated videos."""
    folder = tmp_path_factory.mktemp("made") / "videos"
    assert make_videos(folder, 2) == 4
    return folder


@pytest.mark.slow
def test_videos_have_a_size_and_differ(folder):
    paths = sorted(folder.glob("*/*.mp4"))
    assert [str(path.relative_to(folder)) for path in paths] == [
        f"{side}/0000{i}.mp4" for side in ("fake", "real") for i in (0, 1)
    ]
    for path in paths:
        info = probe(path)
        assert (info.frames, info.height, info.width) == (FRAMES, SIZE, SIZE)
    assert len({read_frames(path, [0]).numpy().tobytes() for path in paths}) == 4


@pytest.mark.slow
def test_videos_that_are_there_are_taken_and_missing_ones_made_again(folder):
    states = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.glob("*/*.mp4")}
    assert make_videos(folder, 2) == make_videos(folder, 1) == 0
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.glob("*/*.mp4")} == states
    lost = folder / "fake" / "00001.mp4"
    content = lost.read_bytes()
    lost.unlink()
    assert make_videos(folder, 2) == 1
    assert lost.read_bytes() == content


def test_command_measures_and_table_and_json_say_the_same(folder, tmp_path, capsys):
    path = tmp_path / "evaluator.json"
    options = ["--count", "2", "--detector", "transnetv2", "--batch", "2", "--device", "cpu", "--json", str(path)]
    assert run_tool("benchmark", ["evaluator", str(folder), *options]) == 0
    printed = capsys.readouterr().out
    values = json.loads(path.read_text(encoding="utf-8"))
    assert f"- command: {values['header']['command']}" in printed and f"evaluator {folder} --count 2" in printed
    found = values["result"]
    for row in (
        "| clips | 2 + 2 |",
        f"| {found['metric']} | {found['score']:.4f} |",
        f"| detector, s | {found['detector_seconds']:.1f} |",
        f"| distance, s | {found['distance_seconds']:.2f} |",
        f"| clips a second | {found['clips_per_second']:.1f} |",
        f"| peak memory, GiB | {found['peak_bytes'] / 2**30:.2f} |",
    ):
        assert row in printed
    assert 0 < found["detector_seconds"] <= found["features_seconds"] and found["reading_seconds"] > 0
    seconds = found["features_seconds"] + found["distance_seconds"]
    assert found["clips_per_second"] == pytest.approx(4 / seconds)
    assert found["device_peak_bytes"] is None and found["metric"] == "FD-TransNetV2"


def test_a_score_is_the_same_again(folder):
    options = {"count": 2, "detector": "transnetv2", "batch": 2}
    first, again = (measure_evaluator(folder, **options) for _ in range(2))
    assert first.score == again.score
    rows, values = evaluator_rows(first), evaluator_as_json({"command": "here"}, first)
    assert rows[1] == [first.metric, f"{values['result']['score']:.4f}"]


def test_i3d_has_random_weights_the_same_at_every_call(tmp_path):
    seed = torch.initial_seed()
    first, again = (random_i3d(tmp_path / name, "cpu") for name in ("a", "b"))
    assert first.fingerprint == again.fingerprint
    assert torch.initial_seed() == seed


@pytest.mark.slow
def test_i3d_is_measured(folder):
    found = measure_evaluator(folder, count=2)
    assert found.metric.startswith("FVD") and found.clips == 2 and found.score > 0


@pytest.mark.parametrize("options", [{"count": 1}, {"batch": 0}])
def test_numbers_out_of_range_are_refused_before_videos_are_made(options, tmp_path):
    with pytest.raises(ValueError, match="need count from 2 .* and batch from 1"):
        measure_evaluator(tmp_path / "videos", **options)
    with pytest.raises(ValueError, match="unknown detector 'i2d'"):
        measure_evaluator(tmp_path / "videos", detector="i2d")
    assert not (tmp_path / "videos").exists()
