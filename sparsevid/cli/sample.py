"""`sparsevid sample`: clips from a checkpoint, as files."""

import argparse
from pathlib import Path

from sparsevid.diffusion.samplers import SAMPLERS
from sparsevid.logging import get_logger

NAME = "sample"
HELP = "Generate clips from a checkpoint: MP4, GIF, and one contact sheet."
EXAMPLES = """example:
  python tools/sample.py runs/demo/sparse --num 8 --steps 50 --out samples
"""
logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("checkpoint", type=Path, help="a checkpoint's folder, or a run's folder for its newest one")
    parser.add_argument("--num", type=int, default=8, help="number of clips")
    parser.add_argument("--sampler", choices=tuple(SAMPLERS), help="default: as the run's config says")
    parser.add_argument("--steps", type=int, help="sampling steps; default: as the run's config says")
    parser.add_argument("--guidance", type=float, help="scale of classifier-free guidance, 1 = none")
    parser.add_argument("--classes", nargs="+", help="class names or labels to go through in turn; default: all")
    parser.add_argument("--seed", type=int, default=0, help="sample i depends on (seed, i) alone")
    parser.add_argument("--batch", type=int, default=8, help="clips denoised together")
    parser.add_argument("--weights", choices=("ema", "model"), default="ema", help="averaged or raw weights")
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder to write to")


def run(args: argparse.Namespace) -> int:
    import torch

    from sparsevid.pipeline import VideoPipeline
    from sparsevid.video import write_contact_sheet, write_gif, write_mp4

    if args.num < 1 or args.batch < 1:
        raise ValueError(f"--num and --batch are at least 1, got {args.num} and {args.batch}")
    pipeline = VideoPipeline.from_pretrained(args.checkpoint, weights=args.weights)
    options = {name: getattr(args, name) for name in ("sampler", "steps", "guidance", "seed", "batch")}
    options["classes"] = class_labels(args.classes, pipeline.config.record.classes)
    args.out.mkdir(parents=True, exist_ok=True)
    for_sheet = []
    for indices, clips in pipeline.batches(range(args.num), **options):
        for index, clip in zip(indices, clips, strict=True):
            write_mp4(args.out / f"{index:06d}.mp4", clip, pipeline.fps)
            write_gif(args.out / f"{index:06d}.gif", clip, pipeline.fps, scale=2)
            if len(for_sheet) < 16:
                for_sheet.append(clip)
    write_contact_sheet(args.out / "contact_sheet.png", torch.stack(for_sheet), scale=2)
    logger.info("%d clips and contact_sheet.png in %s", args.num, args.out)
    return 0


def class_labels(given: list[str] | None, names: list[str]) -> list[int] | None:
    """Labels of class names or label numbers.

    Raises:
        ValueError: a name that the model's data did not have.
    """
    if given is None:
        return None
    labels = []
    for item in given:
        if item in names:
            labels.append(names.index(item))
        elif item.isdecimal():
            labels.append(int(item))
        else:
            raise ValueError(f"no class {item!r}; the classes are {', '.join(names) or 'none: the model is unconditional'}")
    return labels
