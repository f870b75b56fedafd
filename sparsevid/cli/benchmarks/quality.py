"""`sparsevid benchmark quality`: samplers and steps on a checkpoint."""

import argparse
from pathlib import Path

from sparsevid.cli.benchmarks.arguments import add_device, command_line, named_device, write_json
from sparsevid.system.atomic import check_writable

HELP = "Score and draw what samplers, steps and step reuse make of a checkpoint."
EXAMPLES = """examples:
  sparsevid benchmark quality runs/demo/sparse --steps 5 10 20 50 --out quality
  sparsevid benchmark quality runs/demo/sparse --samplers heun --steps 5 20 --reuse-every 1 2 4 --clips 256
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of a run that was trained here, or the run's folder")
    parser.add_argument("--samplers", nargs="+", metavar="NAME", help="default: all that fit the checkpoint's objective")
    parser.add_argument("--steps", nargs="+", type=int, default=[5, 10, 20, 50], metavar="N", help="of each sampler")
    parser.add_argument("--reuse-every", nargs="+", type=int, default=[1], metavar="N", help="also with step reuse")
    parser.add_argument("--clips", type=int, default=64, metavar="N", help="samples of each case, and real clips")
    parser.add_argument("--protocol", metavar="NAME", help="of the scores; default: the run's")
    parser.add_argument("--data-root", metavar="DIR", help="the folder with the real videos; default: as the run says")
    parser.add_argument("--weights", choices=("ema", "model"), help="averaged or raw weights; default: averaged")
    parser.add_argument("--autoencoder", metavar="WHAT", help="kl:SOURCE or linear:FOLDER, in place of the checkpoint's own")
    parser.add_argument("--seed", type=int, default=0, help="sample i starts from the same noise in all cases")
    parser.add_argument("--batch", type=int, default=16, metavar="B", help="clips denoised together")
    parser.add_argument("--scale", type=int, default=1, metavar="N", help="pixels of the picture for one of a clip")
    add_device(parser)
    parser.add_argument("--out", type=Path, default=Path("quality"), metavar="DIR", help="for quality.png and quality.json")


def measure(args: argparse.Namespace) -> dict:
    """Sample a checkpoint in all ways, score, print and draw, and return what is written as JSON."""
    from sparsevid.benchmark.quality import (
        QUALITY_COLUMNS,
        measure_quality,
        open_scoring,
        plan_quality,
        quality_as_json,
        quality_lines,
        quality_rows,
        write_picture,
    )
    from sparsevid.benchmark.report import as_markdown, describe_run
    from sparsevid.generation.pipeline import VideoPipeline

    if args.scale < 1:
        raise ValueError(f"--scale is a whole number from 1, got {args.scale}")
    device = named_device(args)
    pipeline = VideoPipeline.from_pretrained(args.checkpoint, weights=args.weights, device=device, autoencoder=args.autoencoder)
    cases = plan_quality(pipeline, args.samplers, args.steps, args.reuse_every, batch=args.batch)
    args.out.mkdir(parents=True, exist_ok=True)
    check_writable(args.out)
    scoring = open_scoring(pipeline, args.clips, args.protocol, args.data_root)
    header = describe_run(command_line(args), device)
    results = measure_quality(pipeline, scoring, cases, clips=args.clips, seed=args.seed, batch=args.batch)
    print(as_markdown(header, quality_lines(scoring, args.clips), QUALITY_COLUMNS, quality_rows(results)))
    values = quality_as_json(header, results)
    write_json(args.out / "quality.json", values)
    write_picture(args.out / "quality.png", results, args.scale)
    return values
