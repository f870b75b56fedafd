"""What all commands have in common: their help, and what they say of what a user can mend."""

import argparse
import errno
import subprocess
import sys
from pathlib import Path

import pytest

from sparsevid.cli import LESS_MEMORY, _attempt, run_tool
from sparsevid.system.errors import MORE_ROOM, told

ROOT = Path(__file__).parents[2]
# Prints the help of every command, and of every action of one, where PyTorch cannot be imported.
HELP_OF_ALL = """
import argparse, sys
sys.modules["torch"] = None
from sparsevid.cli import COMMANDS, _Formatter, _module

for name in COMMANDS:
    parser = argparse.ArgumentParser(prog=name, formatter_class=_Formatter)
    _module(name).add_arguments(parser)
    below = [each.choices for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    for each in (parser, *(action for choices in below for action in choices.values())):
        print(each.format_help(), end="\\0")
"""


def ended(error: BaseException, capsys) -> tuple[int, str]:
    """Status and message of a command that raises an error."""

    def run(args: argparse.Namespace) -> int:
        raise error

    return _attempt("sample", run, argparse.Namespace()), capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes")]
)
def test_what_asks_for_too_much_is_told_so(error, capsys):
    status, said = ended(error, capsys)
    assert status == 2 and f"sample: error: {LESS_MEMORY}" in said
    status, said = ended(Exception("No space left on device (os error 28)"), capsys)  # as of tokenizers
    assert status == 2 and f"sample: error: {MORE_ROOM}" in said
    with pytest.raises(RuntimeError, match="a bug"):
        ended(RuntimeError("a bug"), capsys)


@pytest.mark.parametrize(
    ("number", "next_step"),
    [
        (errno.ENOENT, "there is no file or folder there"),
        (errno.EISDIR, "where a file is wanted"),
        (errno.ENOTDIR, "where a folder is wanted"),
        (errno.EACCES, "change its permissions"),
        (errno.ENOSPC, "make room"),
    ],
)
def test_errors_of_the_system_name_the_file_and_what_to_do(number, next_step):
    said = told(OSError(number, "as the system says", "there"))
    assert "there" in said and next_step in said and "Errno" not in said


def test_every_help_has_examples_and_defaults_and_waits_for_no_pytorch():
    done = subprocess.run([sys.executable, "-c", HELP_OF_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    texts = {text.split()[1]: text for text in done.stdout.split("\0") if text}
    texts |= {" ".join(text.split()[1:3]): text for text in done.stdout.split("\0") if text}
    assert len(texts) > 50
    assert [name for name, text in texts.items() if "example" not in text] == []
    assert "the noise of sample i" in texts["sample"] and "(default: 0)" in texts["sample"]
    assert "default: adm/fid-50k" in texts["evaluate reference"] and "(default" not in texts["cost"]


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("cost", ["--frames", "0"], "t = 0 does not divide"),
        ("cost", ["--grid", "4", "8", "8"], "--grid cannot be used here"),
        ("cost", ["--layout", ""], "the layout is empty"),
        ("cost", ["--layout", "99999999999D"], "99999999999 layers; accepted are up to"),
        ("cost", ["--preset", ""], "no preset ''"),
        ("cost", ["--preset", "Latte-XL/2", "--r-min", "0.5"], "--r-min cannot be used here"),
        ("cost", ["--merge-text", "dense"], "--merge-text is of models of text"),
        ("cost", ["--input-size", "16", "3200000", "3200000"], "each is from 1 to 4096"),
        ("memory", ["configs/demo/sparse.yaml", "model.checkpoint_layers=RQ"], "Q is no kind of layer"),
        ("memory", ["configs/demo/sparse.yaml", "data.size=32"], "data.size: a list is wanted"),
        ("sample", ["nothing", "--num", "99999999999"], "--num is from 1 to"),
        ("evaluate", ["score", "--fake", "configs"], "name a protocol (--protocol)"),
        ("prepare_data", ["demo", "--workers", "0"], "--workers is at least 1"),
        ("encode_latents", ["demo", "--out", "there", "--shard-mb", "0"], "--shard-mb is at least 1, got 0"),
        ("encode_captions", ["demo", "--out", "there", "--encoder", "there", "--batch", "0"], "--batch is at least 1, got 0"),
        ("make_data", ["atari", "--out", "there", "--skip", "0"], "--skip is at least 1, got 0"),
        ("benchmark", ["gpu", "--out", "there", "--budget", "nan"], "--budget is a number of seconds above 0"),
        ("benchmark", ["training", "--frames", "0"], "--frames is at least 1, got 0"),
        (
            "evaluate",
            [
                "features",
                "--source",
                "configs",
                "--role",
                "real",
                "--out",
                "x.safetensors",
                "--detector",
                "transnetv2",
                "--protocol-option",
                "real_strid=1",
            ],
            "protocol option real_strid=1: unknown key",
        ),
        ("calibrate", ["nothing", "--steps", "0"], "--steps is at least 1, got 0"),
        ("prepare_data", ["demo", "--json", "configs"], "--json configs is there and no file"),
        ("convert", ["configs", "there", "--heads", "0"], "--heads cannot be used here"),
    ],
)
def test_wrong_usage_names_what_was_found_and_what_is_accepted(name, arguments, reason, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert run_tool(name, arguments) == 2
    assert reason in capsys.readouterr().err


def test_yaml_that_is_no_text_is_named(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    for name, arguments in (("train", [path]), ("study", [path]), ("evaluate", ["protocols", path]), ("prepare_data", [path])):
        assert run_tool(name, [*map(str, arguments)]) == 2
        assert f"{path} is not valid YAML, which is text in UTF-8" in capsys.readouterr().err
