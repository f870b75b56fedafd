"""`sparsevid make_data`: a data set that a program makes, the same on every machine, as a tree that its card reads."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from sparsevid.cli import add_json_flag, check_least
from sparsevid.data.made import MADE
from sparsevid.system.logging import print_json, print_table

EXAMPLES = """examples:
  sparsevid make_data atari --out data/atari                     # the set that the card atari describes
  sparsevid make_data atari --out data/atari --train 10 --test 2 --json
  sparsevid make_data atari --out data/large --size 128 128 --frames 32 --skip 2 --games pong breakout

then read as SPARSEVID_DATA=data sparsevid prepare_data atari, or with --root. Killed, the same command goes on where it was. A
clip depends on its seed, split, class and number alone: a larger set begins with the smaller one. The hash is over all decoded
frames; of the set with all defaults it is compared with the card's, and the status is 1 if it is another.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("set", choices=list(MADE), help="; ".join(f"{name}: {text}" for name, text in MADE.items()))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the set's folder")
    unless = "default: the card's"
    parser.add_argument("--train", type=int, metavar="N", help=f"clips of a class to train on; {unless}")
    parser.add_argument("--test", type=int, metavar="N", help=f"clips of a class to test on; {unless}")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help=f"height and width in pixels; {unless}")
    parser.add_argument("--frames", type=int, metavar="T", help=f"frames of a clip; {unless}")
    parser.add_argument("--skip", type=int, metavar="N", help="frames of the source (60 a second for atari) from one frame "
                        f"of a clip to the next; {unless}")  # fmt: skip
    parser.add_argument("--games", "--classes", nargs="+", dest="classes", metavar="NAME", help=f"classes; {unless}, all")
    parser.add_argument("--seed", type=int, metavar="N", help=f"another one, other clips; {unless}")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that make clips; default: one a core; 0: this one")
    add_json_flag(parser, "print JSON in place of the table: videos, frames, sha256 and more")


def run(args: argparse.Namespace) -> int:
    """Make the set and say what it is. Returns 0; 1 for a default set that is not the card's. Failures raise."""
    from sparsevid.data.made.default import against_card, set_class
    from sparsevid.data.made.folder import make

    check_least(args, workers=0, train=0, test=0, seed=0, frames=1, skip=1)
    kind = set_class(args.set)
    given = {name: getattr(args, name) for name in ("frames", "skip", "seed")}
    given |= {name: tuple(value) for name in ("size", "classes") if (value := getattr(args, name)) is not None}
    given |= {"classes": tuple(sorted(given["classes"]))} if "classes" in given else {}
    made = kind(replace(kind.defaults, **{name: value for name, value in given.items() if value is not None}))
    counts = {split: count if (said := getattr(args, split)) is None else said for split, count in kind.default_counts.items()}
    workers = len(os.sched_getaffinity(0)) if args.workers is None else args.workers
    result = make(made, args.out, counts, workers)
    compared = against_card(made, counts, result.sha256)
    report = {name: getattr(result, name) for name in ("videos", "frames", "sha256", "new")}
    report |= {"made_with": made.made_with, "card": None if compared is None else compared.same}
    if args.json:
        print_json(report)
    else:
        rows = [[split, str(counts[split] * len(made.settings.classes))] for split in counts]
        rows += [["classes", str(len(made.settings.classes))], ["frames", str(result.frames)], ["made now", str(result.new)]]
        rows += [["sha256", result.sha256], ["made with", made.made_with], ["folder", str(args.out)]]
        print_table(f"{made.name}, {result.videos} videos", [], rows)
    return 0 if compared is None else compared.say()
