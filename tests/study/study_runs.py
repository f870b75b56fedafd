"""The command on a study of the tests, beside its file."""

from collections.abc import Sequence
from pathlib import Path

from sparsevid.cli import run_tool
from sparsevid.study.plan import Plan, Study
from sparsevid.study.results import FIGURES, newest, read_results

SAME = (*FIGURES[:4], "losses", "stages", "distance_interval", "accuracy_real", "distance_real", "training_macs", "settings")


def do(
    path: Path, *options: object, status: int = 0, folder: str = "out", given: Sequence[str] = ()
) -> dict[tuple[str, int], dict]:
    """Run the command, with settings that are given, and give the newest lines."""
    results = path.parent / folder / f"{path.stem}.jsonl"
    words = [path, *given, "--out", path.parent / folder / "runs", "--results", results, *options]
    assert run_tool("study", list(map(str, words))) == status
    return newest(read_results(results))


def same(line: dict) -> dict:
    """What does not depend on when and how fast a row was done."""
    return {key: line[key] for key in SAME}


def plan_of(path: Path, row: str, seed: int = 0, folder: str = "out", given: Sequence[str] = ()) -> Plan:
    """A row and seed of a study."""
    return Study(path, path.parent / folder / "runs", overrides=given).plan(row, seed)
