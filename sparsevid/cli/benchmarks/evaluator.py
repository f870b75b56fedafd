"""`sparsevid benchmark evaluator`: what scoring many encoded videos takes."""

import argparse
from pathlib import Path

from sparsevid.cli.benchmarks.arguments import add_device, add_json, command_line, named_device
from sparsevid.system.logging import is_main

HELP = "Make real and generated videos, and measure what scoring them takes: time by part, and peak memory."
EXAMPLES = """examples:
  sparsevid benchmark evaluator videos --detector transnetv2
  sparsevid benchmark evaluator videos --count 256 --batch 8 --device cpu --json evaluator.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for the videos; those that are there are taken")
    parser.add_argument("--count", type=int, default=2048, metavar="N", help="videos on each side")
    detectors = "i3d with random weights, or transnetv2 with its own"
    parser.add_argument("--detector", default="i3d", choices=("i3d", "transnetv2"), help=detectors)
    parser.add_argument("--batch", type=int, default=16, metavar="B", help="clips of a forward")
    add_device(parser)
    add_json(parser)


def measure(args: argparse.Namespace) -> dict:
    """Make the videos, measure their scoring, print it, and return everything as plain values."""
    from sparsevid.benchmark.evaluator import (
        EVALUATOR_COLUMNS,
        EVALUATOR_LINES,
        evaluator_as_json,
        evaluator_rows,
        measure_evaluator,
    )
    from sparsevid.benchmark.report import as_markdown, describe_run

    device = named_device(args)
    header = describe_run(command_line(args), device)
    options = {"count": args.count, "detector": args.detector, "batch": args.batch, "device": device}
    measured = measure_evaluator(args.folder, **options)
    if is_main():
        print(as_markdown(header, EVALUATOR_LINES, EVALUATOR_COLUMNS, evaluator_rows(measured)))
    return evaluator_as_json(header, measured)
