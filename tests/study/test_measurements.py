"""Results as they stand on disk: what is missing, damaged or said twice."""

import json

import pytest
from study_lines import line, lines, write

from sparsevid.study.measurements import NUMBERS, TokenStep, read_studies, token_steps


def test_what_was_written_is_read(tmp_path):
    written = lines(["sparse", "dense"], seeds=2)
    (study,), problems = read_studies([write(tmp_path / "paper.jsonl", written)])
    assert (study.name, study.rows, problems) == ("paper", ["dense", "sparse"], [])
    found = study.of("sparse")[1]
    assert found.figures == {name: written[1][name] for name in NUMBERS if name in written[1]}
    assert found.losses == tuple(written[1]["losses"])
    assert [[*stage] for stage in found.stages] == [[*each["u"], each["loss"]] for each in written[1]["stages"]]
    assert found.facts["hardware"] == "cpu AMD EPYC, cores 2, threads 1"
    assert found.schedule == (TokenStep(0.0, 0.4, 128.0), TokenStep(0.4, 0.75, 64.0), TokenStep(0.75, 1.0, 32.0))


def test_the_newest_line_of_a_row_and_seed_counts(tmp_path):
    old, new = line("dense", 0) | {"loss": 9.0, "accuracy": 0.5}, line("dense", 0) | {"loss": 1.0}
    del new["accuracy"]
    first = write(tmp_path / "a.jsonl", [old, line("dense", 1)])
    second = write(tmp_path / "b.jsonl", [line("sparse", 0), new, line("dense", 0, study="scale")])
    studies, problems = read_studies([first, second])
    assert [study.name for study in studies] == ["paper", "scale"]
    assert problems == []
    assert set(studies[0].measurements) == {("dense", 0), ("dense", 1), ("sparse", 0)}
    assert studies[0].measurements["dense", 0].figures["loss"] == 1.0
    assert "accuracy" not in studies[0].measurements["dense", 0].figures


@pytest.mark.parametrize("key", ["data", "metric", "measured", "clips"])
def test_seeds_that_were_measured_otherwise_have_no_mean(tmp_path, key):
    """The newest line of a row says of what its figures are; other rows are of what they are."""
    values = (64, 512) if key == "clips" else ("one", "another")
    written = [line("dense", seed) | {key: values[0]} for seed in (0, 1)] + [line("sparse", 0) | {key: values[0]}]
    (study,), problems = read_studies([write(tmp_path / "paper.jsonl", [*written, line("dense", 0) | {key: values[1]}])])
    assert set(study.measurements) == {("dense", 0), ("sparse", 0)} and study.rows == ["dense", "sparse"]
    (problem,) = problems
    assert problem.startswith("paper: 'dense', seed 1: measured on other data")


def test_damaged_lines_are_named_and_the_others_stay(tmp_path):
    good = json.dumps(line("dense", 0))
    bad = ["[1, 2]", '{"study": "paper", "seed": 0}', '{"study": "paper", "row": "x", "seed": true}', "\xff\xfe", "[" * 100_000]
    path = tmp_path / "paper.jsonl"
    text = "\n".join([*bad, good, "", good.replace('"seed": 0', '"seed": 1')[:-40]])
    path.write_bytes(text.encode("latin-1"))
    (study,), problems = read_studies([path])
    assert set(study.measurements) == {("dense", 0)}
    assert [problem.split(" is left out")[0] for problem in problems] == [f"{path}, line {n}" for n in (1, 2, 3, 4, 5, 8)]
    assert "'row'" in problems[1]


@pytest.mark.parametrize("value", ["fast", float("nan"), float("inf"), True, [1], 10**400, 1e200])
@pytest.mark.parametrize("key", ["distance", "macs"])
def test_a_figure_that_is_no_number_is_passed_over_and_named(tmp_path, key, value):
    (study,), problems = read_studies([write(tmp_path / "paper.jsonl", [line("dense", 3) | {key: value}])])
    assert set(study.of("dense")[0].figures) == set(line("dense", 3)) & set(NUMBERS) - {key}
    (problem,) = problems
    assert f"{key} of 'dense', seed 3" in problem
    assert len(problem) < 300


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("losses", [1.0, None]),
        ("stages", [{"u": [0.5, 0.1], "loss": 1.0}]),
        ("stages", [{"u": [0, 1]}]),
        ("distance_interval", [1.0]),
        ("schedule", [[0.5, 8], [0.2, 4]]),
        ("schedule", [[0.5, 8], [2.0, 4]]),
        ("shown", 7),
        ("classes", "pong"),
    ],
)
def test_other_keys_of_another_form_are_passed_over_and_named(tmp_path, key, value):
    (study,), (problem,) = read_studies([write(tmp_path / "paper.jsonl", [line("dense", 0) | {key: value}])])
    assert f"{key} of 'dense'" in problem
    assert not getattr(study.of("dense")[0], key)


def test_only_what_a_line_is_of_has_to_be_said(tmp_path):
    path = write(tmp_path / "paper.jsonl", [{"study": "paper", "row": "dense", "seed": 0}])
    (study,), problems = read_studies([path])
    assert study.of("dense")[0].figures == {}
    assert problems == []


def test_a_schedule_says_up_to_where_or_from_where():
    ends, starts = [[0.25, 96], [1.0, 32]], [[0.0, 96], [0.25, 32]]
    assert token_steps(ends) == token_steps(starts) == (TokenStep(0.0, 0.25, 96.0), TokenStep(0.25, 1.0, 32.0))
    assert token_steps([[1, 5]]) == token_steps([[0, 5]]) == (TokenStep(0.0, 1.0, 5.0),)


def test_clips_lie_beside_the_results_or_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "beside.npz").touch()
    monkeypatch.chdir(tmp_path)
    written = [line("dense", 0) | {"shown": "beside.npz"}, line("sparse", 0) | {"shown": "runs/x/shown.npz"}]
    (study,), _ = read_studies([write(tmp_path / "results" / "paper.jsonl", written)])
    assert study.of("dense")[0].shown.resolve() == tmp_path / "results" / "beside.npz"
    assert study.of("sparse")[0].shown.resolve() == tmp_path / "runs" / "x" / "shown.npz"


def test_a_row_that_has_the_figures_of_another_says_so(tmp_path):
    written = [line("dense", 0) | {"note": "the control"}, line("same", 0) | {"note": "again", "same_as": "paper/dense"}]
    (study,), _ = read_studies([write(tmp_path / "paper.jsonl", [*written, line("bare", 0) | {"same_as": "paper/dense"}])])
    assert [study.of(row)[0].note for row in ("dense", "same", "bare")] == [
        "the control",
        "again; figures of paper/dense",
        "figures of paper/dense",
    ]
