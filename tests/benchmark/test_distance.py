"""The benchmark of the distance: what it compares is equal, and the table and the JSON say the same."""

import json

import pytest

from sparsevid.benchmark.distance import (
    DISTANCE_COLUMNS,
    distance_as_json,
    distance_rows,
    measure_distances,
    random_pair,
)
from sparsevid.cli import run_tool
from sparsevid.evaluation.metrics.distances import frechet_by_square_root, frechet_distance


def test_both_forms_are_timed_on_equal_work():
    measured = measure_distances([(60, 12), (20, 40)], repeats=2)
    assert [(time.count, time.dim) for time in measured] == [(60, 12), (20, 40)]
    assert all(len(time.ours.turns) == len(time.textbook.turns) == 2 for time in measured)
    assert measured[0].difference <= 1e-10
    assert measured[1].difference <= 1e-6


def test_table_and_json_say_the_same():
    measured = measure_distances([(30, 6)], repeats=3)
    (row,) = distance_rows(measured)
    assert len(row) == len(DISTANCE_COLUMNS)
    values = json.loads(json.dumps(distance_as_json({"command": "here"}, measured)))
    assert values["header"] == {"command": "here"}
    (found,) = values["distances"]
    assert row[:2] == [str(found["clips"]), str(found["dim"])]
    assert row[6] == f"{found['speed']:.2f}×"
    assert found["speed"] == sorted(found["square_root_seconds_of_turns"])[1] / sorted(found["seconds_of_turns"])[1]


def test_the_data_are_the_same_at_every_call():
    first, again = random_pair(20, 5), random_pair(20, 5)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert frechet_distance(*first) == pytest.approx(frechet_by_square_root(*first), rel=1e-9)


def test_command(capsys):
    assert run_tool("benchmark", ["distance", "--sizes", "64,8", "9,30", "--repeats", "2"]) == 0
    printed = capsys.readouterr().out
    assert "--sizes 64,8 9,30 --repeats 2" in printed and "| 64 | 8 |" in printed and "| 9 | 30 |" in printed
    with pytest.raises(SystemExit):
        run_tool("benchmark", ["distance", "--sizes", "64"])
    assert "N,D such as 2048,400, got '64'" in capsys.readouterr().err


@pytest.mark.parametrize(("sizes", "repeats"), [([(1, 5)], 1), ([(5, 5)], 0)])
def test_numbers_out_of_range_are_refused(sizes, repeats):
    with pytest.raises(ValueError, match="repeats from 1 and sizes"):
        measure_distances(sizes, repeats=repeats)
