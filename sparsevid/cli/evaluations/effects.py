"""`sparsevid evaluate effects`: how far other choices than a protocol's move a score."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsevid.cli import add_card_option, add_json_flag
from sparsevid.cli.evaluations.arguments import (
    KEEP,
    add_measuring_arguments,
    check_folder,
    check_output,
    measuring,
    video_source,
)
from sparsevid.system.atomic import write_json
from sparsevid.system.logging import is_main, print_json, print_table

HELP = "how far split, stride, number, resize, codec and draws move a score"
EXAMPLES = """examples:
  sparsevid evaluate effects --real ucf101 --fake samples --protocol sparsevid/v2 --keep features --out effects.json
  sparsevid evaluate effects --real demo --fake samples --detector transnetv2 --count 64 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--real", metavar="CARD_OR_DIR", help="real videos: a dataset card, or a folder", required=True)
    add_card_option(parser)
    parser.add_argument("--fake", metavar="DIR", type=Path, help="generated videos", required=True)
    parser.add_argument("--split", help="of real videos; default: the protocol's, of several the training split")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the table here (.json)")
    add_json_flag(parser)
    parser.add_argument("--keep", metavar="DIR", type=Path, help=KEEP)
    add_measuring_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the score and what each other choice makes of it. Returns 0; failures raise."""
    from sparsevid.evaluation.effects import DRAW, measure_effects, noise_of, splits_of

    if args.out is not None:
        check_output(args.out, ".json")
    if args.keep is not None:
        check_folder(args.keep)
    detector, protocol = measuring(args)
    options = {"limit": args.count, "split": args.split or splits_of(protocol), "batch_size": args.batch, "keep": args.keep}
    found = measure_effects(video_source(args, args.real), args.fake, detector, protocol, **options)
    rows, noise = [], noise_of(found)
    for each in found:
        score = "" if each.score is None else f"{each.score:.4f}"
        moved = each.problem if each.difference is None else f"{each.difference:+.4f}"
        share = f"{each.difference / found[0].score:+.1%}" if each.difference is not None and found[0].score else ""
        rows.append([each.kind, each.choice, score, moved, share, f"{each.real}, {each.fake}" if each.real else ""])
        if each.kind not in ("", DRAW) and noise is not None and each.difference is not None and abs(each.difference) > noise:
            rows[-1][3] += " *"
    values: dict[str, Any] = {"protocol": protocol.as_dict(), "real": str(args.real), "fake": str(args.fake)}
    values |= {"effects": list(map(asdict, found))}
    title = f"{detector.metric} of {args.fake} against {args.real}, by {protocol.name} and by other choices, each by itself"
    title += "" if noise is None else "; * more than any other draw"
    if args.json:
        print_json(values)
    else:
        print_table(title, ["what", "choice", "score", "moved by", "of the score", "clips real, fake"], rows)
    if args.out is not None and is_main():
        write_json(args.out, values)
    return 0
