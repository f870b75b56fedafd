"""Commands: one thin module each, with `add_arguments` and `run`. `tools/X.py` and `sparsevid X` both call them.

Arguments come in; text, files and an exit status go out. What a command does stands in another room, but
for the demo. A command is imported when it is called: `sparsevid --help` waits for nothing.

It imports any room below.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from sparsevid import __version__
from sparsevid.system.atomic import check_writable
from sparsevid.system.errors import EXPECTED_ERRORS, MORE_ROOM, is_disk_full, is_out_of_memory, told

if TYPE_CHECKING:
    import torch

COMMANDS = {
    "cost": "Count the multiply-adds of a model, by stage of its token schedule, against the dense model of its size.",
    "memory": "Count what a run's training needs before anything is built: batch, tokens, multiply-adds, memory by part.",
    "train": "Train a model. Killed or finished runs go on from their newest good checkpoint.",
    "sample": "Generate clips from a checkpoint as files, on any number of processes; files that are there are kept.",
    "ui": "Show a page in the browser, of this machine alone: clips of two ways to sample side by side, with cost and time.",
    "calibrate": "Fit what caches have to know of a checkpoint, on some samples, and say how good the fit is.",
    "evaluate": "Score generated videos against real ones, and write the score with its protocol beside them.",
    "analyse": "Show what attention does in each layer of a checkpoint: how uniform, how local, and what its mean would lose.",
    "report": "Make one static page of studies and runs: clips in step, cost against quality, tables that sort.",
    "convert": "Convert public Latte, DiT and SparseDiT checkpoints and back, dense models to sparse ones; export a run.",
    "prepare_data": "Look into every video of a dataset once: counts against its card, classes, what is unusable, a sheet.",
    "make_data": "Make a data set by a program, the same to the bit on every machine: games, played at random in an emulator.",
    "encode_latents": "Encode every frame of a dataset once: training then decodes no video. Killed, it goes on where it was.",
    "encode_captions": "Encode every caption of a dataset once: training then needs no text encoder. Killed, it goes on.",
    "benchmark": "Time models, training, sampling, reading and scoring; compare what samplers make of a checkpoint.",
    "study": "Train, sample and measure a table of runs, each for some seeds: resumable, within a budget, with intervals.",
    "search": "Find the layout and token schedule of least loss under a budget of multiply-adds, from a dense checkpoint.",
    "demo": "Make the small standard set, train a sparse video model on it, sample, score the samples, and print a table.",
}
LESS_MEMORY = "out of memory, ask for less at a time: batch, size, frames, processes (`sparsevid memory RUN` counts training's)"
TRACEBACK = "SPARSEVID_TRACEBACK"  # set to see where an expected error was raised


def main(argv: Sequence[str] | None = None) -> int:
    """The console command `sparsevid`."""
    _print_anything()
    argv = sys.argv[1:] if argv is None else argv
    _suggest(argv[:1])
    parser = argparse.ArgumentParser(
        prog="sparsevid",
        description="Sparse-dense diffusion transformers for video: train, sample, evaluate, and count what they cost.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, formatter_class=_Formatter)
        if name in argv[:1]:
            _module(name).add_arguments(command)
    arguments = parser.parse_args(argv)
    return _run(arguments.command, _module(arguments.command).run, arguments)


def run_tool(name: str, argv: Sequence[str] | None = None) -> int:
    """What `tools/<name>.py` calls: the same command under its own name."""
    _print_anything()
    parser = argparse.ArgumentParser(prog=f"tools/{name}.py", description=COMMANDS[name], formatter_class=_Formatter)
    _module(name).add_arguments(parser)
    return _run(name, _module(name).run, parser.parse_args(argv))


def _suggest(first: Sequence[str]) -> None:
    """Say on standard error which command a misspelt one may have been meant as; the parser then refuses it."""
    for word in first:
        near = [] if word in COMMANDS or word.startswith("-") else get_close_matches(word.replace("-", "_"), COMMANDS, n=1)
        if near:
            print(f"sparsevid: there is no command {word!r}; did you mean {near[0]!r}?", file=sys.stderr)


def _module(name: str) -> ModuleType:
    return import_module(f"sparsevid.cli.{name}")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults in the help where there are any, examples as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        none = action.default is None or action.default is False or action.default == []  # the list: nothing has to be given
        if none or "default: " in (action.help or "").lower():  # 0 is one, and said; what says its own says when it holds
            return action.help
        if isinstance(action.default, list) and all(isinstance(each, str | int) for each in action.default):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"  # as it would be given
        return super()._get_help_string(action)


def add_card(parser: argparse.ArgumentParser) -> None:
    """Declare the card that a command is about, and where its data are."""
    parser.add_argument("card", metavar="CARD", help="a dataset card: the name of a file in datasets/, or a YAML file")
    add_card_option(parser)
    parser.add_argument("--root", metavar="DIR", help="the folder with the data; default: the card's")


def add_card_option(parser: argparse.ArgumentParser) -> None:
    """Declare how a command's card is changed, the same for all that take one."""
    text = "a key of the card, such as split.max_missing=1 or clip.size=[64,64], instead of the card's own; may be given again"
    parser.add_argument("--card-option", action="append", metavar="KEY=VALUE", help=text)


def add_json_flag(parser: argparse.ArgumentParser, what: str = "print JSON in place of the table") -> None:
    """Declare that a command's table may be had as JSON, the same for all; `logging.print_json` prints it.

    What takes long and measures much, `benchmark` and `prepare_data`, writes a file instead, `--json FILE`, beside the table.
    """
    parser.add_argument("--json", action="store_true", help=what)


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Raise ValueError before the work where an option that is given is below its least value."""
    for name, value in least.items():
        if (given := getattr(args, name)) is not None and given < value:
            raise ValueError(f"--{name.replace('_', '-')} is at least {value}, got {given}")


def refuse(args: argparse.Namespace, names: Iterable[str], reason: str) -> None:
    """Raise ValueError for options of these names that are given, and would change nothing."""
    values = {name: getattr(args, name) for name in names}
    if given := [f"--{name.replace('_', '-')}" for name, value in values.items() if value is not None and value is not False]:
        raise ValueError(f"{', '.join(given)} cannot be used here: {reason}")


def check_file(path: Path, option: str) -> None:
    """Raise before the work if an option names a file that could not be written, or something else than a file."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{option} {path}: there is no folder {folder}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{option} {path} is there and no file")
    check_writable(folder)


def add_autoencoder_option(parser: argparse._ActionsContainer, whose: str = "the checkpoint's") -> None:
    """Declare what stands in the place of a checkpoint's own autoencoder, the same for all commands that decode or encode.

    Args:
        parser: of the command, or a group of it.
        whose: own autoencoder is replaced.
    """
    kinds = "kl:, temporal: or wan: with a folder or hub id behind it, linear:FOLDER, or pixels"
    parser.add_argument("--autoencoder", metavar="WHAT", help=f"{kinds}, in place of {whose} own")


def add_plot_switch(parser: argparse.ArgumentParser, what: str = "the picture") -> None:
    """Declare whether a command draws beside what it prints; `check_results` sees to it."""
    parser.add_argument("--plot", choices=("on", "off"), default="on", help=f"draw {what}, which needs matplotlib")


def add_model_options(
    parser: argparse._ActionsContainer,
    device: str = "the GPU of each process, where there is one",
    *,
    dtype: str | None = None,
    whose: str = "the checkpoint's",
) -> None:
    """Declare which weights of a model are loaded, what decodes, and where it computes.

    Args:
        parser: of the command, or a group of it.
        device: where, by default.
        dtype: what `--dtype` is of; None: the command has no such option.
        whose: own autoencoder is replaced by `--autoencoder`.
    """
    parser.add_argument("--weights", choices=("ema", "model"), help="averaged or raw weights of a checkpoint. Default: ema")
    add_autoencoder_option(parser, whose)
    parser.add_argument("--device", help=f"such as cpu or cuda:1. Default: {device}")
    if dtype is not None:
        parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=f"what {dtype} in")


def add_sampler_options(group: argparse._ArgumentGroup) -> None:
    """Declare how a model is sampled, as far as all commands that sample one let it be chosen."""
    from sparsevid.diffusion import SAMPLER_NAMES
    from sparsevid.generation import SCHEDULES

    group.add_argument("--sampler", choices=SAMPLER_NAMES, help="euler and heun are of flow models, the others of diffusion")
    group.add_argument("--steps", type=int, help="sampling steps")
    group.add_argument("--guidance", type=float, help="scale of classifier-free guidance, 1 = none")
    schedule = "tokens of a sparse model: the run's schedule over time, its default grid at all times, or all tokens"
    group.add_argument("--schedule", choices=SCHEDULES, help=schedule)


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is said of prompts, the same for all commands that sample a model."""
    from sparsevid.diffusion import MASKS
    from sparsevid.generation import NULL_CAPTIONS, PADDINGS

    group = parser.add_argument_group("prompts, of a model of text")
    text = "texts to go through in turn; one that is the path of a text file stands for its lines, without the empty ones"
    group.add_argument("--prompts", nargs="+", metavar="TEXT_OR_FILE", help=text)
    group.add_argument("--negative", metavar="TEXT", help='what guidance compares with, in place of "no prompt"')
    whose = (
        "whose features mean \"no prompt\": the model's file's, or those of the empty text. Default: the file's, if it has any"
    )
    group.add_argument("--null-caption", choices=NULL_CAPTIONS, help=whose)
    mask = "which of its tokens are heard: its own, or as many as of the prompt beside it. Default: the config's text.null_mask"
    group.add_argument("--null-mask", choices=MASKS, help=mask)
    padding = "tokens behind a prompt's own: unheard, or heard as in the public pipeline of Latte-1. Default: masked"
    group.add_argument("--padding", choices=PADDINGS, help=padding)
    encoder = "T5 that encodes them: a folder or a hub id. Default: what the model's config names"
    group.add_argument("--text-encoder", metavar="SOURCE", help=encoder)


def refuse_said_by_run(args: argparse.Namespace, said: dict[str, str], where: str) -> None:
    """Raise ValueError for an option that is given and that the run says itself.

    Args:
        args: of the command.
        said: names of such options, and how a run says them.
        where: behind which argument settings of the run stand.
    """
    doubled = next((name for name in said if getattr(args, name, None) is not None), None)
    if doubled is not None:
        option = "CARD" if doubled == "card" else f"--{doubled.replace('_', '-')}"
        raise ValueError(f"{option} goes with presets; of a run it is said behind {where}: {said[doubled]}")


@contextmanager
def all_ranks(device: str | None = None) -> Iterator["torch.device | None"]:
    """The block on all ranks of a launcher, if there is one, once they have met; they wait long for each other.

    They part at its end, and not after an error: other ranks may be gone then, and parting would wait for them.

    Args:
        device: what `--device` says.

    Yields:
        The device of this name; None: each rank's own.
    """
    from sparsevid.system.distributed import LONG_WAIT, check_device, check_ranks, init_process_group_if_launched, shutdown

    named = None if device is None else check_device(device)
    init_process_group_if_launched(LONG_WAIT, device=named)
    check_ranks(device=named)
    yield named
    shutdown()


def check_results(folder: Path, plot: str) -> None:
    """Make the folder of a command's results, and refuse early what could not be written at the end; on all ranks together.

    Args:
        folder: for the results.
        plot: what `--plot` says.
    """
    from sparsevid.evaluation.plot import check_can_draw
    from sparsevid.system.atomic import make_writable
    from sparsevid.system.distributed import from_main

    def check() -> None:
        if plot == "on":
            check_can_draw()
        make_writable(folder)

    from_main(check, (OSError, ImportError))


def _print_anything() -> None:
    """Let streams of any encoding take any text: what they have no character for is spelled out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(name: str, run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a command. A launcher learns what it raises, so that its traceback heads the launcher's report."""
    from torch.distributed.elastic.multiprocessing.errors import record

    from sparsevid.system.distributed import is_launched

    if not is_launched():
        return _attempt(name, run, arguments)
    status = record(_attempt)(name, run, arguments)
    assert status is not None  # None is of errors, which are raised again
    return status


def _attempt(name: str, run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a command; an error that the user can mend is a message, not a traceback, and said by one rank for all.

    `~` in its paths is the home folder.
    """
    from sparsevid.system.distributed import first_to_say, is_launched
    from sparsevid.system.home import ensure_home, expand_home
    from sparsevid.system.store import RankError

    try:
        ensure_home()
        return run(argparse.Namespace(**expand_home(vars(arguments))))
    except EXPECTED_ERRORS as error:
        if os.environ.get(TRACEBACK):
            raise
        text, alike = told(error), not isinstance(error, RankError)
    except Exception as error:
        limit = LESS_MEMORY if is_out_of_memory(error) else MORE_ROOM if is_disk_full(error) else None
        if limit is None or os.environ.get(TRACEBACK):
            raise
        text, alike = f"{limit}: {error or type(error).__name__}", True
    except KeyboardInterrupt:
        print(f"sparsevid {name}: interrupted", file=sys.stderr)
        return 130
    if first_to_say(text, alike=alike):
        rank = f"rank {os.environ['RANK']}: " if is_launched() else ""
        print(f"sparsevid {name}: {rank}error: {text}", file=sys.stderr)
    return 2
