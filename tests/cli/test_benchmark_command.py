"""The command `benchmark`: its table, its JSON file, what its header says, and what it answers to bad input."""

import argparse
import json
import shlex
import subprocess

import pytest
from rich.markdown import Markdown

from sparsevid.cli import COMMANDS, run_tool
from sparsevid.cli import benchmark as command
from sparsevid.models.presets import PRESETS
from sparsevid.sparsity.spec import ModelSpec

SPARSE = ModelSpec("1P 1(1M1S1R1D) 1D", 32, 2, (4, 8, 8), sparse_grid=(2, 2, 2))
QUICK = ["--repeats", "2", "--matmul-sizes", "32", "--device", "cpu"]
HEADER = {"command", "date", "commit", "device", "threads", "system", "python", "torch", "float32_matmul_precision"}
HEADER |= {"peak_memory"}
RESULT = {"preset", "layout", "form", "input_size", "grid", "batch", "dtype", "seconds", "seconds_of_turns", "macs"}
RESULT |= {"matmul_share", "weight_bytes", "peak_bytes", "measured_ratio", "counted_ratio", "memory_ratio", "differs"}


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch):
    """A dense and a sparse preset of 32 channels."""
    monkeypatch.setitem(PRESETS, "SparseLatte-XS/2", SPARSE)
    monkeypatch.setitem(PRESETS, "Latte-XS/2", SPARSE.dense())


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def git(folder, *words: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_table_and_json_say_the_same(tmp_path, capsys):
    path = tmp_path / "bench.json"
    arguments = ["model", "--presets", "SparseLatte-XS/2", "--grids", "2,2,2", "1,1,1", "--against-naive", *QUICK]
    assert run_tool("benchmark", [*arguments, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    table = [line.strip("|").split(" | ") for line in printed.splitlines() if line.startswith("|")]
    assert tuple(cell.strip() for cell in table[0]) == command.COLUMNS
    assert {len(row) for row in table} == {len(command.COLUMNS)}
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written.keys() == {"header", "matmul_macs_per_second", "results"}
    assert written["header"].keys() == HEADER
    assert f"- command: {written['header']['command']}" in printed
    results = written["results"]
    assert all(result.keys() == RESULT for result in results)
    assert [result["form"] for result in results] == ["ours", "naive", "ours", "ours"]
    assert [result["grid"] for result in results] == [None, None, [2, 2, 2], [1, 1, 1]]
    for row, result in zip(table[2:], results, strict=True):
        cells = dict(zip(command.COLUMNS, (cell.strip() for cell in row), strict=True))
        assert cells["preset"] == result["preset"]
        assert cells["time / dense"] == f"{result['measured_ratio']:.3f}"
        assert cells["GMACs / dense"] == f"{result['counted_ratio']:.3f}"
        assert bool(cells["note"]) is result["differs"]
        assert result["measured_ratio"] == pytest.approx(result["seconds"] / results[0]["seconds"])
        assert result["counted_ratio"] == result["macs"] / results[0]["macs"]


def test_table_is_markdown(capsys):
    assert run_tool("benchmark", ["model", "--presets", "Latte-XS/2", *QUICK]) == 0
    kinds = [token.type for token in Markdown(capsys.readouterr().out).parsed]
    assert kinds.count("table_open") == 1
    assert kinds.count("th_open") == kinds.count("td_open") == len(command.COLUMNS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["model"],
        ["model", "--presets", "SparseLatte-XL/2", "--layouts", "2P 4(1M3S1R1D) 2D", "28D", "--grids", "4,8,8", "4,4,4"],
        ["model", "--input-size", "8", "16", "16", "--batch", "1", "4", "--against-naive", "--warmup", "0"],
    ],
)
def test_command_in_the_header_gives_the_same_arguments(arguments):
    words = shlex.split(command.command_line(parse(*arguments)))
    assert words[:2] == ["sparsevid", "benchmark"]
    assert parse(*words[2:]) == parse(*arguments)


def test_commit_is_that_of_the_folder_and_none_without_git(tmp_path, monkeypatch):
    assert command.find_commit(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    (tmp_path / "kept.py").write_text("a = 1\n", encoding="utf-8")
    git(tmp_path, "add", "kept.py")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert command.find_commit(tmp_path) == commit
    installed = tmp_path / "site-packages"
    installed.mkdir()
    assert command.find_commit(installed) is None  # inside the repository, but not kept in it
    (tmp_path / "kept.py").write_text("a = 2\n", encoding="utf-8")
    assert command.find_commit(tmp_path) == f"{commit} with local changes"
    monkeypatch.setenv("PATH", str(installed))
    assert command.find_commit(tmp_path) is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--presets", "Late-XS/2"], "no preset 'Late-XS/2'"),
        (["--presets", "Latte-XS/2", "--dtype", "int8"], "no dtype 'int8'"),
        (["--presets", "Latte-XS/2", "--device", "cuda:99"], "no device 'cuda:99'"),
        (["--presets", "Latte-XS/2", "--json", "nowhere/bench.json"], "--json nowhere/bench.json: there is no folder"),
        (["--presets", "SparseLatte-XS/2", "--grids", "3,2,2"], "t = 3 does not divide the 4 frames"),
        (["--presets", "Latte-XS/2", "--repeats", "0"], "repeats=0"),
    ],
)
def test_bad_input_gets_a_message_that_names_it(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_tool("benchmark", ["model", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("sparsevid benchmark: error: ") and reason in message


@pytest.mark.parametrize("text", ["4,8", "4,8,8,8", "4,-8,8", "a,b,c"])
def test_a_grid_that_cannot_be_read(text, capsys):
    with pytest.raises(SystemExit):
        parse("model", "--grids", text)
    assert f"a sparse grid is T,H,W such as 4,8,8, got '{text}'" in capsys.readouterr().err


def test_command_is_listed_and_explains_itself(capsys):
    assert "benchmark" in COMMANDS
    with pytest.raises(SystemExit) as done:
        run_tool("benchmark", ["model", "--help"])
    assert done.value.code == 0
    assert "sparsevid benchmark model --presets Latte-XL/2 SparseLatte-XL/2" in capsys.readouterr().out
