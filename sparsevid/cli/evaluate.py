"""`sparsevid evaluate`: a score of generated videos against real ones, in one go or step by step."""

import argparse
import json
from pathlib import Path

from sparsevid.distributed import default_device, is_main
from sparsevid.evaluation.detectors import DETECTORS
from sparsevid.evaluation.protocols import ProtocolRecord, list_protocols
from sparsevid.logging import get_logger, print_table

NAME = "evaluate"
HELP = "Score generated videos against real ones, and write the score with its protocol beside them."
EXAMPLES = """examples:
  sparsevid evaluate score --real demo --fake samples --detector transnetv2

  the same in three steps, with features that can be kept:
  sparsevid evaluate features --source demo --role real --detector transnetv2 --out real.safetensors
  sparsevid evaluate features --source samples --role fake --detector transnetv2 --out fake.safetensors
  sparsevid evaluate distance --real real.safetensors --fake fake.safetensors
"""
RECORD_NAME = "score.json"
REQUIRED = {"required": True, "default": argparse.SUPPRESS}  # a required option has no default to show in the help

logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands `score`, `features` and `distance`."""
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    style = parser.formatter_class

    score = actions.add_parser("score", help="videos against videos", formatter_class=style)
    score.add_argument("--real", metavar="CARD_OR_DIR", help="real videos: a dataset card, or a folder", **REQUIRED)
    score.add_argument("--fake", metavar="DIR", type=Path, help=f"generated videos, and {RECORD_NAME}", **REQUIRED)
    _add_measuring_arguments(score)
    score.add_argument("--json", action="store_true", help="print the whole record as JSON instead of a table")

    features = actions.add_parser("features", help="videos to a feature file", formatter_class=style)
    features.add_argument("--source", metavar="CARD_OR_DIR", help="videos: a dataset card, or a folder", **REQUIRED)
    features.add_argument("--role", choices=("real", "fake"), help="which clip rule of the protocol", **REQUIRED)
    features.add_argument("--out", metavar="FILE", type=Path, help="feature file to write (.safetensors)", **REQUIRED)
    _add_measuring_arguments(features)

    distance = actions.add_parser("distance", help="two feature files to a score", formatter_class=style)
    distance.add_argument("--real", metavar="FILE", type=Path, help="features of real clips", **REQUIRED)
    distance.add_argument("--fake", metavar="FILE", type=Path, help="features of generated clips", **REQUIRED)
    distance.add_argument("--out", metavar="FILE", type=Path, help="write the record here as JSON")
    distance.add_argument("--json", action="store_true", help="print the whole record as JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Run the sub-command that `args.action` names. Returns the exit status 0; failures raise."""
    {"score": _score, "features": _features, "distance": _distance}[args.action](args)
    return 0


def _add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    protocols = ", ".join(list_protocols())
    parser.add_argument("--detector", choices=tuple(DETECTORS), help="default: the protocol's")
    parser.add_argument("--protocol", metavar="NAME", help=f"{protocols}, or a YAML file; default: the detector's")
    parser.add_argument("--count", metavar="N", type=int, help="fewer clips than the protocol's: biases scores upwards")
    parser.add_argument("--batch", metavar="B", type=int, default=16, help="clips of a forward pass")
    parser.add_argument("--device", help="default: the GPU if there is one, else the CPU")


def _score(args: argparse.Namespace) -> None:
    from sparsevid.evaluation.evaluate import score

    if not args.fake.is_dir():
        raise FileNotFoundError(f"--fake is a folder of generated videos, there is no folder {args.fake}")
    options = {name: getattr(args, name) for name in ("detector", "protocol", "count", "device")}
    record = ProtocolRecord(**score(args.real, args.fake, batch_size=args.batch, **options))
    if is_main():
        record.save(args.fake / RECORD_NAME)
    _report(record, args.json)


def _features(args: argparse.Namespace) -> None:
    from sparsevid.evaluation.detectors import build_detector
    from sparsevid.evaluation.evaluate import extract_features, resolve_protocol
    from sparsevid.evaluation.features import save_features

    protocol = resolve_protocol(args.detector, args.protocol)
    detector = build_detector(protocol.detector, args.device or default_device())
    file = extract_features(args.source, args.role, detector, protocol, limit=args.count, batch_size=args.batch)
    if is_main():
        save_features(file, args.out)
    logger.info("%d clips, %d features each, in %s", *file.features.shape, args.out)


def _distance(args: argparse.Namespace) -> None:
    from sparsevid.evaluation.evaluate import compare_features
    from sparsevid.evaluation.features import load_features

    record = compare_features(load_features(args.real), load_features(args.fake))
    if args.out is not None and is_main():
        record.save(args.out)
    _report(record, args.json)


def _report(record: ProtocolRecord, as_json: bool) -> None:
    if as_json:
        if is_main():
            print(json.dumps(record.as_dict(), indent=2))
        return
    name = "none" if record.protocol is None else record.protocol["name"]
    cells = [record.metric, f"{record.score:.4f}", str(record.real["clips"]), str(record.fake["clips"]), name]
    print_table("lower is better", ["metric", "score", "real clips", "fake clips", "protocol"], [cells])
