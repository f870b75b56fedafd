"""`sparsevid evaluate reference`: real images as a reference file of ADM's evaluator."""

import argparse
from pathlib import Path

from sparsevid.cli import add_card_option
from sparsevid.cli.evaluations.arguments import add_measuring_arguments, check_output, measuring, video_source
from sparsevid.system.logging import get_logger, is_main

HELP = "real images to a reference file of ADM's evaluator"
EXAMPLES = """examples:
  sparsevid evaluate reference --source imagenet --protocol-option size=[256,256] --out imagenet256.npz
  sparsevid evaluate score --real imagenet256.npz --fake samples.npz --protocol adm/fid-50k
"""
logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", metavar="CARD_OR_DIR", help="images: a dataset card, or a folder", required=True)
    add_card_option(parser)
    parser.add_argument("--out", metavar="FILE", type=Path, help="reference file to write (.npz)", required=True)
    images = "that the file holds, drawn evenly over classes: precision and recall are computed on them"
    parser.add_argument("--images", metavar="N", type=int, default=10_000, help=images)
    parser.add_argument(
        "--keep", metavar="FILE", type=Path, help="keep the features here (.safetensors), and use what is there"
    )
    add_measuring_arguments(parser, "adm/fid-50k")


def run(args: argparse.Namespace) -> int:
    """Statistics of all images that the protocol takes, and some of them, in one file. Returns 0; failures raise."""
    from sparsevid.evaluation.clips.archives import STATISTICS, write_reference
    from sparsevid.evaluation.clips.clips import choose_clips
    from sparsevid.evaluation.evaluate import extract_features, one_split
    from sparsevid.evaluation.metrics.distances import Moments
    from sparsevid.evaluation.protocols import with_fields

    check_output(args.out, ".npz")
    detector, protocol = measuring(args)
    if protocol.frames != 1:
        raise ValueError(f"a reference file holds images, and protocol {protocol.name} takes clips of {protocol.frames} frames")
    source = video_source(args, args.source)
    drawn = with_fields(
        protocol, ["real_selection=balanced", f"real_count={args.images}", f"split={one_split(protocol, 'real')}"]
    )
    images = choose_clips(source, "real", drawn)
    options = {"limit": args.count, "batch_size": args.batch, "out": args.keep}
    file = extract_features(source, "real", detector, protocol, **options)
    columns = {name: each for name, each in detector.outputs().items() if name in STATISTICS}
    moments = {name: Moments.of(file.features[:, each]) for name, each in columns.items()}
    if is_main():
        write_reference(args.out, (clip for _, clip in images), len(images), moments)
        count = len(file.clip_ids)
        logger.info("%s: %d images, and statistics of %d: %s", args.out, len(images), count, ", ".join(moments))
    return 0
