"""Pictures of scores, and the choice of the clips that are shown."""

import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from sparsevid.evaluation.metrics.uncertainty import Extrapolation
from sparsevid.evaluation.plot import nearest_and_farthest, plot_curves, plot_extrapolation

LINE = Extrapolation(value=10.0, slope=5000.0, sizes=(1000, 500, 250), means=(15.1, 19.8, 30.2), error=1.5, reliable=True)
CURVES = {"blur": [1.0, 4.0, 9.0], "noise": [2.0, 3.0, 5.0]}


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".PNG"])
def test_pictures_are_written_whole(tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra `demo`)")
    plot_extrapolation(tmp_path / f"line{suffix}", LINE, title="ours", metric="FVD")
    plot_curves(tmp_path / f"curves{suffix}", [0.2, 0.6, 1.0], CURVES, title="distortions", metric="FVD")
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"curves{suffix}", f"line{suffix}"]
    start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix.lower()]
    assert all(file.read_bytes().startswith(start) for file in tmp_path.iterdir())


def test_a_picture_shows_its_numbers(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra `demo`)")
    pictures = []
    for number, line in enumerate((LINE, replace(LINE, value=14.0), replace(LINE, reliable=False))):
        plot_extrapolation(tmp_path / f"{number}.png", line, title="ours", metric="FVD")
        with Image.open(tmp_path / f"{number}.png") as image:
            assert min(image.size) > 300
            pictures.append(image.convert("RGB").tobytes())
    assert len(set(pictures)) == 3


def test_a_failure_leaves_the_picture_that_was_there(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra `demo`)")
    path = tmp_path / "curves.png"
    path.write_bytes(b"before")
    with pytest.raises(TypeError):
        plot_curves(path, [0.0, 1.0], {"blur": [object(), object()]}, title="", metric="")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'sparsevid\[demo\]'"):
        plot_extrapolation(tmp_path / "line.png", LINE, title="", metric="")


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"one of \.png, \.pdf, \.svg, got '.*line\.bmp'"):
        plot_extrapolation(tmp_path / "line.bmp", LINE, title="", metric="")
    with pytest.raises(ValueError, match="curve 'blur' has 3 scores for 2 strengths"):
        plot_curves(tmp_path / "curves.png", [0.0, 1.0], CURVES, title="", metric="")


def test_nearest_and_farthest_fakes():
    real = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    fake = torch.tensor([[3.0, 4.0], [10.0, 1.0], [0.0, -30.0], [10.0, 0.0], [4.0, 0.0]])
    assert nearest_and_farthest(real, fake, 2) == ([3, 1], [2, 0])
    nearest, farthest = nearest_and_farthest(real, fake, 99)
    assert nearest == farthest[::-1] == [3, 1, 4, 0, 2]


def test_equal_distances_keep_their_order():
    fake = torch.ones(4, 3)
    assert nearest_and_farthest(torch.zeros(2, 3), fake, 3) == ([0, 1, 2], [0, 1, 2])


def test_unusable_features_are_refused():
    with pytest.raises(ValueError, match="fake features: 1 of 2 clips"):
        nearest_and_farthest(torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]), 1)
    with pytest.raises(ValueError, match="k must be 1 or more, got 0"):
        nearest_and_farthest(torch.zeros(2, 2), torch.zeros(2, 2), 0)
