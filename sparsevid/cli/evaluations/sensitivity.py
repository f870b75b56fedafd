"""`sparsevid evaluate sensitivity`: what scores answer to."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

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
from sparsevid.system.logging import get_logger, is_main, print_json, print_table

if TYPE_CHECKING:
    from sparsevid.evaluation.detectors import Detector
    from sparsevid.evaluation.protocols import Protocol

HELP = "the score of damaged real clips"
EXAMPLES = """examples:
  sparsevid evaluate sensitivity --real demo --detector transnetv2 --count 32 --plot sensitivity.png
  sparsevid evaluate sensitivity --real ucf101 --table all --out sensitivity.json --keep features
"""
COUNT = 32  # clips of the whole table
logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--real", metavar="CARD_OR_DIR", help="real videos: a dataset card, or a folder", required=True)
    add_card_option(parser)
    add_json_flag(parser)
    parser.add_argument("--split", help="of real videos, where the protocol reports several")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the curves: .png, .pdf or .svg")
    every = "one table of these detectors (all: each whose weights are at hand) and of all their metrics, each by its default "
    every += f"protocol, of {COUNT} clips unless --count says another number"
    parser.add_argument("--table", metavar="DETECTOR", nargs="+", help=every)
    weights = "weights of a detector of the table; may be given again"
    parser.add_argument("--weights", metavar="DETECTOR=FILE", action="append", default=[], help=weights)
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the table with all scores here (.json)")
    parser.add_argument("--keep", metavar="DIR", type=Path, help=f"of a table, {KEEP}")
    add_measuring_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """0 if the score rises with each distortion that it should rise with, else 1; 0 after a table of several detectors."""
    if args.table:
        return _table(args)
    if args.weights or args.out is not None or args.keep is not None:
        raise ValueError(
            "--weights, --out and --keep are about a --table, which is not given; of one detector say --detector-path"
        )
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
    if args.json:
        print_json({**asdict(found), "detector": detector.metric, "not_monotone": sorted(found.not_monotone)})
    else:
        print_table(title, ["distortion", *map(str, found.strengths), "monotone"], rows)
    if args.plot is not None and is_main():
        from sparsevid.evaluation.plot import plot_curves

        plot_curves(
            args.plot, found.strengths, found.scores, title=f"{protocol.name}, {found.clips} clips", metric=detector.metric
        )
    if found.not_monotone:
        logger.warning("the score does not rise with each step of %s", ", ".join(found.not_monotone))
    return 1 if found.not_monotone else 0


def _table(args: argparse.Namespace) -> int:
    """Print, and write, what each metric of each detector answers to."""
    from sparsevid.evaluation.sensitivity_table import STRENGTHS, as_json, as_tables, measure_table

    if args.detector or args.protocol or args.detector_path or args.detector_option or args.plot:
        raise ValueError(
            "--table names its detectors itself, each with its default protocol; leave out options of one detector"
        )
    if args.out is not None:
        check_output(args.out, ".json")
    if args.keep is not None:
        check_folder(args.keep)
    options = {
        "limit": COUNT if args.count is None else args.count,
        "split": args.split or "train",
        "batch_size": args.batch,
        "keep": args.keep,
    }
    rows = measure_table(video_source(args, args.real), _instruments(args), **options)
    values = {"real": str(args.real), **as_json(rows, STRENGTHS)}
    if args.json:
        print_json(values)
    else:
        said = "against themselves at the strongest damage; + worse at each step; strength from which it is told, (…) not"
        for name, columns, cells in as_tables(rows, STRENGTHS):
            print_table(f"{name} {said}", columns, cells)
    if args.out is not None and is_main():
        write_json(args.out, values)
    return 0


def _instruments(args: argparse.Namespace) -> "list[tuple[Detector, Protocol]]":
    """The detectors that are asked for with their protocols; of `all`, those that can be built."""
    from sparsevid.evaluation.detectors import DETECTORS, build_detector
    from sparsevid.evaluation.evaluate import resolve_protocol
    from sparsevid.evaluation.protocols import with_fields
    from sparsevid.system.distributed import default_device

    paths = {name: Path(path) for name, _, path in (each.partition("=") for each in args.weights)}
    if unknown := [name for name in paths if name not in DETECTORS]:
        raise ValueError(f"--weights is of the form DETECTOR=FILE, with one of {', '.join(DETECTORS)}; got {unknown[0]!r}")
    names, found = list(DETECTORS) if args.table == ["all"] else list(dict.fromkeys(args.table)), []
    if unknown := [name for name in names if name not in DETECTORS]:
        raise ValueError(f"--table takes `all` alone, or some of {', '.join(DETECTORS)}; got {unknown[0]!r}")
    for name in names:
        protocol = with_fields(resolve_protocol(name, None), args.protocol_option)
        try:
            options = {"path": paths.get(name), "trust": args.trust_detector, "options": protocol.detector_options}
            found.append((build_detector(name, args.device or default_device(), **options), protocol))
        except (FileNotFoundError, ModuleNotFoundError) as error:
            if args.table != ["all"]:
                raise
            logger.info("%s is left out: %s", name, error)
    if not found:
        raise FileNotFoundError("no detector is at hand: say its weights by --weights DETECTOR=FILE")
    return found
