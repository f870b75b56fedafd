"""The commands as a user calls them: in processes of their own, with good and with bad input."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import av
import pytest
from generation.sampled import write_checkpoint
from PIL import Image

from sparsevid.cli import COMMANDS, main, run_tool, sample
from sparsevid.system.logging import print_json
from sparsevid.videos.check import clip_file_is_whole
from sparsevid.videos.sheets import GAP

ROOT = Path(__file__).parents[2]


def run(*arguments, folder: Path | None = None, expect: int = 0) -> subprocess.CompletedProcess:
    """Run a tool by its path, from another folder if asked."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=folder or ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def tool(name: str, *arguments, **options) -> subprocess.CompletedProcess:
    return run(ROOT / "tools" / f"{name}.py", *arguments, **options)


@pytest.fixture
def refused(capsys, monkeypatch):
    """A function that gives what a command prints when it refuses its arguments: run in this process, sparing the imports."""
    monkeypatch.chdir(ROOT)

    def call(name: str, *arguments) -> str:
        try:
            status = run_tool(name, [*map(str, arguments)])
        except SystemExit as error:  # argparse leaves this way
            status = error.code
        assert status == 2
        return capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps, trained by the tool."""
    folder = tmp_path_factory.mktemp("runs")
    small = ["model.hidden_size=32", "model.num_heads=2", "data.frames=4", "data.stride=2", "data.size=[32,32]"]
    short = ["train.steps=4", "train.warmup=0", "train.global_batch=4", "sample.steps=3"]
    tool("train", "configs/demo/natural.yaml", f"output={folder}", "name=tiny", *small, *short)
    return folder / "tiny"


def test_cost_as_json(capsys):
    printed = json.loads(tool("cost", "--preset", "SparseLatte-XL/2", "--json").stdout)
    assert {"preset", "layout", "dense_macs", "mean_macs", "ratio", "stages"} <= printed.keys()
    assert printed["layout"] == "2P 4(1M3S1R1D) 2D"
    assert printed["ratio"] == pytest.approx(printed["mean_macs"] / printed["dense_macs"])
    assert sum(stage["steps"] for stage in printed["stages"]) == 250
    assert run_tool("cost", ["--preset", "Latte-XL/2", "--json"]) == 0
    dense = json.loads(capsys.readouterr().out)
    assert dense["dense_macs"] == dense["mean_macs"] == printed["dense_macs"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--preset", "SparseLate-XL/2"], "Did you mean 'SparseLatte-XL/2'"),
        (["--layout", "27D"], "27 layers, but preset SparseLatte-XL/2 has 28"),
        (["--layout", "2P 26M"], "the M of layer 2 has no R"),
        (["--frames", "5"], "t = 5 does not divide the 16 frames"),
        (["--input-size", "16", "33", "32"], "cannot be cut into patches"),
    ],
)
def test_cost_of_what_cannot_be(arguments, reason, refused):
    assert reason in refused("cost", *arguments)


@pytest.mark.slow
def test_sample_writes_clips_and_contact_sheet(trained, tmp_path, capsys):
    tool("sample", trained, "--num", 3, "--steps", 2, "--batch", 2, "--device", "cpu", "--grid", "--out", tmp_path)
    assert clip_file_is_whole(tmp_path.with_name(f"{tmp_path.name}-grid.mp4"), "mp4", 4, 2 * 64 + GAP, 2 * 64 + GAP)
    names = {f"{i:06d}.mp4" for i in range(3)} | {"contact_sheet.png", "samples.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    with av.open(str(tmp_path / "000002.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert [(frame.width, frame.height) for frame in container.decode(video=0)] == [(32, 32)] * 4
    assert Image.open(tmp_path / "contact_sheet.png").size == (4 * 64 + 3 * 2, 3 * 64 + 2 * 2)
    scored = ["score", "--real", "demo", "--fake", str(tmp_path), "--protocol", str(_protocol(tmp_path)), "--json"]
    assert run_tool("evaluate", scored) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["metric"] == "FD-TransNetV2" and record["fake"]["clips"] == 3 and record["score"] > 0


def _protocol(folder: Path) -> Path:
    """A protocol of one's own, as short as the sampled clips."""
    path = folder / "short.yaml"
    own = ROOT / "sparsevid" / "evaluation" / "protocols" / "sparsevid" / "fd-transnetv2-v1.yaml"
    text = own.read_text(encoding="utf-8").replace("sparsevid/fd-transnetv2-v1", "short").replace("frames: 8", "frames: 4")
    path.write_text(text.replace("_count: 256", "_count: 3"), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("train", ["nothing.yaml"], "no config file nothing.yaml"),
        ("train", ["configs/demo/natural.yaml", "train.stepz=3"], "did you mean 'train.steps'"),
        ("train", ["configs/demo/natural.yaml", "data.card=nowhere"], "demo"),
        ("train", ["configs/demo/natural.yaml", "model.preset=Latte-M/2"], "no preset 'Latte-M/2'"),
        ("sample", ["nothing"], "neither a checkpoint"),
        ("sample", ["nothing", "--sampler", "magic"], "invalid choice"),
        ("sample", ["nothing", "--num", "0"], "--num is from 1 to"),
        ("sample", ["nothing", "--format", "mp4,avi"], "invalid choice: 'avi'"),
        ("sample", ["nothing", "--device", "gpu"], "no device 'gpu'; here there are cpu"),
        ("evaluate", ["score", "--real", "demo", "--fake", "nothing"], "nothing"),
    ],
)
def test_bad_input_gets_a_message_that_names_it(name, arguments, reason, tmp_path, refused):
    if name == "train":
        arguments = [*arguments, f"output={tmp_path}"]
    assert reason in refused(name, *arguments)


def test_errors_of_a_real_process_are_messages_without_traceback():
    done = tool("sample", "nothing", expect=2)
    assert "sample: error: nothing is neither a checkpoint" in done.stderr and "Traceback" not in done.stderr


def test_parts_of_two_checkpoints_are_refused(tmp_path, refused):
    """A model whose weights or autoencoder belong to another run."""
    mixed = write_checkpoint(tmp_path / "mixed")
    header = json.loads((mixed / "ema" / "config.json").read_text(encoding="utf-8"))
    header["spec"]["hidden_size"] = 48
    (mixed / "ema" / "config.json").write_text(json.dumps(header), encoding="utf-8")
    assert "the weights do not fit config.json" in refused("sample", mixed, "--out", tmp_path / "out")


def test_every_command_explains_itself(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    listed = capsys.readouterr().out
    for name in COMMANDS:
        assert name in listed
        with pytest.raises(SystemExit, match="0"):
            run_tool(name, ["--help"])
        assert f"usage: tools/{name}.py" in capsys.readouterr().out


def test_formats_by_spaces_or_commas():
    parser = argparse.ArgumentParser()
    sample.add_arguments(parser)
    for given in (["ffv1,mp4", "gif"], ["ffv1", "mp4", "gif"], ["ffv1,mp4,gif"]):
        assert sample.chosen_settings(parser.parse_args(["x", "--format", *given]))["format"] == ["ffv1", "mp4", "gif"]
    assert sample.chosen_settings(parser.parse_args(["x", "--preset", "demo"]))["format"] == ["mp4", "gif"]


def test_an_error_of_the_operating_system_is_a_message(refused):
    """An OSError of no class of its own, as that of a full disk; here a name that is too long."""
    assert "sample: error: " in refused("sample", "x" * 300)


def test_tables_as_json(capsys):
    assert run_tool("evaluate", ["protocols", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    (one,) = (each for each in listed if each["name"] == "sparsevid/fd-transnetv2-v1")
    assert run_tool("evaluate", ["protocols", one["name"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [one] and len(one["fingerprint"]) == 64
    assert run_tool("evaluate", ["selftest", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)
    assert checks and all(each["passed"] for each in checks)
    assert all(abs(each["found"] - each["expected"]) <= each["tolerance"] for each in checks)


def test_what_prints_a_table_prints_json_too():
    """Every module of a command that prints one declares `--json`, by the same function; the longest write a file beside it."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "sparsevid" / "cli").rglob("*.py")}
    tables = {name for name, text in texts.items() if re.search(r"print_table\(|as_markdown\(|study_table\(", text)}
    assert len(tables) > 15 and {name for name in tables if "add_json" not in texts[name]} == {"prepare_data.py"}
    assert '"--json", type=Path' in texts["prepare_data.py"]


@pytest.mark.slow
def test_a_study_as_json(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert run_tool("study", ["configs/study/paper.yaml", "--table", "--json"]) == 0
    rows = {each["row"]: each for each in json.loads(capsys.readouterr().out)["rows"]}
    sparse, dense = rows["sparse"], rows["dense"]
    change = sparse["to_control"]["loss"]
    means = [each["figures"]["loss"][""]["mean"] for each in (sparse, dense)]
    assert sparse["control"] == "dense" and change["mean"] == pytest.approx(means[0] - means[1])
    assert change["interval"][0] < change["mean"] < change["interval"][1] and change["verdict"] == "worse"


@pytest.mark.slow
def test_what_is_left_of_a_study_as_json(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert run_tool("study", ["configs/study/paper.yaml", "--list", "--json", "--rows", "sparse"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {each["row"] for each in listed} == {"sparse"} and [each["seed"] for each in listed] == [0, 1, 2]


def test_json_has_words_for_what_is_no_number_in_it(capsys):
    print_json({"psnr": [float("inf"), 1.5], "of": (float("nan"),)})
    assert json.loads(capsys.readouterr().out) == {"psnr": ["inf", 1.5], "of": ["nan"]}


@pytest.mark.slow
def test_what_is_published_passes_the_registrys_checks(tmp_path):
    """Wheel and source archive of what git has, built and looked at by the registry's own tool."""
    extra = tmp_path / "extra"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", extra, "build", "twine"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs build and twine, which cannot be fetched here")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if names.returncode:
        pytest.skip("no git, or no checkout")
    for name in names.stdout.split("\n"):
        if name and (ROOT / name).is_file():
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "source" / name)
    environment = {**os.environ, "PYTHONPATH": str(extra)}
    built = ["build", "--no-isolation", "--outdir", tmp_path / "dist", tmp_path / "source"]
    checked = ["twine", "check", "--strict", tmp_path / "dist" / "*"]
    for arguments in (built, checked):
        command = [sys.executable, "-m", *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert "sparsevid/py.typed" in zipfile.ZipFile(wheel).namelist() and len([*(tmp_path / "dist").glob("*.tar.gz")]) == 1


@pytest.mark.slow
def test_wheel_works_in_a_clean_environment(tmp_path):
    """Built, installed and run from an empty folder: package, protocols, cards and configs are all that is in it."""
    run("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[2].partition(".d")[2] for name in names} == {"", "ata", "ist-info"}
    shared = {name.partition("/share/sparsevid/")[2] for name in names} - {""}
    ours = [*ROOT.glob("datasets/*.yaml"), *ROOT.glob("configs/**/*.yaml"), *ROOT.glob("configs/**/*.json")]
    assert shared == {path.relative_to(ROOT).as_posix() for path in ours}
    clean = tmp_path / "clean"
    run("-m", "venv", "--without-pip", clean)
    python, empty = clean / "bin" / "python", tmp_path / "empty"
    (site,) = clean.glob("lib/python*/site-packages")
    own = {"OMP_NUM_THREADS": "1", "COLUMNS": "1000"}  # of lines that argparse would break
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, env=environment, cwd=tmp_path, check=True)
    others = dict.fromkeys(path for path in sys.path if path.endswith("-packages") or "/site-" in path)
    (site / "others.pth").write_text("\n".join(others), encoding="utf-8")  # what it needs, not installed anew
    empty.mkdir()

    def installed(*arguments: object, expect: int = 0) -> str:
        command = [python, "-I", clean / "bin" / "sparsevid", *arguments]
        done = subprocess.run(list(map(str, command)), cwd=empty, env=environment, capture_output=True, text=True)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert installed("--version").strip() == wheel.name.split("-")[1]
    assert str(clean / "share" / "sparsevid" / "configs" / "demo" / "sparse.yaml") in installed("demo", "--help")
    assert json.loads(installed("cost", "--json"))["preset"] == "SparseLatte-XL/2"
    assert all(each["passed"] for each in json.loads(installed("evaluate", "selftest", "--json")))
    assert "sparsevid/fd-transnetv2-v1" in installed("evaluate", "protocols", "--json")
    assert "available: atari" in installed("prepare_data", "none", expect=2)
    assert "parameters" in installed("memory", clean / "share" / "sparsevid" / "configs" / "demo" / "sparse.yaml")
    assert list(empty.iterdir()) == []


def test_output_of_any_encoding_takes_every_table():
    """What it has no character for is spelled out, such as the × of a factor."""
    command = [sys.executable, str(ROOT / "tools" / "cost.py"), "--preset", "SparseLatte-S/2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0 and b"SparseLatte-S/2" in done.stdout and done.stdout.isascii(), done.stderr
