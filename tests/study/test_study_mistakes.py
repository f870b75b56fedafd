"""Mistakes in a study's file or on its command line are told when rows are planned, not once they are trained."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from study.study_runs import do
from study.test_study_table import line
from study.tiny_study import SPARSE

from sparsevid.cli import run_tool
from sparsevid.study import StudyError
from sparsevid.study.plan import Study
from sparsevid.study.results import append_result, read_results
from sparsevid.study.run import chosen_plans
from sparsevid.study.train import Budget

DENSE = {"dense": {}}
UNCLASSED = {"data.card_options": {"label_rule": "none", "classes": []}}


def refused(path: Path, **options) -> str:
    with pytest.raises(StudyError) as error:
        chosen_plans(Study(path, path.parent / "runs", **options))
    return str(error.value)


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ({"schedule": "papr"}, "rows.sparse: sample: schedule = 'papr'; accepted are paper, constant, off"),
        ({"savings": ["statik:every=2"]}, "no saving 'statik'; did you mean 'static'?"),
        ({"savings": ["static:evry=2"]}, "no option 'evry'; did you mean 'every'?"),
        ({"savings": ["static", "taylor"]}, "do not go together"),
        ({"savings": "teacache"}, "savings: teacache is no list; a list of one is [teacache]"),
        ({"guidance_interval": [5.0]}, "guidance_interval = (5.0,)"),
        ({"guidance_interval": 0.5}, "guidance_interval: 0.5 is no list; a list of one is [0.5]"),
        ({"guidance": math.nan}, "rows.sparse: sample: guidance = nan; it is a finite number"),
        ({"guidance": -math.inf}, "rows.sparse: sample: guidance = -inf; it is a finite number"),
    ],
)
def test_a_sampling_that_cannot_be_is_refused_in_the_study_and_in_a_row(study_file, sample, reason):
    row = {"overrides": SPARSE}
    below = {"clips": 4, "steps": 2, "guidance": 2.0, "batch": 2}
    assert reason in refused(study_file(rows={"sparse": row | {"sample": sample}}))
    assert reason in refused(study_file(rows={"sparse": row}, sample=below | sample))


def test_what_does_not_fit_a_rows_model_is_refused(study_file):
    savings = {"sample": {"savings": ["steps:every=2"]}}
    assert "rows.dense: sample: saving steps: the layout '6D'" in refused(study_file(rows={"dense": savings}))
    chosen_plans(Study(path := study_file(rows={"sparse": savings | {"overrides": SPARSE}}), path.parent / "runs"))
    fitted = {"sample": {"savings": ["teacache:threshold=0.1"]}}  # fitted once the model is trained
    chosen_plans(Study(path := study_file(rows={"dense": fitted}), path.parent / "runs"))
    paper = {"sample": {"schedule": "paper"}}
    assert "schedule = 'paper': the layout '6D' is dense" in refused(study_file(rows={"dense": paper}))
    assert "0 classes: a study is of class-conditional runs" in refused(study_file(rows={"dense": {"overrides": UNCLASSED}}))
    unmeasured = {"a": {"measured": False} | paper, "dense": {"start": "a"}}
    chosen_plans(Study(path := study_file(rows=unmeasured), path.parent / "runs"))


def test_a_protocol_that_is_none_is_refused(study_file):
    assert "rows.dense: measure.protocol: unknown protocol 'nonsense'" in refused(
        study_file(rows=DENSE, measure={"clips": 3, "protocol": "nonsense"})
    )


def test_a_split_that_the_data_do_not_have_is_told_before_the_first_training(study_file, data, caplog):
    measure = {"clips": 3, "protocol": str(data / "short.yaml")}
    for key in ("split", "train_split"):
        path = study_file(rows=DENSE, measure=measure | {key: "tset"})
        assert do(path, status=1) == {} and f"measure.{key} = 'tset': " in caplog.text
        assert "splits: test (4 videos), train (6 videos)" in caplog.text
        assert not (path.parent / "out/runs/tiny/dense/seed-0/checkpoints").exists()


def test_controls_are_rows(study_file):
    assert "control: no row 'dens'; did you mean 'dense'?" in refused(study_file(rows=DENSE, control="dens"))
    rows = DENSE | {"a": {"control": "dens"}}
    assert "rows.a.control: no row 'dens'; did you mean 'dense'?" in refused(study_file(rows=rows))
    for keys, control in (({}, None), ({"control": "none"}, None), ({"control": "b"}, "b")):
        path = study_file(rows={"a": {}, "b": {}}, **keys)
        assert Study(path, path.parent).control("a") == control
    path = study_file(rows=DENSE | {"a": {}}, control="none")
    assert Study(path, path.parent).control("a") is None


@pytest.mark.parametrize(("name", "reason"), [("real", "real clips"), ("none", "there is no such row")])
def test_rows_are_not_called_what_means_something_else(study_file, name, reason):
    assert f"a row cannot be called {name!r}: " in (text := refused(study_file(rows=DENSE | {name: {}}))) and reason in text


@pytest.mark.parametrize("name", ["a/b", "..", "a b"])
def test_names_of_rows_and_scales_name_folders(study_file, name):
    assert f"{name!r} names folders" in refused(study_file(rows=DENSE | {name: {}}))
    assert f"{name!r} names folders" in refused(study_file(rows=DENSE, scales={name: {}}))


def test_clips_that_a_distance_does_not_take_are_refused(study_file):
    for key, value in (("data.target_fps", 4), ("data.rule", "latte_linspace")):
        assert f"{key} = {value}" in refused(study_file(rows={"dense": {"overrides": {key: value}}}))
    faster = {"data.card_options": {"clip": {"target_fps": 25.0}}}
    assert "data.target_fps = 25.0" in refused(study_file(rows={"dense": {"overrides": faster}}))
    both = {"clips": 3, "split": "test", "train_split": "test"}
    assert "real clips would be compared with themselves" in refused(study_file(rows=DENSE, measure=both))


def test_a_study_is_called_as_its_file_is(study_file):
    path = study_file(rows=DENSE, study="another")
    assert "study = 'another'; it is the file's name" in refused(path)


def test_a_list_is_a_list(study_file):
    assert "seeds: 3 is no list; a list of one is [3]" in refused(study_file(rows=DENSE, seeds=3))
    assert "rows.dense.seeds: 3 is no list; a list of one is [3]" in refused(study_file(rows={"dense": {"seeds": 3}}))


@pytest.mark.parametrize("key", ["name", "output", "seed"])
def test_what_a_study_says_of_runs_is_not_overridden(study_file, key):
    path = study_file(rows=DENSE, overrides={key: 7})
    assert f"override {key}=7: in a study " in refused(path)
    assert f"override {key}=7: in a study " in refused(study_file(rows={"dense": {"overrides": {key: 7}}}))
    assert f"override {key}=7: in a study " in refused(study_file(rows=DENSE), overrides=[f"{key}=7"])


def test_a_seed_of_no_row_is_an_error(study_file, capsys):
    path = study_file(rows={"dense": {}, "a": {"seeds": [4]}}, seeds=[0, 1])
    given = [str(path), "--list", "--results", str(path.parent / "r.jsonl"), "--seeds"]
    assert run_tool("study", [*given, "7"]) == 2
    assert "no row has seed 7; there are 0, 1, 4" in capsys.readouterr().err
    assert run_tool("study", [*given, "4"]) == 0
    printed = capsys.readouterr().out
    assert "1 rows and seeds" in printed and "1 of 1 rows and seeds are open; how long they take is not known" in printed
    found = Study(path, path.parent / "runs")
    assert [plan.seed for plan in chosen_plans(found, ["a"], [7])] == [7]  # asked for by name


@pytest.mark.parametrize("minutes", [None, math.inf, 1e15])
def test_a_budget_that_no_clock_counts_has_no_end(minutes):
    budget = Budget(minutes)
    assert budget.left is None and not budget.over and budget.admits(None) and budget.admits(1e20)
    assert Budget(1).left <= 60


def test_a_trial_does_not_stand_in_place_of_lines_that_all_read(study_file, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    path, results = study_file(rows=DENSE), tmp_path / "docs/study/tiny.jsonl"
    given, trial = ["--budget", "0", "--out", str(tmp_path / "runs")], [str(path), "train.steps=4"]
    append_result(results, line("dense") | {"study": "tiny"})
    before = results.read_bytes()
    assert run_tool("study", [*trial, *given]) == 2
    printed = capsys.readouterr().err
    assert f"1 rows and seeds have lines of other settings or data in {Path('docs/study/tiny.jsonl')}" in printed
    assert "a trial with train.steps=4" in printed and "--results FILE" in printed
    assert (
        run_tool("study", [str(path), *given]) == 0 and "--results FILE keeps a trial apart" in caplog.text
    )  # the file itself has changed
    assert run_tool("study", [*trial, *given, "--results", "mine.jsonl"]) == 0
    assert results.read_bytes() == before
    results.unlink()
    assert run_tool("study", [*trial, *given]) == 0


def test_a_line_that_was_cut_off_is_told_once(tmp_path, caplog):
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(line("a")) + "\n" + json.dumps(line("b"))[:90], encoding="utf-8")
    for _ in range(3):
        assert len(read_results(path)) == 1
    assert caplog.text.count(f"{path}, line 2 is left out") == 1


ADDING = """
import sys, time
from pathlib import Path
from sparsevid.study.results import append_result
path, row, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
line = {"study": "s", "row": row, "settings": "x"} | dict.fromkeys(("loss", "distance", "accuracy", "macs", "seconds"), 1.0)
for seed in range(count):
    append_result(path, line | {"seed": seed, "losses": [0.5] * 500})
"""


def test_processes_that_add_lines_at_once_lose_none(tmp_path):
    path = tmp_path / "s.jsonl"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ADDING, path, row, "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for row in ("a", "b")
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        assert [process.wait() for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    found = sorted((each["row"], each["seed"]) for each in read_results(path))
    assert found == [(row, seed) for row in "ab" for seed in range(60)]
