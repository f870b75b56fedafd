"""`sparsevid evaluate prompts`: prompts out of a data set's captions, to sample and to score by."""

import argparse
from pathlib import Path

from sparsevid.cli.evaluations.arguments import check_output
from sparsevid.system.logging import get_logger, is_main

HELP = "draw prompts from a file of captions"
EXAMPLES = """examples:
  sparsevid evaluate prompts --captions captions_val2014.json --count 30000 --out prompts.txt
  sparsevid sample models/pixart --prompts prompts.txt --num 30000 --out samples
"""
logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    captions = "COCO's captions_….json, or a text file with one a line"
    parser.add_argument("--captions", metavar="FILE", type=Path, help=captions, required=True)
    parser.add_argument("--count", metavar="N", type=int, help="of different images, one caption each; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--out", metavar="FILE", type=Path, help="text file to write, a prompt a line (.txt)", required=True)


def run(args: argparse.Namespace) -> int:
    """Write the file. Returns 0; failures raise."""
    from sparsevid.evaluation.prompts import digest_of, draw_prompts
    from sparsevid.system.atomic import write_text

    check_output(args.out, ".txt")
    prompts = draw_prompts(args.captions, args.count, args.seed)
    if is_main():
        write_text(args.out, "".join(f"{each}\n" for each in prompts))
        logger.info(
            "%s: %d prompts, %d of them different, SHA-256 %s", args.out, len(prompts), len(set(prompts)), digest_of(prompts)
        )
    return 0
