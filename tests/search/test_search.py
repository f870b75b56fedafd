"""A search from a dense run to one that is trained: its files, again, killed, by two processes, and what it refuses."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
import yaml
from generation.sampled import command, start
from study.tiny_study import base_run, write_data

from sparsevid.cli import run_tool
from sparsevid.runs.config import load_config
from sparsevid.search.refine import Candidate, rank_correlations, rungs
from sparsevid.sparsity.schedule import constant_schedule
from sparsevid.training.trainer import Trainer

SCRIPT = Path(__file__).parents[2] / "tools" / "search.py"
OPTIONS = ("--budget", "0.6", "--clips", "4", "--rounds", "2", "--times", "2", "--steps", "4", "--tried", "2", "--batch", "4")


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    """The folder of a dense run."""
    folder = tmp_path_factory.mktemp("dense")
    write_data(folder)
    (folder / "run.yaml").write_text(yaml.safe_dump(base_run(folder) | {"output": str(folder / "runs")}), encoding="utf-8")
    Trainer(load_config(folder / "run.yaml", ["name=dense", "sample.steps=6"])).train()
    return folder / "runs" / "dense"


def search(dense: Path, out: Path, *more: str, options=OPTIONS) -> int:
    return run_tool("search", [str(dense), *more, "--out", str(out), *options])


@pytest.fixture(scope="module")
def searched(dense, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("searched")
    assert search(dense, out) == 0
    return out


def numbers(out: Path) -> dict:
    """All that was found."""
    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return {key: found[key] for key in ("settings", "dense_loss", "choices", "bound", "frontier", "tried", "grids", "edges")}


def test_a_search_ends_with_a_run_of_what_it_found(dense, searched):
    found = numbers(searched)
    best, *others = found["tried"]
    assert re.fullmatch(r"searched-\d", best["name"]) and 1 <= len(others) <= 3  # the paper has none of 6 layers
    assert all(each["ratio"] <= 0.6 and "0" in each["losses"] for each in found["tried"])
    assert set(best["losses"]) == {"0", "4"} and found["bound"] <= min(each["predicted"][0] for each in found["tried"]) + 1e-12
    ratios = [each["ratio"] for each in found["frontier"]]
    assert ratios == sorted(ratios) and ratios[-1] <= 1
    losses = [each["loss"] for each in found["frontier"]]
    assert losses == sorted(losses, reverse=True)
    config = load_config(searched / "searched.yaml")
    assert config.model.layout == best["layout"] and config.schedule.table == best["schedule"]
    assert config.train.init_from == str(dense) and config.schedule.kind == "table"
    table = (searched / "tried.md").read_text(encoding="utf-8")
    assert best["layout"] in table and "no choice within the budget is predicted below" in table and "sparsevid search" in table
    assert (searched / "frontier.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_a_search_that_is_done_does_nothing_twice(dense, searched):
    found = numbers(searched)
    before = {path: path.stat().st_mtime_ns for path in searched.rglob("*.safetensors")}
    assert len(before) > 6
    assert search(dense, searched) == 0
    assert {path: path.stat().st_mtime_ns for path in searched.rglob("*.safetensors")} == before
    assert numbers(searched) == found


@pytest.mark.slow
def test_the_same_search_gives_the_same(dense, searched, tmp_path):
    assert search(dense, tmp_path) == 0
    assert numbers(tmp_path) == numbers(searched)


def test_what_cannot_be_searched_is_said_first(dense, searched, tmp_path, capsys):
    for more, said in (
        (["--out", searched, "--seed", "1"], f"{searched} is of a search with seed = 0"),
        (["--out", searched, "--budget", "0.7"], "is of a search with budget = 0.6"),
        (["--budget", "0.05"], "is not reachable with these modules and grids: the least is 0."),
        (["--budget", "1.5"], "a share of the dense model's multiply–adds"),
        (["--rounds", "3"], "rounds = 3 of 4 clips: a round has at least 2"),
        (["--split", "valid"], "valid"),
        (["--times", "7", "--clips", "4"], "times = 7 of a sampling run of sample.steps = 6"),
        (["--tried", "8", "--steps", "4"], "steps = 4: 3 rungs for 8 candidates need 8"),
        (["--minutes", "-1"], "--minutes -1"),
    ):
        assert run_tool("search", [str(dense), "--out", str(tmp_path), *OPTIONS, *map(str, more)]) != 0
        assert said in capsys.readouterr().err
    for setting in ("data.frames=2", "autoencoder.kind=pixels", "model.layout=4D", "train.steps=9", "objective.kind=diffusion"):
        assert search(dense, tmp_path, setting) != 0
        assert f"{setting} cannot be said of a search" in capsys.readouterr().err
    assert search(dense, tmp_path, "train.lrr=1") != 0
    assert "did you mean" in capsys.readouterr().err
    assert search(tmp_path / "nothing", tmp_path) != 0
    assert "nothing" in capsys.readouterr().err


def test_damaged_rounds_are_measured_again_and_foreign_folders_refused(dense, searched, tmp_path, caplog):
    options = (*OPTIONS, "--tried", "0")
    assert search(dense, tmp_path, options=options) == 0
    found = numbers(tmp_path)
    (tmp_path / "rounds/round-0.safetensors").write_bytes(b"garbage")
    assert search(dense, tmp_path, options=options) == 0
    assert numbers(tmp_path) == found and "is damaged" in caplog.text
    (tmp_path / "search.json").write_text("{", encoding="utf-8")
    assert search(dense, tmp_path, options=options) != 0


def test_a_search_starts_from_a_dense_model(searched, tmp_path, capsys):
    config = load_config(searched / "searched.yaml", [f"output={tmp_path}", "name=sparse", "train.steps=1"])
    Trainer(config).train()  # what was found is a run
    assert search(tmp_path / "sparse", tmp_path / "out") != 0
    assert "a search starts from a dense model; the layout of this one is" in capsys.readouterr().err


def test_rungs_halve_candidates_and_double_steps():
    assert rungs(8, 200) == [(8, 50), (4, 100), (2, 200)]
    assert rungs(5, 40) == [(5, 10), (3, 20), (2, 40)]
    assert rungs(1, 30) == [(1, 30)] and rungs(0, 30) == [] and rungs(2, 3) == [(2, 3)]


def test_ranks_of_predictions_are_spearmans():
    every = [
        Candidate(str(number), "6D", constant_schedule((1, 2, 2)), 0.5, (float(number), 0.1), {0: (loss, 0.1)})
        for number, loss in enumerate((0.1, 0.3, 0.2, 0.5))
    ]
    every[3].losses[10] = (0.1, 0.1)
    assert rank_correlations(every) == {0: (pytest.approx(0.8), 4)}


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_result(dense, searched, tmp_path):
    for pattern in ("rounds/round-0.safetensors", "refine/rung-4/*/seed-0/checkpoints/step-*"):
        process = start(command(dense, "--out", tmp_path, *OPTIONS, script=SCRIPT))
        while process.poll() is None and not list(tmp_path.glob(pattern)):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert list(tmp_path.glob(pattern)) and not (tmp_path / "result.json").exists()
    assert search(dense, tmp_path) == 0
    assert numbers(tmp_path) == numbers(searched)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(dense, searched, tmp_path):
    process = start(command(dense, "--out", tmp_path, *OPTIONS, processes=2, script=SCRIPT))
    printed, _ = process.communicate(timeout=500)
    assert process.returncode == 0, printed
    own, other = numbers(searched), numbers(tmp_path)
    assert own["dense_loss"] == pytest.approx(other["dense_loss"], rel=1e-5)
    for name, values in own["choices"].items():
        assert other["choices"][name]["losses"] == pytest.approx(values["losses"], rel=1e-4, abs=1e-6)
    assert [each["layout"] for each in own["frontier"]] == [each["layout"] for each in other["frontier"]]
