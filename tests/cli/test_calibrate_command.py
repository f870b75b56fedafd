"""`sparsevid calibrate`: files beside the weights, a table, and errors before anything is computed."""

import json
import sys

import pytest
from generation.sampled import write_checkpoint

from sparsevid.cli import run_tool
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.savings import parse_saving
from sparsevid.savings.fits import fits_folder, read_fit

OPTIONS = ["--samples", "3", "--steps", "6", "--device", "cpu"]


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint")


def test_fits_lie_beside_the_weights_and_are_found_there(checkpoint, capsys):
    assert run_tool("calibrate", [str(checkpoint), *OPTIONS, "--guidance", "2", "--plot", "off"]) == 0
    printed = capsys.readouterr().out
    for word in ("3 samples, 6 calls of ddim, guidance 2", "teacache", "magcache", "R²", "points", "left out at 0.05"):
        assert word in printed
    folder = checkpoint / "ema" / "savings"
    assert sorted(path.name for path in folder.iterdir()) == ["magcache.json", "teacache.json"]
    pipeline = VideoPipeline.from_pretrained(checkpoint, device="cpu")
    for name in ("teacache", "magcache"):
        policy = parse_saving(name).with_fits(fits_folder(pipeline.weights_file))
        policy.check(pipeline.model.spec)
        said = policy.fitted.sampling
        assert (said["samples"], said["steps"], said["guidance"], said["schedule"]) == (3, 6, 2.0, "paper") and said["stages"]
        assert policy.fitted.quality["points"] == len(policy.fitted.points) == 15
    assert run_tool("calibrate", [str(checkpoint / "ema"), *OPTIONS, "--autoencoder", "pixels"]) == 2  # of other channels


def test_samples_go_by_the_fit_that_is_found_and_others_are_another_job(checkpoint, tmp_path, capsys):
    line = [
        str(checkpoint),
        "--num",
        "2",
        "--steps",
        "6",
        "--format",
        "ffv1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    saving = ["--saving", "teacache:threshold=1.5"]
    assert run_tool("sample", [*line, *saving]) == 2
    assert "nothing is fitted to this model yet; `sparsevid calibrate MODEL --saving teacache`" in capsys.readouterr().err
    calibrate = [str(checkpoint), *OPTIONS, "--saving", "teacache", "--plot", "off"]
    assert run_tool("calibrate", calibrate) == 0
    assert run_tool("sample", [*line, *saving]) == 0
    recorded = json.loads((tmp_path / "out" / "samples.json").read_text(encoding="utf-8"))["settings"]["savings"]
    fit = read_fit(checkpoint / "ema" / "savings" / "teacache.json", "teacache")
    assert recorded == [f"teacache:threshold=1.5,fit=sha256-{fit.digest}"]
    assert run_tool("calibrate", [*calibrate, "--seed", "1", "--overwrite"]) == 0
    capsys.readouterr()
    assert run_tool("sample", [*line, *saving]) == 2
    assert "savings" in capsys.readouterr().err


def test_files_that_are_there_stay_unless_they_are_to_be_replaced(checkpoint, tmp_path, capsys):
    line = [str(checkpoint), *OPTIONS, "--saving", "magcache", "--plot", "off", "--out", str(tmp_path / "fits")]
    assert run_tool("calibrate", line) == 0
    file = tmp_path / "fits" / "magcache.json"
    first = file.read_bytes()
    assert run_tool("calibrate", [*line, "--seed", "1"]) == 2
    assert "magcache.json already; --overwrite" in capsys.readouterr().err and file.read_bytes() == first
    assert run_tool("calibrate", [*line, "--seed", "1", "--overwrite"]) == 0
    assert json.loads(file.read_bytes())["sampling"]["seed"] == 1 and not (checkpoint / "ema" / "savings").exists()


def test_pictures_are_drawn_beside_the_fits(checkpoint, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra `demo`)")
    assert run_tool("calibrate", [str(checkpoint), *OPTIONS, "--out", str(tmp_path)]) == 0
    for name in ("teacache", "magcache"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_done_is_said_first(checkpoint, tmp_path, capsys, monkeypatch):
    def said(*options: str) -> str:
        assert run_tool("calibrate", [str(checkpoint), *OPTIONS, *options]) == 2
        return capsys.readouterr().err

    assert "--samples is at least 1" in said("--samples", "0")
    assert "different points" in said("--samples", "1", "--steps", "3", "--saving", "teacache", "--plot", "off")
    with pytest.raises(SystemExit):
        run_tool("calibrate", [str(checkpoint), "--saving", "static"])
    assert "invalid choice: 'static'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'sparsevid[demo]'" in said("--out", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
