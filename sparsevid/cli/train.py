"""`sparsevid train`: a run from its configuration."""

import argparse

from sparsevid.runs.config import load_config

EXAMPLES = """examples:
  python tools/train.py configs/demo/natural.yaml
  torchrun --nproc_per_node 2 tools/train.py configs/demo/natural.yaml train.lr=1e-3 train.zero_stage=2
"""
BUGS = (ValueError, KeyError, ImportError, OSError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", help="dotted settings such as train.lr=1e-4")
    # The `deepspeed` launcher adds this argument; the rank itself comes from the environment.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
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
