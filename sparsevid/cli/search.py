"""`sparsevid search`: the layout and token schedule of least loss under a budget, from a dense checkpoint."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from sparsevid.cli import add_json_flag, add_plot_switch, all_ranks, check_results
from sparsevid.system.logging import get_logger, print_json, print_table

if TYPE_CHECKING:
    from sparsevid.runs.config import RunConfig

EXAMPLES = """examples:
  sparsevid search runs/study/paper/pretrain/seed-0 --budget 0.35 --out runs/search
  sparsevid search runs/ucf101/dense schedule.r_min=0.5 schedule.r_max=0.94 --budget 0.4 --out runs/search
  sparsevid search runs/ucf101/dense --budget 0.5 --tried 0 --out runs/search          # by the tables alone, nothing is trained
  torchrun --nproc_per_node 8 -- tools/search.py runs/ucf101/dense --budget 0.35 --out runs/search

What each layer as P, and each run of layers as a module on each grid of the token schedule, loses by itself is measured on the
dense model; layout and schedule are chosen by these tables; the best are fine-tuned, half as many for twice as long each time.
Killed, the same command goes on. FOLDER gets searched.yaml, a run of what was found; tried.md, a table; frontier.svg;
result.json, all numbers. docs/search.md says how far to believe them.
"""
SAID_OF_FINE_TUNES = (
    "train.", "schedule.", "sample.", "monitor.", "text.", "data.root=", "data.captions=", "data.workers=", "data.decoder=",
    "data.cache_frames=",
)  # fmt: skip
SAID_ELSEWHERE = ("train.init_from=", "train.steps=")
logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="dense: a run's folder, a checkpoint, or an exported folder")
    text = "of the fine-tunes, and of the grids that are tried, directly behind CHECKPOINT: train.lr=1e-4 schedule.r_min=0.3"
    parser.add_argument("overrides", nargs="*", default=[], metavar="SETTING", help=text)
    text = "multiply-adds of a sampling run, as a share of the dense model's, in (0, 1]"
    parser.add_argument("--budget", type=float, metavar="SHARE", help=text, required=True)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the results", required=True)
    text = "weights of diffusion time in the loss: as training draws it, or uniform in log-SNR"
    parser.add_argument("--objective", choices=("objective", "log_snr"), default="objective", help=text)
    parser.add_argument("--free", action="store_true", help="let tokens grow with noise too; else no side of the grid does")
    measured = parser.add_argument_group("what is measured")
    measured.add_argument("--clips", type=int, default=32, help="held-out clips")
    measured.add_argument("--times", type=int, default=8, help="of each clip, one in each of so many intervals of time")
    measured.add_argument("--split", default="test", help="of the data, with the clips")
    measured.add_argument("--rounds", type=int, default=4, help="after each, choices that cannot win any more are left")
    measured.add_argument("--every", type=int, default=2, help="modules start at every so many layers; 2: at spatial ones")
    measured.add_argument("--longest", type=int, default=8, help="layers of a module")
    measured.add_argument("--batch", type=int, default=8, help="clips of a forward; figures do not depend on it")
    measured.add_argument("--seed", type=int, default=0, help="of clips, times and noise, and of fine-tuning")
    tuned = parser.add_argument_group("what is fine-tuned")
    tuned.add_argument("--tried", type=int, default=8, help="candidates in the first rung; 0: none")
    tuned.add_argument("--steps", type=int, default=200, help="optimizer steps of the last rung, of the two best")
    text = "of fine-tuning, then stop with a checkpoint; the same command goes on. Default: no end"
    tuned.add_argument("--minutes", type=float, help=text)
    add_json_flag(parser)
    add_plot_switch(parser)


def run(args: argparse.Namespace) -> int:
    from sparsevid.benchmark.report import describe_run
    from sparsevid.generation.pipeline import VideoPipeline
    from sparsevid.search.problem import SearchSettings
    from sparsevid.search.report import as_json, columns, lines, rows, write_found
    from sparsevid.search.search import search
    from sparsevid.study.train import Stopped
    from sparsevid.system.distributed import is_main, peers_may_die

    if args.minutes is not None and not args.minutes >= 0:
        raise ValueError(f"--minutes {args.minutes}: from 0")
    shared = ("budget", "objective", "clips", "times", "split", "batch", "seed", "rounds", "every", "longest", "tried", "steps")
    settings = SearchSettings(monotone=not args.free, **{name: getattr(args, name) for name in shared})
    settings.check()
    with all_ranks(), peers_may_die("a search"):
        check_results(args.out, args.plot)
        pipeline = VideoPipeline.from_pretrained(args.checkpoint)
        pipeline.config = _config(args)
        try:
            found = search(args.checkpoint, pipeline, settings, args.out, args.minutes)
        except Stopped as stop:
            logger.info("%s: the same command goes on", stop)
            return 1
        if is_main():
            write_found(found, args.checkpoint, args.out, describe_run(_command(args), pipeline.device), plot=args.plot == "on")
            if args.json:
                print_json(as_json(found))
            else:
                print_table(f"{args.checkpoint}, budget {args.budget:g}", columns(found), rows(found))
                print("\n".join(f"- {line}" for line in lines(found)))
            logger.info("a run of what was found: %s", args.out / "searched.yaml")
    return 0


def _config(args: argparse.Namespace) -> "RunConfig":
    """That of the checkpoint, with the command's settings over it.

    Raises:
        ValueError: the checkpoint says nothing of its run.
    """
    from sparsevid.generation.pretrained import find_pretrained
    from sparsevid.runs.config import load_config

    said = [each for each in args.overrides if not each.startswith(SAID_OF_FINE_TUNES) or each.startswith(SAID_ELSEWHERE)]
    if said:
        raise ValueError(
            f"{said[0]} cannot be said of a search: model, clips and latents are the checkpoint's, and a search itself says "
            f"what a fine-tune starts from and how long it is; accepted are {', '.join(map('{}…'.format, SAID_OF_FINE_TUNES))}"
        )
    path = find_pretrained(args.checkpoint) / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{args.checkpoint} has no config.yaml: what it was trained on, and how, is not known")
    return load_config(path, args.overrides)


def _command(args: argparse.Namespace) -> str:
    """The command that a reader repeats."""
    words = ["sparsevid", "search", args.checkpoint, *(each for each in args.overrides if not each.startswith("data.root="))]
    for name in ("budget", "objective", "clips", "times", "split", "rounds", "every", "longest", "seed", "tried", "steps"):
        words += [f"--{name}", str(getattr(args, name))]
    return shlex.join([*words, *(["--free"] if args.free else []), "--out", str(args.out)])
