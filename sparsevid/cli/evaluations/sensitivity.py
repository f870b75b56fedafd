"""`sparsevid evaluate sensitivity`: what scores answer to."""

import argparse
from pathlib import Path

from sparsevid.cli import add_card_option
from sparsevid.cli.evaluations.arguments import REQUIRED, add_measuring_arguments, check_output, measuring, video_source
from sparsevid.system.distributed import is_main
from sparsevid.system.logging import get_logger, print_table

HELP = "the score of damaged real clips"
logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--real", metavar="CARD_OR_DIR", help="real videos: a dataset card, or a folder", **REQUIRED)
    add_card_option(parser)
    parser.add_argument("--split", help="of real videos, where the protocol reports several")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the curves: .png, .pdf or .svg")
    add_measuring_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """0 if the score rises with each distortion that it should rise with, else 1."""
    from sparsevid.evaluation.sensitivity import MONOTONE, measure_sensitivity

    if args.plot is not None:
        from sparsevid.evaluation.plot import check_can_draw

        check_can_draw(args.plot)
        check_output(args.plot, args.plot.suffix.lower())
    detector, protocol = measuring(args)
    options = {"limit": args.count, "split": args.split, "batch_size": args.batch}
    found = measure_sensitivity(video_source(args, args.real), detector, protocol, **options)
    title = f"{detector.metric}: {found.metric} of {found.clips} real clips against themselves, by strength of the damage"
    rising = {name: "no" if name in found.not_monotone else "yes" for name in MONOTONE}
    rows = [[name, *(f"{each:.4g}" for each in scores), rising.get(name, "")] for name, scores in found.scores.items()]
    print_table(title, ["distortion", *map(str, found.strengths), "monotone"], rows)
    if args.plot is not None and is_main():
        from sparsevid.evaluation.plot import plot_curves

        plot_curves(
            args.plot, found.strengths, found.scores, title=f"{protocol.name}, {found.clips} clips", metric=detector.metric
        )
    if found.not_monotone:
        logger.warning("the score does not rise with each step of %s", ", ".join(found.not_monotone))
    return 1 if found.not_monotone else 0
