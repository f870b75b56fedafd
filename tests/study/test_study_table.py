"""Lines of results, whole and cut off, and the table that they add up to, from one machine or from two."""

import json
import re
from pathlib import Path

import pytest

from sparsevid.cli import run_tool
from sparsevid.study import StudyError
from sparsevid.study.effects import difference
from sparsevid.study.measurements import StudyResults, read_studies
from sparsevid.study.plan import Study
from sparsevid.study.results import append_result, check_line, newest, read_results
from sparsevid.study.table import COLUMNS, study_table


def line(row: str, seed: int = 0, shift: float = 0.0, **values) -> dict:
    """A result, of which losses and distance are shifted."""
    losses = [round(0.2 + 0.01 * clip + shift + 0.0001 * ((clip * 7 + seed) % 3), 6) for clip in range(20)]
    found = {"study": "s", "row": row, "seed": seed, "settings": f"{row}{seed}", "losses": losses}
    found |= {"loss": sum(losses) / 20, "distance": 100 + 1000 * shift, "accuracy": 0.5, "macs": 2e9, "seconds": 0.5}
    found |= {
        "distance_interval": [95 + 1000 * shift, 105 + 1000 * shift],
        "clips": 64,
        "hardware": "one",
        "date": "2026-01-02",
    }
    found |= {"accuracy_real": 0.9, "distance_real": 10.0, "commit": "abc", "total_steps": 5, "training_seconds": 9.0}
    return found | values


def cells(table: str) -> dict[str, dict[str, str]]:
    """The table's cells by row and column."""
    rows = [[cell.strip() for cell in text.strip("|").split("|")] for text in table.splitlines() if text.startswith("|")]
    assert tuple(rows[0]) == COLUMNS
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in rows[2:]}


def study_of(folder: Path, lines: list[dict]) -> StudyResults:
    path = folder / "table.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    (study,), problems = read_studies([path])
    assert problems == []
    return study


def test_lines_are_added_whole_and_the_newest_counts(tmp_path):
    path = tmp_path / "folder" / "s.jsonl"
    for each in (line("a"), line("b"), line("a", shift=0.1)):
        append_result(path, each)
    lines = read_results(path)
    assert [each["row"] for each in lines] == ["a", "b", "a"] and newest(lines)["a", 0] == line("a", shift=0.1)


def test_a_line_that_was_cut_off_is_passed_over_and_ended(tmp_path, caplog):
    path = tmp_path / "s.jsonl"
    append_result(path, line("a"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert read_results(path) == [line("a")]
    assert f"{path}, line 2 is left out" in caplog.text
    append_result(path, line("b"))
    assert path.read_bytes().startswith(whole + whole[: len(whole) // 2] + b"\n")
    path.write_bytes(path.read_bytes() + b"[" * 100_000 + b"\n" + whole.replace(b'"loss": ', b'"loss": 1' + b"0" * 400))
    assert [each["row"] for each in read_results(path)] == ["a", "b"]
    assert read_results(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1", True, 10**400])
def test_figures_that_are_no_finite_numbers_are_no_result(tmp_path, value):
    with pytest.raises(StudyError, match="distance = "):
        append_result(tmp_path / "s.jsonl", line("a", distance=value))
    assert not (tmp_path / "s.jsonl").exists()
    with pytest.raises(StudyError, match="a result without loss, macs"):
        check_line({key: each for key, each in line("a").items() if key not in ("loss", "macs")})


def test_differences_are_to_the_control_of_the_same_seed(tmp_path):
    lines = [line("dense", seed, 0.1 * seed) for seed in range(3)] + [
        line("worse", seed, 0.1 * seed + 0.02) for seed in range(3)
    ]
    study = study_of(tmp_path, [*lines, line("alone", 7), line("short", losses=[0.1])])
    worse, dense = study.of("worse"), study.of("dense")
    loss, distance, accuracy = (difference(worse, dense, each) for each in ("loss", "distance", "accuracy"))
    assert loss.mean == pytest.approx(0.02) and loss.told and loss.seeds == 3
    assert distance.mean == pytest.approx(20.0) and not accuracy.told
    table = cells(study_table(study, ["worse", "dense"]))
    assert {table["alone"][name] for name in COLUMNS if "control" in name} == {"–"}
    assert table["short"]["loss − control"] == "–" != table["short"]["distance − control"]  # other clips are no pairs
    assert list(table) == ["worse", "dense", "alone", "short"]
    assert re.fullmatch(r"\*\*\+0\.0200 \[\+0\.\d+, \+0\.\d+\]\*\*", table["worse"]["loss − control"])
    assert table["dense"]["loss − control"] == "–" and table["dense"]["seeds"] == "3" and "±" in table["dense"]["loss"]
    assert "±" not in table["alone"]["loss"]


def test_no_row_is_called_other_than_the_control_where_the_interval_has_zero(tmp_path):
    lines = [line("dense"), line("same", losses=[each + (-1) ** n * 0.01 for n, each in enumerate(line("dense")["losses"])])]
    cell = cells(study_table(study_of(tmp_path, lines)))["same"]["loss − control"]
    assert "**" not in cell and cell.endswith("†")  # of one seed


def test_results_of_two_machines_add_up_and_seconds_stay_apart(tmp_path, capsys):
    first, second = tmp_path / "s.jsonl", tmp_path / "elsewhere.jsonl"
    for each in (line("dense"), line("sparse", seconds=0.25)):
        append_result(first, each)
    for each in (line("dense", 1, hardware="two", seconds=0.1), line("fast", 1, hardware="two", seconds=0.05)):
        append_result(second, each)
    (tmp_path / "s.yaml").write_text("study: s\nbase: b.yaml\nrows: {dense: {}, sparse: {}, fast: {}}\n", encoding="utf-8")
    given = [str(tmp_path / "s.yaml"), "--table", "--results", str(first), str(second)]
    assert run_tool("study", given) == 0
    printed = capsys.readouterr().out
    table = cells(printed)
    marks = dict(re.findall(r"hardware \((.)\): (\w+)", printed))
    seconds = re.findall(r"([\d.]+) \((.)\)", table["dense"]["s/clip"])
    assert {marks[mark]: each for each, mark in seconds} == {"one": "0.5", "two": "0.1"} and table["dense"]["seeds"] == "2"
    assert table["sparse"]["control / this"] == "2.00×" == table["fast"]["control / this"]
    across = [line("dense", hardware="one"), line("sparse", hardware="two")]
    assert cells(study_table(study_of(tmp_path, across)))["sparse"]["control / this"] == "–"
    assert run_tool("study", [*given[:-2], str(tmp_path / "none.jsonl")]) == 2
    assert "no results of s" in capsys.readouterr().err


def test_rows_are_compared_with_another_one_if_that_is_asked_for(tmp_path, capsys):
    for each in (line("dense", seconds=0.5), line("a", seconds=0.25), line("b", seconds=0.125)):
        append_result(tmp_path / "s.jsonl", each)
    (tmp_path / "s.yaml").write_text("study: s\nbase: b.yaml\nrows: {dense: {}, a: {}, b: {}}\n", encoding="utf-8")
    given = [str(tmp_path / "s.yaml"), "--results", str(tmp_path / "s.jsonl"), "--rows", "b", "--against", "a"]
    assert run_tool("study", [*given, "--table"]) == 0
    printed = capsys.readouterr().out
    table = cells(printed)
    assert list(table) == ["a", "b"] and table["b"]["control / this"] == "2.00×" and "to the row `a`" in printed
    assert run_tool("study", given) == 2 and "is of --table" in capsys.readouterr().err
    assert run_tool("study", [*given[:-2], "--table"]) == 0  # what a row is compared with is not left out with the others
    assert list(cells(capsys.readouterr().out)) == ["dense", "b"]
    assert run_tool("study", [*given[:-3], "bb", "--table"]) == 2 and "did you mean 'b'" in capsys.readouterr().err
    assert run_tool("study", [*given[:-1], "c", "--table"]) == 2
    assert "--against c: nothing was measured of such a row; measured are dense, a, b" in capsys.readouterr().err


def test_a_loss_that_is_another_row_s_is_no_second_measurement(tmp_path):
    losses = {"dense": 0.0, "sparse": 0.01, "sparse_5": 0.01, "dense_5": 0.0}
    table = cells(study_table(study_of(tmp_path, [line(row, 0, shift) for row, shift in losses.items()])))
    assert "**" in table["sparse"]["loss − control"]
    assert (table["sparse_5"]["loss − control"], table["dense_5"]["loss − control"]) == ("as `sparse`", "as `dense`")


def test_a_table_says_which_rows_have_other_settings_by_now(study_file, tmp_path, capsys):
    path = study_file()
    plan = Study(path, tmp_path).plan("dense", 0)
    for row, settings in (("dense", plan.settings), ("sparse", "0123456789abcdef")):
        append_result(tmp_path / "lines.jsonl", line(row, 0, study=plan.row.study.name, settings=settings))
    given = [str(path), "--table", "--results", str(tmp_path / "lines.jsonl"), "--out", str(tmp_path)]
    assert run_tool("study", given) == 0
    assert "measured by other settings than the study's file has now: sparse, seed 0" in capsys.readouterr().out


def test_what_is_for_other_seeds_alone_is_marked(tmp_path):
    lines = [line(row, seed, 0.02 * (row == "x"), losses=[]) for row in ("dense", "x") for seed in range(3)]
    cell = cells(study_table(study_of(tmp_path, lines)))["x"]
    assert cell["loss − control"].endswith("‡") and not cell["distance − control"].endswith("‡")


def test_what_lines_lack_is_missing_and_no_error(tmp_path):
    bare = {key: value for key, value in line("a").items() if key in ("study", "row", "seed", "settings", "loss", "distance")}
    bare |= {"accuracy": 0.1, "macs": 1e9, "seconds": 1.0, "control": "b"}
    table = cells(study_table(study_of(tmp_path, [bare, line("b")])))
    assert table["a"]["loss − control"] == table["a"]["steps"] == "–"
    assert json.dumps(table)
