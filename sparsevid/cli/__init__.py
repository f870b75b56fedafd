"""Commands: one thin module each, with NAME, HELP, `add_arguments` and `run`. `tools/X.py` and `sparsevid X` both call them.

Arguments come in; text, files and an exit status go out. What a command does stands in another room.

It imports any room below.
"""

import argparse
import io
import os
import sys
from importlib import import_module

from torch.distributed.elastic.multiprocessing.errors import record

from sparsevid.data.workers import WorkerError
from sparsevid.generation import GenerationError
from sparsevid.models.attention import BackendError
from sparsevid.runs.checkpoints import CheckpointError, TrainingError
from sparsevid.system.distributed import RankError, first_to_say, is_launched
from sparsevid.system.home import ensure_home, expand_home
from sparsevid.videos.read import DecodeError

COMMANDS = ("cost", "train", "sample", "evaluate", "convert", "prepare_data", "encode_latents", "benchmark", "demo")
# What a user can mend. Plain RuntimeErrors (out of memory, …) keep their traceback.
EXPECTED_ERRORS = (ValueError, KeyError, OSError, ImportError)
EXPECTED_ERRORS += (CheckpointError, TrainingError, DecodeError, BackendError, RankError, GenerationError, WorkerError)
TRACEBACK = "SPARSEVID_TRACEBACK"  # set to see where an expected error was raised


def main(argv: list[str] | None = None) -> int:
    """The console command `sparsevid`."""
    _print_anything()
    parser = argparse.ArgumentParser(
        prog="sparsevid",
        description="Sparse-dense diffusion transformers for video: train, sample, evaluate, and count what they cost.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"sparsevid.cli.{name}")
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP, formatter_class=_Formatter)
        module.add_arguments(sub)
    arguments = parser.parse_args(argv)
    return _run(import_module(f"sparsevid.cli.{arguments.command}"), arguments)


def run_tool(name: str, argv: list[str] | None = None) -> int:
    """What `tools/<name>.py` calls: the same command under its own name."""
    _print_anything()
    module = import_module(f"sparsevid.cli.{name}")
    parser = argparse.ArgumentParser(prog=f"tools/{name}.py", description=module.HELP, formatter_class=_Formatter)
    module.add_arguments(parser)
    return _run(module, parser.parse_args(argv))


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults in the help where there are any, examples as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def add_card_option(parser: argparse.ArgumentParser) -> None:
    """Declare how a command's card is changed, the same for all that take one."""
    text = "a key of the card, such as split.max_missing=1 or clip.size=[64,64], instead of the card's own; may be given again"
    parser.add_argument("--card-option", action="append", metavar="KEY=VALUE", help=text)


def _print_anything() -> None:
    """Let streams of any encoding take any text: what they have no character for is spelled out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(module, arguments: argparse.Namespace) -> int:
    """Run a command. A launcher learns what it raises, so that its traceback heads the launcher's report."""
    return (record(_attempt) if is_launched() else _attempt)(module, arguments)


def _attempt(module, arguments: argparse.Namespace) -> int:
    """Run a command; an error that the user can mend is a message, not a traceback, and said by one rank for all.

    `~` in its paths is the home folder.
    """
    try:
        ensure_home()
        return module.run(argparse.Namespace(**expand_home(vars(arguments))))
    except EXPECTED_ERRORS as error:
        if os.environ.get(TRACEBACK):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        if first_to_say(str(text), alike=not isinstance(error, RankError)):
            rank = f"rank {os.environ['RANK']}: " if is_launched() else ""
            print(f"sparsevid {module.NAME}: {rank}error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sparsevid {module.NAME}: interrupted", file=sys.stderr)
        return 130
