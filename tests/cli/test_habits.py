"""What all commands have in common: their help, and what they say of what a user can mend."""

import argparse
import errno
import subprocess
import sys

import pytest

from sparsevid.cli import LESS_MEMORY, _attempt
from sparsevid.system.errors import told

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
def test_what_asks_for_too_much_memory_is_told_so(error, capsys):
    status, said = ended(error, capsys)
    assert status == 2 and "sample: error: out of memory" in said and LESS_MEMORY in said
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
