"""What the arguments of `sparsevid benchmark` name: presets, the model of a run, and clips of a card or of a run."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sparsevid.benchmark.candidates import Candidate
    from sparsevid.data.tree.clip_rule import ClipRule
    from sparsevid.data.tree.manifest import Manifest
    from sparsevid.sparsity.spec import ModelSpec

RUN = {"nargs": "+", "metavar": ("RUN", "KEY=VALUE")}
# What is compared where neither presets nor a run are given.
DEFAULTS = {
    "model": ["Latte-XL/2", "SparseLatte-XL/2"],
    "training": ["Latte-S/2", "SparseLatte-S/2"],
    "sampling": ["SparseLatte-XL/2"],
}
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


class Clips(NamedTuple):
    """Clips to read, and the model that they train: its name and spec."""

    title: str
    model: str
    spec: "ModelSpec"
    manifest: "Manifest"
    rule: "ClipRule"
    size: tuple[int, int]


def add_models(parser: argparse.ArgumentParser, action: str, presets: str) -> None:
    """Declare what is compared: presets, a run's model, or both.

    Args:
        parser: of the sub-command.
        action: its name.
        presets: what the help says of presets.
    """
    default = f"default: {' '.join(DEFAULTS[action])}, beside a run none"
    parser.add_argument("--presets", nargs="+", metavar="NAME", help=f"{presets}; {default}")
    parser.add_argument("--config", **RUN, help="the model of a run too: its YAML file or folder, and dotted settings over it")


def named_models(args: argparse.Namespace) -> "list[str | Candidate]":
    """The presets, then the run's model. Presets that stand for none given are written into the arguments.

    Raises:
        ValueError: as `_run`.
    """
    if args.config is not None:
        return [*(args.presets or ()), _run(args)]
    args.presets = args.presets or DEFAULTS[args.action]
    return list(args.presets)


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
    config, _, dataset = open_data(run.config)
    return Clips(run.name, run.name, run.spec, dataset.manifest, dataset.rule, tuple(config.data.size))


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


def _run(args: argparse.Namespace) -> "Candidate":
    """The model of the run that `--config` names. Where no preset needs them, options for what the run says are refused."""
    from sparsevid.benchmark.candidates import open_run

    if not getattr(args, "presets", None):
        refuse_said_by_run(args, SAID_BY_RUN, "--config RUN")
    return open_run(args.config[0], args.config[1:])
