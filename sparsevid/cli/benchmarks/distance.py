"""`sparsevid benchmark distance`: the Fréchet distance in two forms."""

import argparse

from sparsevid.cli.benchmarks.arguments import add_json, command_line

HELP = "Time the Fréchet distance in two forms."
EXAMPLES = """examples:
  sparsevid benchmark distance --sizes 2048,400 512,1408
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = [(2048, 400), (2048, 1408), (512, 1408)]  # of FVD, of content-debiased FVD, and of that with few clips
    parser.add_argument("--sizes", nargs="+", type=_size, default=sizes, metavar="N,D", help="clips on each side, dimensions")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed turns of each size")
    add_json(parser)


def measure(args: argparse.Namespace) -> dict:
    """Measure distances, print them, and return everything as plain values."""
    import torch

    from sparsevid.benchmark.distance import DISTANCE_COLUMNS, distance_as_json, distance_rows, measure_distances
    from sparsevid.benchmark.report import as_markdown, describe_run

    header = describe_run(command_line(args), torch.device("cpu"))
    measured = measure_distances(args.sizes, repeats=args.repeats)
    print(as_markdown(header, [], DISTANCE_COLUMNS, distance_rows(measured)))
    return distance_as_json(header, measured)


def _size(text: str) -> tuple[int, int]:
    """`2048,400` as (N, D)."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"a size is N,D such as 2048,400, got {text!r}")
    return int(parts[0]), int(parts[1])
