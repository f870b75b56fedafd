"""`sparsevid evaluate likeness`: clips of one noise against each other, pixel by pixel."""

import argparse
from dataclasses import asdict
from pathlib import Path

from sparsevid.cli import add_json_flag
from sparsevid.system.logging import print_json, print_table

HELP = "PSNR and SSIM of clips against those that were made from the same noise"
EXAMPLES = """examples:
  sparsevid evaluate likeness --clips samples-with-a-cache --reference samples
  sparsevid evaluate likeness --clips samples-in-bfloat16 --reference samples --count 16 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clips", metavar="DIR", type=Path, help="generated clips", required=True)
    parser.add_argument("--reference", metavar="DIR", type=Path, help="clips of the same names and noise", required=True)
    parser.add_argument("--count", metavar="N", type=int, help="the first N alone; default: all")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Print both, the mean over all frames. Returns 0; failures raise."""
    from sparsevid.evaluation.likeness import folder_likeness

    found = folder_likeness(args.clips, args.reference, args.count)
    if args.json:
        print_json(asdict(found))
    else:
        rows = [[f"{found.psnr:.2f}", f"{found.ssim:.4f}", str(found.clips), str(found.same)]]
        print_table(f"{args.clips} against {args.reference}", ["PSNR, dB", "SSIM", "clips", "of them the same"], rows)
    return 0
