"""A study from its file to its results: done once, repeated, stopped, killed, failing, changed, by one process and by two."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from study.study_runs import do, plan_of, same
from study.tiny_study import CLASSES, FRAMES, ROWS, SIDE, SPARSE, start

from sparsevid.runs.checkpoints import CHECKSUMS
from sparsevid.study.listing import state
from sparsevid.study.measure import own_key
from sparsevid.study.results import FIGURES, append_result, newest, read_json, read_results
from sparsevid.study.run import alone_on_machine, machine_folder
from sparsevid.system.atomic import write_json
from sparsevid.system.locks import LockedError

KEYS = {
    "study", "row", "seed", *FIGURES, "losses", "stages", "distance_interval", "distance_real", "accuracy_real", "macs",
    "training_seconds", "training_macs", "parameters", "steps", "note", "commit", "hardware", "date", "versions", "command",
    "settings", "shown", "classes", "control", "data", "run", "weights",
}  # fmt: skip


def test_a_study_is_done_once_and_each_line_says_all(study_file):
    rows = ROWS | {"few": {"of": "sparse", "sample": {"steps": 1}}, "again": {"of": "sparse", "note": "the same"}}
    path = study_file(rows=rows)
    lines = do(path)
    assert list(lines) == [("dense", 0), ("sparse", 0), ("few", 0), ("again", 0)]  # not that which is only a start
    for line in lines.values():
        assert (
            set(line) >= KEYS and line["study"] == "tiny" and line["control"] == (None if line["row"] == "dense" else "dense")
        )
        assert all(math.isfinite(line[key]) for key in FIGURES) and 0 <= line["accuracy"] <= 1
        assert len(line["losses"]) == 3 and line["loss"] == pytest.approx(sum(line["losses"]) / 3, abs=1e-5)
        assert line["loss"] == pytest.approx(sum(each["loss"] for each in line["stages"]) / 2, abs=1e-5)
        with np.load(path.parent / "out" / line["shown"]) as shown:
            assert shown["clips"].shape == (2, 3, FRAMES, SIDE, SIDE) and shown["clips"].dtype == np.uint8
            assert tuple(shown["classes"]) == CLASSES == tuple(line["classes"])
    dense, sparse, few, again = lines.values()
    assert dense["stages"][0]["u"] == sparse["stages"][0]["u"] and "schedule" in sparse and "schedule" not in dense
    assert sparse["macs"] < dense["macs"] and few["macs"] < sparse["macs"] and few["losses"] == sparse["losses"]
    assert (dense["steps"], dense["total_steps"]) == (3, 6) and dense["total_training_macs"] == 2 * dense["training_macs"]
    assert same(again) == same(sparse) and again["same_as"] == "tiny/sparse" and again["note"] == "the same"
    assert not list((path.parent / "out/runs").rglob("samples")) and not list((path.parent / "out/runs").rglob("fake-*"))
    before = (path.parent / "out/tiny.jsonl").read_bytes()
    do(path)
    assert (path.parent / "out/tiny.jsonl").read_bytes() == before
    study_file(rows=rows | {"few": rows["few"] | {"note": "fewer", "control": "sparse"}})  # nothing to be measured anew
    assert do(path) == lines | {("few", 0): few | {"note": "fewer", "control": "sparse"}}
    assert (path.parent / "out/tiny.jsonl").read_bytes().startswith(before)


@pytest.mark.slow
def test_a_seed_repeats_bit_for_bit_and_two_differ(study_file):
    path = study_file(seeds=[0, 1], rows={"sparse": {"overrides": SPARSE}})
    first = do(path, folder="first")
    again = do(path, "--seeds", "0", folder="second")
    assert same(first["sparse", 0]) == same(again["sparse", 0])
    for key in ("loss", "distance", "settings"):
        assert first["sparse", 0][key] != first["sparse", 1][key]
    clips = [np.load(path.parent / name / line["shown"])["clips"] for name, line in
             (("first", first["sparse", 0]), ("second", again["sparse", 0]), ("first", first["sparse", 1]))]  # fmt: skip
    assert np.array_equal(clips[0], clips[1]) and not np.array_equal(clips[0], clips[2])


def test_a_study_that_is_stopped_goes_on_to_the_same_figures(study_file):
    path = study_file(rows={"long": {"overrides": {"train.steps": 15}}})
    undisturbed = do(path, folder="undisturbed")
    checkpoints = path.parent / "out/runs/tiny/long/seed-0/checkpoints"

    def stop() -> None:
        while not list(checkpoints.glob("step-*")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    watch = threading.Thread(target=stop, daemon=True)
    watch.start()
    assert do(path) == {}
    watch.join()
    assert state(plan_of(path, "long"), []).startswith("part (step ")
    assert {key: same(line) for key, line in do(path).items()} == {key: same(line) for key, line in undisturbed.items()}


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_to_the_same_figures(study_file):
    """Killed in training, while samples are written, and before the line is: each time it goes on."""
    path = study_file(rows=ROWS | {"sparse": ROWS["sparse"] | {"overrides": SPARSE | {"train.steps": 30}}})
    undisturbed = do(path, folder="undisturbed")
    runs, results = path.parent / "out/runs", path.parent / "out/tiny.jsonl"
    moments = (
        "tiny/pretrain/seed-0/checkpoints/step-*", "tiny/dense/seed-0/trained.json", "tiny/dense/seed-0/shown-*.npz",
        "tiny/sparse/seed-0/checkpoints/step-*", "tiny/sparse/seed-0/samples/*/000000.mkv",
    )  # fmt: skip
    for moment in moments:
        process = start(path, "--out", runs, "--results", results, dies_with=runs / moment)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, output
    process = start(path, "--out", runs, "--results", results)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    lines = newest(read_results(results))
    assert {key: same(line) for key, line in lines.items()} == {key: same(line) for key, line in undisturbed.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("failing", "done"), [("01", ["sparse"]), ("1", [])])
def test_a_row_that_fails_on_one_rank_alone_ends_all(failing, done, study_file):
    """The other would wait for it for good. What fails on all stops no other row."""
    path = study_file()
    process = start(
        path, "--out", path.parent / "out/runs", "--results", path.parent / "out/tiny.jsonl", processes=2, failing=failing
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode and "tiny/dense, seed 0 failed: planted" in output
    results = path.parent / "out/tiny.jsonl"
    assert [line["row"] for line in read_results(results)] == done
    assert read_json(path.parent / "out/runs/tiny/dense/seed-0/failed.json")["reason"] == "planted"


@pytest.mark.slow
def test_two_ranks_share_each_row(study_file):
    path = study_file()
    process = start(path, "--out", path.parent / "out/runs", "--results", path.parent / "out/tiny.jsonl", processes=2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    lines = read_results(path.parent / "out/tiny.jsonl")
    assert [line["row"] for line in lines] == ["dense", "sparse"] and "2 ranks of 1 thread" in lines[0]["hardware"]
    alone = do(path, folder="alone")
    for line in lines:  # other noise in training, for each slot has its own, but the same clips and cost
        assert line["macs"] == alone[line["row"], 0]["macs"] and line["settings"] == alone[line["row"], 0]["settings"]
        assert line["accuracy_real"] == alone[line["row"], 0]["accuracy_real"]
        assert line["loss"] == pytest.approx(alone[line["row"], 0]["loss"], rel=0.2)


def test_a_row_that_fails_is_reported_and_stops_no_other(study_file, caplog):
    rows = {
        "pretrain": {"measured": False},
        "other": {"start": "pretrain", "overrides": {"model.hidden_size": 16}},
        "after": {"start": "other"},
        "diverges": {"overrides": {"train.lr": "1e30", "train.steps": 12, "train.max_skipped": 2}},
        "dense": {"start": "pretrain"},
    }
    path = study_file(rows=rows)
    lines = do(path, status=1)
    assert list(lines) == [("dense", 0)]
    assert "failed: tiny/other, seed 0: " in caplog.text and "hidden_size is 32 there and 16 here" in caplog.text
    assert "tiny/other, seed 0, which it needs, failed" in caplog.text
    assert "steps in a row were skipped" in caplog.text
    assert "hidden_size is 32" in state(plan_of(path, "other"), list(lines.values()))
    rows["other"]["overrides"] = {}
    lines = do(study_file(rows=rows), "--rows", "after")  # mended, it is done, with what needs it
    assert list(lines) == [("dense", 0), ("after", 0)]


def test_with_no_time_nothing_is_begun(study_file, caplog):
    path = study_file()
    assert do(path, "--budget", 0) == {}
    assert not (path.parent / "out/runs").exists() and "the budget is over before tiny/pretrain" in caplog.text


def test_training_stops_when_the_time_is_over(study_file, caplog):
    path = study_file(rows={"endless": {"overrides": {"train.steps": 1_000_000, "train.checkpoint_every": 1_000_000}}})
    assert do(path, "--budget", 0.03) == {}
    assert "stopped in training by the budget" in caplog.text or "the budget is over before" in caplog.text
    assert state(plan_of(path, "endless"), []).startswith(("part (step ", "open"))


@pytest.mark.slow
def test_a_row_whose_settings_have_changed_is_done_again(study_file):
    path = study_file(rows=ROWS)
    before = do(path)
    path = study_file(rows=ROWS | {"sparse": ROWS["sparse"] | {"overrides": SPARSE | {"train.steps": 2}, "note": "shorter"}})
    assert state(plan_of(path, "sparse"), list(before.values())) == "changed (done by other settings)"
    after = do(path)
    assert after["dense", 0] == before["dense", 0] and after["sparse", 0]["steps"] == 2
    assert len(read_results(path.parent / "out/tiny.jsonl")) == 3
    aside = list((path.parent / "out/runs/tiny/sparse").glob("seed-0-aside-*"))
    assert [each.name for each in aside] == [f"seed-0-aside-{json.loads((aside[0] / 'study.json').read_text())['trained']}"]
    sampled = study_file(rows=ROWS | {"dense": ROWS["dense"] | {"sample": {"steps": 1}}})
    assert do(sampled, "--rows", "dense")["dense", 0]["macs"] < before["dense", 0]["macs"]  # its run is not trained again
    assert not list((path.parent / "out/runs/tiny/dense").glob("*aside*"))


@pytest.mark.slow
def test_a_trial_with_other_settings_costs_no_run(study_file):
    path = study_file(rows=ROWS)
    do(path, "--rows", "pretrain")
    own = plan_of(path, "pretrain").folder
    (own / "mark").touch()
    trial = study_file(rows=ROWS | {"pretrain": {"measured": False, "overrides": {"train.steps": 1}}})
    do(trial, "--rows", "dense")
    assert not (own / "mark").exists()
    lines = do(study_file(rows=ROWS), "--rows", "dense")
    assert (own / "mark").exists() and lines["dense", 0]["total_steps"] == 6
    assert [each.name.partition("-aside-")[1] for each in own.parent.glob("*aside*")] == ["-aside-"]  # that of the trial


@pytest.mark.slow
def test_rows_start_from_those_of_another_study_and_take_its_figures(study_file):
    first = do(study_file())
    rows = {"dense": {"of": "tiny/dense"}, "sparse": {"like": "tiny/sparse", "overrides": {"train.steps": 2}}}
    lines = do(study_file("more", rows=rows))
    assert same(lines["dense", 0]) == same(first["dense", 0]) and lines["dense", 0]["study"] == "more"
    assert lines["sparse", 0]["total_steps"] == 5


@pytest.mark.slow
def test_rows_are_taught_and_sampled_with_savings_that_are_fitted_first(study_file):
    rows = ROWS | {
        "taught": {"like": "sparse", "teacher": "pretrain", "overrides": {"distill.features": 1.0}},
        "residual": {"like": "sparse", "overrides": {"model.residual_upsampling": True}},
        "cached": {"of": "dense", "sample": {"steps": 4, "savings": ["teacache:threshold=1000"]}},
        "plain": {"of": "dense", "sample": {"steps": 4}},
    }
    lines = do(study_file(rows=rows), "--rows", "taught", "residual", "cached", "plain")
    taught, residual, cached, plain = lines.values()
    assert taught["training_macs"] > residual["training_macs"] and taught["losses"] != residual["losses"]
    assert cached["macs"] < plain["macs"] and cached["layers"] < 1.0 == plain["layers"] and cached["losses"] == plain["losses"]
    plan = plan_of(study_file(rows=rows), "cached")
    (fit,) = (plan.own_folder / "fits").iterdir()
    sums = plan.source.folder / "checkpoints" / "step-0000003" / CHECKSUMS
    assert fit.name == own_key(plan) and sums.is_file()
    write_json(sums, {name: sha[::-1] for name, sha in read_json(sums).items()})
    assert own_key(plan) != fit.name  # of other weights, another fit and other samples


@pytest.mark.slow
def test_rows_that_are_done_are_timed_in_turns(study_file, caplog):
    path = study_file(rows=ROWS | {"few": {"of": "dense", "sample": {"steps": 1}}})
    before = do(path, "--rows", "dense", "few")
    lines = do(path, "--times")
    assert list(lines) == list(before) and "tiny: 2 rows and seeds timed" in caplog.text  # none is begun
    for key, line in lines.items():
        assert same(line) == same(before[key]) and line["date"] == before[key]["date"] and line["timed"]["rows"] == 2
        assert len(line["seconds_of_turns"]) == 1 and line["seconds"] == line["seconds_of_turns"][0] > 0
    results = path.parent / "out/tiny.jsonl"
    append_result(results, lines["few", 0] | {"hardware": "another machine"})
    do(path, "--times")
    assert "tiny/few, seed 0 is not timed on" in caplog.text and "it was measured on another machine" in caplog.text
    assert newest(read_results(results))["few", 0]["seconds"] == lines["few", 0]["seconds"]


def test_two_studies_at_one_time_are_refused():
    holds = Path(__file__).parents[1] / "system" / "holds.py"
    command = [sys.executable, holds, f"beside:{machine_folder()}"]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        reason = rf"another study runs on this machine, pid {holder.pid} on .+: .*stop it"
        with pytest.raises(LockedError, match=reason), alone_on_machine():
            pass
    finally:
        holder.kill()
        holder.communicate()
    with alone_on_machine():
        pass
