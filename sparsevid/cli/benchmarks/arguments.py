"""Arguments that several actions of `sparsevid benchmark` have, what they name, and the command that they make.

They name presets, the model of a run, clips of a card or of a run, a device, and a file of JSON.
"""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sparsevid.cli import refuse_said_by_run
from sparsevid.sparsity.grid import Grid

if TYPE_CHECKING:
    import torch

    from sparsevid.benchmark.candidates import Candidate
    from sparsevid.data.tree.clip_rule import ClipRule
    from sparsevid.data.tree.manifest import Manifest
    from sparsevid.sparsity.spec import ModelSpec

RUN: dict[str, Any] = {"nargs": "+", "metavar": ("RUN", "KEY=VALUE")}
# Options for what a run says itself, and how it is said there.
SAID_BY_RUN = {
    "input_size": "data.frames=T data.size=[H,W]",
    "frames": "data.frames=T",
    "size": "data.size=[H,W]",
    "stride": "data.stride=N",
    "root": "data.root=DIR",
    "card": "data.card=CARD",
    "card_option": "data.card_options.KEY=VALUE",
    "preset": "model.preset=NAME",
}
# Arguments that say nothing about what is measured, and those without a name on the command line.
_SILENT = ("action", "command", "json", "markdown", "out")
_POSITIONAL = ("card", "models", "files", "folder")
_AGAIN = ("card_option", "protocol_option", "saving")  # given again for each value


class Clips(NamedTuple):
    """Clips to read, and the model that they train: its name and spec."""

    title: str
    model: str
    spec: "ModelSpec"
    manifest: "Manifest"
    rule: "ClipRule"
    size: tuple[int, int]


def add_models(parser: argparse.ArgumentParser, default: list[str], presets: str) -> None:
    """Declare what is compared: presets, a run's model, or both.

    Args:
        parser: of the action.
        default: presets where neither are given.
        presets: what the help says of them.
    """
    usual = f"default: {' '.join(default)}, beside a run none"
    parser.add_argument("--presets", nargs="+", metavar="NAME", help=f"{presets}; {usual}")
    parser.add_argument("--config", **RUN, help="the model of a run too: its YAML file or folder, and dotted settings over it")
    text = "on a GPU: let products and convolutions of float32 round their inputs to 10 bits of mantissa"
    parser.add_argument("--tf32", action="store_true", help=text)


def named_models(args: argparse.Namespace, default: list[str]) -> "list[str | Candidate]":
    """The presets, then the run's model. Presets that stand for none given are written into the arguments.

    Raises:
        ValueError: as `_run`.
    """
    if args.config is not None:
        return [*(args.presets or ()), _run(args)]
    args.presets = args.presets or default
    return list(args.presets)


def add_device(parser: argparse.ArgumentParser, what: str = "cpu, cuda or cuda:N") -> None:
    """Declare where the action computes."""
    parser.add_argument("--device", help=f"{what}; default: the GPU if there is one, else the CPU")


def named_device(args: argparse.Namespace) -> "torch.device":
    """The device that is named, or the usual one.

    Raises:
        ValueError, RankError: as `check_device`.
    """
    from sparsevid.system.distributed import check_device, default_device

    return check_device(args.device or default_device())


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declare the file for everything measured; the command looks at it before."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here too")


def clips_of_card(args: argparse.Namespace) -> Clips:
    """Clips of a card for a preset; the usual ones of both are written into the arguments where none are given.

    Raises:
        FileNotFoundError, KeyError, ValueError: there is no such card or preset, or they do not fit the sizes.
    """
    from sparsevid.benchmark.training import training_spec
    from sparsevid.data.tree.cards import load_card, resolve_root
    from sparsevid.data.tree.manifest import open_manifest

    args.card, args.preset = args.card or "demo", args.preset or "Latte-S/2"
    card = load_card(args.card, args.card_option or ())
    given = {name: getattr(args, name) for name in ("frames", "stride") if getattr(args, name) is not None}
    rule = replace(card.clip.clip_rule(), **given)
    size = tuple(args.size or card.clip.size)
    spec = training_spec(args.preset, rule.frames, size)
    manifest = open_manifest(resolve_root(card, args.root), card.rules()).select(card.split.default, or_all=True)
    return Clips(card.title or card.name, args.preset, spec, manifest, rule, size)


def clips_of_run(args: argparse.Namespace) -> Clips:
    """Clips and model of a run.

    Raises:
        FileNotFoundError, ValueError: as `_run` and `open_data`.
    """
    from sparsevid.data.open import open_data

    run = _run(args)
    config, _, dataset = open_data(run.run_config)
    return Clips(run.name, run.name, run.spec, dataset.manifest, dataset.rule, config.data.clip().size)


def _run(args: argparse.Namespace) -> "Candidate":
    """The model of the run that `--config` names. Where no preset needs them, options for what the run says are refused."""
    from sparsevid.benchmark.candidates import open_run

    if not getattr(args, "presets", None):
        refuse_said_by_run(args, SAID_BY_RUN, "--config RUN")
    return open_run(args.config[0], args.config[1:])


def command_line(args: argparse.Namespace) -> str:
    """The command with every option that rules the numbers, defaults included."""
    words = ["sparsevid", "benchmark", args.action]
    given = [value for name in _POSITIONAL if (value := getattr(args, name, None)) is not None]
    words += [str(each) for value in given for each in (value if isinstance(value, list) else [value])]
    for name, value in vars(args).items():
        if value is None or value is False or name in (*_SILENT, *_POSITIONAL):
            continue
        option = f"--{name.replace('_', '-')}"
        if name in _AGAIN:
            words += [word for each in value for word in (option, each)]
            continue
        words.append(option)
        if value is not True:
            each = value if isinstance(value, list) else [value]
            words += [",".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in each]
    return shlex.join(words)


def grid(text: str) -> Grid:
    """`4,8,8` as a grid."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"a sparse grid is T,H,W such as 4,8,8, got {text!r}")
    return Grid(*map(int, parts))
