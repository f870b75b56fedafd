"""Studies whose data, settings, protocol or weights change, and change back: figures are never another run's."""

import json
from pathlib import Path

import numpy as np
import pytest
from study.study_runs import do, plan_of, same
from study.tiny_study import write_data

from sparsevid.study.listing import state
from sparsevid.study.results import read_json, read_results
from sparsevid.study.run import is_done, taken_line
from sparsevid.study.train import is_trained, weights_of

ROW = {"dense": {}}
FEW = ROW | {"few": {"of": "dense", "sample": {"steps": 1}}}
LONGER = {"train.steps": 4}


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """Other data, as a setting of the command."""
    folder = tmp_path_factory.mktemp("other")
    write_data(folder, 8, 6)
    return f"data.root={folder / 'videos'}"


def without(line: dict, *keys: str) -> dict:
    return {key: value for key, value in line.items() if key not in keys}


@pytest.mark.slow
def test_other_data_are_another_run_and_other_figures(study_file, other):
    path = study_file(rows=ROW)
    first = do(path)["dense", 0]
    assert is_done(plan_of(path, "dense"), [first])
    elsewhere = plan_of(path, "dense", given=["data.root=/nowhere"])
    assert is_done(elsewhere, [first]) and is_trained(elsewhere)  # where there are no data, as before
    path = study_file(rows=FEW)
    second = do(path, given=[other])
    assert second["dense", 0]["data"] == second["few", 0]["data"] != first["data"]
    assert second["dense", 0]["settings"] == first["settings"] and second["dense", 0]["losses"] != first["losses"]
    assert second["few", 0]["losses"] == second["dense", 0]["losses"]  # one run, of one data set
    plan = plan_of(path, "dense")
    assert state(plan, list(second.values())) == "changed (done on other data)" and not is_trained(plan)
    assert is_done(plan, [without(second["dense", 0], "data")])  # lines of before the data counted
    assert taken_line(plan, [first, second["dense", 0]]) == first
    beside = do(study_file("more", rows=ROW), given=[other])["dense", 0]
    assert beside["same_as"] == "tiny/dense" and beside["data"] == second["dense", 0]["data"]
    back = do(study_file(rows=ROW))["dense", 0]
    assert same(back) == same(first) and "same_as" not in back and is_trained(plan_of(path, "dense"))
    assert len(list(plan.folder.parent.glob("seed-0-aside-*"))) == 1  # that of the other data


def test_a_run_of_before_the_data_counted_is_not_measured_on_others(study_file, other, caplog):
    path = study_file(rows=ROW)
    do(path)
    for name in ("trained.json", "study.json"):
        file = plan_of(path, "dense").folder / name
        file.write_text(json.dumps(without(read_json(file), "data", "card")), encoding="utf-8")
    lines = do(study_file(rows=FEW), "--rows", "few", given=[other], status=1)
    assert list(lines) == [("dense", 0)] and "was trained on other data (fingerprint" in caplog.text


def test_settings_that_are_changed_and_taken_back_find_their_run_and_clips(study_file, data, tmp_path, caplog):
    protocol = tmp_path / "short.yaml"
    protocol.write_text((data / "short.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    measure = {
        "clips": 3,
        "times": 2,
        "protocol": str(protocol),
        "bootstrap": 2,
        "repeats": 1,
        "batch": 2,
        "classifier_steps": 5,
    }

    def shown(line: dict) -> np.ndarray:
        return np.load(tmp_path / "out" / line["shown"])["clips"]

    def write(**keys) -> Path:
        return study_file(rows=ROW, measure=measure, **keys)

    first = do(path := write())["dense", 0]
    clips, folder = shown(first), plan_of(path, "dense").folder
    assert "passed over" not in caplog.text
    longer = do(write(overrides=LONGER))["dense", 0]
    assert not np.array_equal(shown(longer), clips)
    back = do(write())["dense", 0]
    assert same(back) == same(first) and "same_as" not in back and np.array_equal(shown(back), clips)
    assert read_json(folder / "trained.json")["steps"] == 3 and back["weights"] == weights_of(plan_of(path, "dense"))
    again = do(write(overrides=LONGER))["dense", 0]
    assert same(again) == same(longer) and read_json(folder / "trained.json")["steps"] == 4
    for aside in folder.parent.glob("seed-0-aside-*"):
        aside.rename(tmp_path / aside.name)  # the run of three steps is gone
    assert same(do(write())["dense", 0]) == same(first)
    caplog.clear()
    do(path, "--times")
    assert "0 rows and seeds timed" in caplog.text and "does not hold its run" in caplog.text
    protocol.write_text(protocol.read_text(encoding="utf-8").replace("unbiased", "biased"), encoding="utf-8")
    changed = plan_of(path, "dense")
    assert not is_done(changed, [first]) and "protocol that said other things" in state(changed, [first])


def test_clips_that_another_line_has_overwritten_are_not_shown_as_a_rows_own(study_file):
    """As lines of before had them, whose place did not depend on the settings."""
    path = study_file(rows=ROW)
    first = do(path)["dense", 0]
    results = path.parent / "out/tiny.jsonl"
    named = [first | {"shown": "x.npz"}, first | {"shown": "x.npz", "settings": "others"}]
    results.write_text("".join(json.dumps(each) + "\n" for each in named), encoding="utf-8")
    assert do(path)["dense", 0] == named[0] | {"shown": None}


def test_figures_of_other_weights_are_not_taken_where_the_run_is_there(study_file):
    line = do(study_file(rows=ROW))["dense", 0]
    path = study_file("more", rows={"dense": {"of": "tiny/dense"}})
    plan, elsewhere = plan_of(path, "dense"), plan_of(path, "dense", folder="elsewhere")
    assert line["run"] == "tiny/dense" and line["weights"] == weights_of(plan.source)
    another, old = line | {"weights": "0123"}, without(line, "weights", "run")
    assert taken_line(plan, [line]) == line and taken_line(plan, [another]) is None
    assert taken_line(plan, [line, another]) == line  # not the newest, but of these weights
    assert taken_line(elsewhere, [another]) == another
    assert taken_line(plan, [old]) == old
    retrained = old | {"losses": [loss + 0.1 for loss in old["losses"]]}
    assert taken_line(plan, [retrained]) is None and taken_line(elsewhere, [retrained]) == retrained
    assert taken_line(plan_of(study_file(rows=ROW), "dense"), [another]) == another  # its own, whole as it is


def test_what_a_kill_has_left_of_a_row_that_is_done_is_removed(study_file):
    path = study_file(rows=ROW | {"pretrain": {"measured": False}})
    do(path)
    left = []
    for row in ("dense", "pretrain"):
        folder = plan_of(path, row).folder
        (last,) = (folder / "checkpoints").glob("step-*")
        left += [last / "training", last.with_name("step-0000001"), folder / "samples"]
    for each in left:
        each.mkdir()
        (each / "file").touch()
    before = read_results(path.parent / "out/tiny.jsonl")
    do(path)
    assert not any(each.exists() for each in left) and read_results(path.parent / "out/tiny.jsonl") == before
    assert all(is_trained(plan_of(path, row)) for row in ("dense", "pretrain"))
