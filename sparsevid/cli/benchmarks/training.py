"""`sparsevid benchmark training`: training steps of models."""

import argparse

from sparsevid.cli import check_least
from sparsevid.cli.benchmarks.arguments import add_device, add_json, add_models, command_line, named_device, named_models
from sparsevid.system.logging import is_main

HELP = "Time training steps of models, each stage of their token schedule."
EXAMPLES = """examples:
  sparsevid benchmark training --presets Latte-S/2 SparseLatte-S/2
  sparsevid benchmark training --config runs/demo/sparse --batch 4
"""
DEFAULT = ["Latte-S/2", "SparseLatte-S/2"]  # where neither presets nor a run are given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_models(parser, DEFAULT, "the first is 1")
    parser.add_argument("--frames", type=int, metavar="T", help="of a clip of the presets; default: 16")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of it in pixels; default: 256 256")
    parser.add_argument("--batch", type=int, default=1, metavar="B", help="clips of a step")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed turns; each goes through everything")
    add_device(parser)
    add_json(parser)


def measure(args: argparse.Namespace) -> dict:
    """Measure training steps, print them, and return everything as plain values."""
    from dataclasses import asdict

    from sparsevid.benchmark.candidates import Candidate
    from sparsevid.benchmark.report import TRAINING_COLUMNS, as_markdown, describe_run, training_lines, training_rows
    from sparsevid.benchmark.training import measure_training

    check_least(args, frames=1, batch=1, repeats=1)
    models = named_models(args, DEFAULT)
    first = models[0]
    if args.config is not None and not args.presets and isinstance(first, Candidate) and first.spec.is_sparse:
        models.insert(0, first.dense)
    args.frames, args.size = 16 if args.frames is None else args.frames, args.size or [256, 256]
    device = named_device(args)
    header = describe_run(command_line(args), device)
    options = {"frames": args.frames, "size": tuple(args.size), "batch": args.batch, "repeats": args.repeats}
    measured = measure_training(models, device=device, **options)
    if is_main():
        print(as_markdown(header, training_lines(measured), TRAINING_COLUMNS, training_rows(measured)))
    return {"header": header, "steps": [asdict(time) for time in measured]}
