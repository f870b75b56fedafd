"""`sparsevid benchmark decoders`: decoders on video files, each measurement in a process of its own."""

import argparse
from pathlib import Path

from sparsevid.benchmark import DECODER_LIMIT, DECODER_MEASURES
from sparsevid.cli.benchmarks.arguments import add_json, command_line
from sparsevid.system.logging import is_main
from sparsevid.videos import BACKENDS

HELP = "Measure decoders on video files: frames that are right, clips a second, memory over many openings."
EXAMPLES = """examples:
  sparsevid benchmark decoders videos/*.mp4 --json decoders.json
  sparsevid benchmark decoders cut.avi --backends pyav --measures accuracy --limit 60
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="video files, damaged ones too")
    backends = "pyav as the library reads, or decord (or its fork decord2) alone, without the library's checks"
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS, help=backends)
    parser.add_argument(
        "--measures", nargs="+", default=list(DECODER_MEASURES), choices=DECODER_MEASURES, help="what is measured"
    )
    parser.add_argument("--limit", type=float, default=DECODER_LIMIT, metavar="SECONDS", help="of one measurement")
    add_json(parser)


def measure(args: argparse.Namespace) -> dict:
    """Measure decoders, print them, and return everything as plain values."""
    import torch

    from sparsevid.benchmark.decoders import (
        DECODER_COLUMNS,
        DECODER_LINES,
        decoder_rows,
        decoders_as_json,
        describe_decoders,
        measure_decoders,
    )
    from sparsevid.benchmark.report import as_markdown, describe_run

    header = describe_run(command_line(args), torch.device("cpu")) | {"decoders": describe_decoders(args.backends)}
    measured = measure_decoders(args.files, args.backends, args.measures, limit=args.limit)
    if is_main():
        print(as_markdown(header, DECODER_LINES, DECODER_COLUMNS, decoder_rows(measured)))
    return decoders_as_json(header, measured)
