"""`sparsevid train`: a run from its configuration."""

import argparse
import os

from sparsevid.cli.memory import add_need_arguments, show_need

EXAMPLES = """examples:
  python tools/train.py configs/demo/natural.yaml
  torchrun --nproc_per_node 2 tools/train.py configs/demo/natural.yaml train.lr=1e-3 train.zero_stage=2
  sparsevid train --dry-run configs/ucf101/sparse_xl2.yaml --gpus 8            # what it needs; nothing is built
"""
BUGS = (ValueError, KeyError, ImportError, OSError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", default=[], help="dotted settings such as train.lr=1e-4")
    dry = "build nothing, and print what a step is and what memory each rank needs, as `sparsevid memory` does"
    parser.add_argument("--dry-run", action="store_true", help=dry)
    add_need_arguments(parser)
    # The `deepspeed` launcher adds this argument; the rank itself comes from the environment.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    if args.dry_run:
        show_need(args.config, args.overrides, args.gpus or _launched(), as_json=args.json)
        return 0
    if args.json or args.gpus is not None:
        raise ValueError("--json and --gpus go with --dry-run")
    from sparsevid.runs.config import load_config

    config = load_config(args.config, args.overrides)
    from sparsevid.training.signals import StopRequest

    with StopRequest() as stop:  # from the first: what follows imports and builds for seconds or hours
        from sparsevid.system.distributed import shutdown
        from sparsevid.training.trainer import Trainer

        trainer = Trainer(config)
        try:
            trainer.train(stop)
        except BUGS as error:
            # Raised while building, these say what is wrong with configuration or data; in the loop they need their traceback.
            raise RuntimeError(f"training ended at step {trainer.step} by {type(error).__name__}") from error
    shutdown()  # not after an error: other ranks may be gone, and leaving waits for them
    return 0


def _launched() -> list[int] | None:
    """The ranks of the launcher that this process was started by, if any."""
    from sparsevid.system.distributed import is_launched

    return [int(os.environ["WORLD_SIZE"])] if is_launched() else None
