"""The command `benchmark`: its tables, its JSON files, what its header says, and what it answers to bad input."""

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
from importlib import import_module

import pytest
from rich.markdown import Markdown
from videos.made import write_video

from sparsevid.benchmark.report import DATA_COLUMNS, MODEL_COLUMNS, find_commit
from sparsevid.benchmark.sampling_report import SAMPLING_COLUMNS
from sparsevid.cli import COMMANDS, run_tool
from sparsevid.cli import benchmark as command
from sparsevid.cli.benchmarks.arguments import command_line
from sparsevid.models.presets import PRESETS
from sparsevid.sparsity.spec import ModelSpec

SPARSE = ModelSpec("1P 1(1M1S1R1D) 1D", 32, 2, (4, 8, 8), sparse_grid=(2, 2, 2))
QUICK = ["--repeats", "2", "--matmul-sizes", "32", "--device", "cpu"]
QUICK_DATA = ["--preset", "Latte-XS/2", "--clips", "2", "--batch", "1", "--repeats", "1", "--device", "cpu"]
HEADER = {"command", "date", "commit", "device", "threads", "system", "python", "torch", "float32_matmul_precision"}
HEADER |= {"processor", "cores"}
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


@pytest.fixture
def card(tmp_path, monkeypatch):
    """A card of three small videos, and a folder of its own for the manifests that are kept."""
    monkeypatch.setenv("SPARSEVID_CACHE", str(tmp_path / "cache"))
    for name in ("a.mp4", "b.mp4", "c.avi"):
        write_video(tmp_path / "videos" / name, "mpeg4" if name.endswith("avi") else "libx264", frames=20)
    path = tmp_path / "card.yaml"
    path.write_text(f"name: bars\nroot: {tmp_path / 'videos'}\nclip: {{frames: 4, stride: 2, size: [64, 64]}}\n")
    return path


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
    assert tuple(cell.strip() for cell in table[0]) == MODEL_COLUMNS
    assert {len(row) for row in table} == {len(MODEL_COLUMNS)}
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written.keys() == {"header", "matmul_macs_per_second", "results"}
    assert written["header"].keys() == HEADER | {"peak_memory"}
    assert f"- command: {written['header']['command']}" in printed
    results = written["results"]
    assert all(result.keys() == RESULT for result in results)
    assert [result["form"] for result in results] == ["ours", "naive", "ours", "ours"]
    assert [result["grid"] for result in results] == [None, None, [2, 2, 2], [1, 1, 1]]
    for row, result in zip(table[2:], results, strict=True):
        cells = dict(zip(MODEL_COLUMNS, (cell.strip() for cell in row), strict=True))
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
    assert kinds.count("th_open") == kinds.count("td_open") == len(MODEL_COLUMNS)


def test_data_table_and_json_say_the_same(card, tmp_path, capsys):
    path = tmp_path / "data.json"
    assert (
        run_tool("benchmark", ["data", str(card), *QUICK_DATA, "--workers", "0", "1", "--json", str(path), "--markdown"]) == 0
    )
    printed = capsys.readouterr().out
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in printed.splitlines() if line.startswith("|")]
    assert tuple(table[0]) == DATA_COLUMNS
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written.keys() == {"header", "training_step", "sources"}
    assert written["header"].keys() == HEADER | {"data"}
    assert f"- command: {written['header']['command']}" in printed
    sources = written["sources"]
    assert [(each["source"], each["workers"]) for each in sources] == [
        (name, count) for name in ("pyav", "decord") for count in (0, 1)
    ]
    assert len(table) == 2 + len(sources)
    for row, each in zip(table[2:], sources, strict=True):
        cells = dict(zip(DATA_COLUMNS, row, strict=True))
        assert (cells["source"], cells["workers"]) == (each["source"], str(each["workers"]))
        assert cells["clips/s"] == f"{each['clips_per_second']:.3g}"
        assert cells["of the first"] == f"{each['clips_per_second'] / sources[0]['clips_per_second']:.2f}×"
        assert cells["feeds the model"] == f"{each['feeds_the_model']:.3g}×"
        feeds = each["clips_per_second"] / written["training_step"]["clips_per_second"]
        assert each["feeds_the_model"] == pytest.approx(feeds)
        assert 4 <= each["frames_decoded_per_clip"] <= 20
    assert "the bottleneck" in printed


def test_data_table_on_the_console_has_the_same_columns(card, capsys):
    assert run_tool("benchmark", ["data", str(card), *QUICK_DATA, "--decoders", "pyav", "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert "reading clips of bars" in printed and "commit: " in printed
    assert all(word in printed for word in ("clips/s", "feeds", "pyav"))


def test_sampling_table_and_json_say_the_same(tmp_path, capsys):
    path = tmp_path / "sampling.json"
    arguments = ["sampling", "--presets", "SparseLatte-XS/2", "--samplers", "ddim", "euler", "--steps", "3", "--batch", "2"]
    assert run_tool("benchmark", [*arguments, "--product", "--format", "npz", *QUICK, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in printed.splitlines() if line.startswith("|")]
    assert tuple(table[0]) == SAMPLING_COLUMNS
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written.keys() == {"header", "matmul_macs_per_second", "results", "products"}
    assert f"- command: {written['header']['command']}" in printed and "product, extrapolated" in printed
    results, products = written["results"], written["products"]
    ways = [("ddim", 3, False), ("ddim", 3, False), ("euler", 3, False), ("euler", 3, False), ("ddpm", 250, True)]
    assert [(each["sampler"], each["steps"], each["extrapolated"]) for each in results] == [*ways, ("euler", 5, True)]
    assert len(products) == 1 and len(table) == 2 + len(results) + len(products)
    for row, each in zip(table[2:], results, strict=False):
        cells = dict(zip(SAMPLING_COLUMNS, row, strict=True))
        assert (cells["preset"], cells["sampler"], cells["steps"]) == (each["preset"], each["sampler"], str(each["steps"]))
        assert cells["s/clip in latents"] == f"{each['seconds_per_clip_in_latents']:.4g}"
        assert cells["measured"] == ("extrapolated" if each["extrapolated"] else "full run")
        assert sum(stage["count"] for stage in each["calls"]) == each["steps"]

    def ratio(dense: dict, sparse: dict) -> float:
        pairs = zip(dense["model_seconds_of_turns"], sparse["model_seconds_of_turns"], strict=True)
        return statistics.median(one / other for one, other in pairs)

    assert results[1]["dense_over_this_in_latents"] == pytest.approx(ratio(*results[:2]))
    assert products[0]["speed"] == pytest.approx(ratio(*results[4:6]))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["sampling", "--presets", "Late-XS/2"], "no preset 'Late-XS/2'"),
        (["sampling", "--presets", "Latte-XS/2", "--samplers", "magic"], "no sampler 'magic'; the samplers are ddpm"),
        (["sampling", "--presets", "Latte-XS/2", "--steps", "0"], "got 0"),
        (["sampling", "--presets", "Latte-XS/2", "--autoencoder", "nowhere"], "nowhere holds no autoencoder.json"),
        (["sampling", "--presets", "Latte-XS/2", "--json", "nowhere/s.json"], "there is no folder"),
        (["sampling", "--presets", "Latte-XS/2", "--json", "/proc/s.json"], "/proc cannot be written to"),
        (["sampling", "--presets", "Latte-XS/2", "--json", "."], "--json . is there and no file"),
        (["savings", "nowhere"], "nowhere"),
        (["savings", "nowhere", "--scale", "0"], "--scale is at least 1, got 0"),
        (["savings", "nowhere", "nowhere"], "each model is given once"),
    ],
)
def test_bad_input_of_the_sampling_benchmarks_is_named(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_tool("benchmark", arguments) == 2
    message = capsys.readouterr().err
    assert "sparsevid benchmark: error: " in message and reason in message


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--decoders", "opencv"], "opencv"),
        (["--preset", "Late-XS/2"], "no preset 'Late-XS/2'"),
        (["--size", "60", "64"], "60×64 pixels have no whole latents"),
        (["--workers", "-1"], "workers from 0"),
        (["--clips", "0"], "clips=0"),
        (["--step-batch", "0"], "at least one clip, got 0"),
        (["--frames", "0"], "got frames=0"),
        (["--stride", "30"], "none of 3 videos is as long as a clip"),
        (["--latents", "nowhere"], "nowhere is no latent cache"),
        (["--json", "nowhere/data.json"], "--json nowhere/data.json: there is no folder"),
    ],
)
def test_bad_input_of_the_data_benchmark_is_named(card, arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_tool("benchmark", ["data", str(card), *QUICK_DATA, *arguments]) == 2
    message = capsys.readouterr().err
    assert "sparsevid benchmark: error: " in message and reason in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["model"],
        ["model", "--presets", "SparseLatte-XL/2", "--layouts", "2P 4(1M3S1R1D) 2D", "28D", "--grids", "4,8,8", "4,4,4"],
        ["model", "--input-size", "8", "16", "16", "--batch", "1", "4", "--against-naive", "--warmup", "0"],
        ["sampling", "--steps", "5", "20", "--compile", "off", "on", "--product", "--extrapolate", "--autoencoder", "none"],
        ["savings", "my run", "b", "--samplers", "ddim", "--saving", "steps:every=3", "--saving", "a+b", "--weights", "model"],
        ["savings", "my run", "--autoencoder", "kl:my vae", "--graph", "off", "--guidance", "4.0"],
        ["sampling", "--graph", "off"],
        ["data"],
        ["data", "ucf101", "--card-option", "split.max_missing=1", "--card-option", "clip.size=[16, 24]"],
        ["training", "--presets", "Latte-S/2", "--config", "my run", "model.layout=2P 3(1M4S1R1D) 5D"],
        ["decoders", "my a.mp4", "b.avi", "--backends", "pyav", "--measures", "speed", "growth", "--limit", "2.5"],
        ["evaluator", "my videos", "--detector", "transnetv2", "--count", "4"],
        ["data", "my card.yaml", "--root", "#1", "--decoders", "pyav", "--workers", "0", "2", "--size", "64", "96"],
    ],
)
def test_command_in_the_header_gives_the_same_arguments(arguments):
    words = shlex.split(command_line(parse(*arguments)))
    assert words[:2] == ["sparsevid", "benchmark"]
    assert parse(*words[2:]) == parse(*arguments)


def test_commit_is_that_of_the_folder_and_none_without_git(tmp_path, monkeypatch):
    assert find_commit(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    (tmp_path / "kept.py").write_text("a = 1\n", encoding="utf-8")
    git(tmp_path, "add", "kept.py")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert find_commit(tmp_path) == commit
    installed = tmp_path / "site-packages"
    installed.mkdir()
    assert find_commit(installed) is None  # inside the repository, but not kept in it
    (tmp_path / "kept.py").write_text("a = 2\n", encoding="utf-8")
    assert find_commit(tmp_path) == f"{commit} with local changes"
    monkeypatch.setenv("PATH", str(installed))
    assert find_commit(tmp_path) is None


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


def test_command_is_listed_and_names_its_actions(capsys):
    assert "benchmark" in COMMANDS
    with pytest.raises(SystemExit, match="0"):
        run_tool("benchmark", ["--help"])
    printed = capsys.readouterr().out
    assert all(f"\n    {action}" in printed for action in command.ACTIONS)


@pytest.mark.parametrize("action", command.ACTIONS)
def test_an_action_explains_itself_by_its_own_examples(action, capsys):
    with pytest.raises(SystemExit, match="0"):
        run_tool("benchmark", [action, "--help"])
    printed = capsys.readouterr().out
    examples = re.findall(r"^  sparsevid benchmark (.*)$", printed, re.MULTILINE)
    assert examples and {example.split()[0] for example in examples} == {action}
    assert import_module(f"sparsevid.cli.benchmarks.{action}").HELP in printed
    for example in examples:  # they are accepted
        assert parse(*shlex.split(example)).action == action


def test_explanations_need_no_model_and_no_evaluator():
    """They come at once: what takes long to import is imported by what is asked for."""
    code = """if True:
        import argparse, sys
        from sparsevid.cli import benchmark
        benchmark.add_arguments(argparse.ArgumentParser())
        heavy = ("deepspeed", "diffusers", "scipy", "sparsevid.evaluation.evaluate", "sparsevid.generation.pipeline")
        print([name for name in heavy if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def run(tmp_path, card):
    """A run on the card's videos."""
    path = tmp_path / "run.yaml"
    model = "model: {layout: 1P 1(1M1S1R1D) 1D, hidden_size: 32, num_heads: 2, patch_size: 1}"
    path.write_text(
        f"name: mine\n{model}\nobjective: {{kind: flow}}\ndata: {{card: {card}, size: [32, 32]}}\n", encoding="utf-8"
    )
    return path


@pytest.mark.parametrize(
    ("action", "options", "names"),
    [
        ("model", QUICK, ["mine, dense", "mine"]),
        ("training", ["--repeats", "1", "--device", "cpu"], ["mine, dense", "mine", "mine"]),
        ("sampling", [*QUICK, "--steps", "2", "--extrapolate"], ["mine, dense", "mine"]),
    ],
)
def test_a_run_is_timed_as_presets_are(run, action, options, names, tmp_path, capsys):
    path = tmp_path / "bench.json"
    settings = ["model.hidden_size=16", "schedule.frames=2", "schedule.r_min=0.3"]
    assert run_tool("benchmark", [action, *options, "--json", str(path), "--config", str(run), *settings]) == 0
    written = json.loads(path.read_text(encoding="utf-8"))
    rows = written.get("results") or written["steps"]
    found = [row["preset"] for row in rows]
    assert found[: len(names)] == names and set(found) == set(names)
    assert shlex.join(["--config", str(run), *settings]) in written["header"]["command"]
    if action == "sampling":
        assert {row["sampler"] for row in rows} == {"euler"}  # the run's
    assert "mine" in capsys.readouterr().out


def test_clips_of_a_run_are_read_for_its_model(run, tmp_path, capsys):
    path = tmp_path / "data.json"
    quick = [each for each in QUICK_DATA if each not in ("--preset", "Latte-XS/2")]
    options = ["--decoders", "pyav", "--workers", "0", *quick, "--json", str(path)]
    assert run_tool("benchmark", ["data", *options, "--config", str(run), "data.stride=1"]) == 0
    printed = capsys.readouterr().out
    assert "reading clips of mine" in printed and "mine in training" in printed
    assert "3 videos" in json.loads(path.read_text(encoding="utf-8"))["header"]["data"]
