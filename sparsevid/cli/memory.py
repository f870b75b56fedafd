"""`sparsevid memory`: what a run's training needs, before anything is built."""

import argparse

from sparsevid.cli import add_json_flag

EXAMPLES = """examples:
  sparsevid memory configs/ucf101/sparse_xl2.yaml
  sparsevid memory configs/ucf101/sparse_xl2.yaml train.global_batch=64 model.checkpoint_layers=PMSRD --gpus 8 16
  sparsevid memory runs/mine --json

Counted from configuration and card alone: no data are opened, no weights are read. Autoencoder, teacher, data, PyTorch itself
and what its allocator leaves unused come on top.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("run", metavar="RUN", help="a run: its YAML file or folder")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="dotted settings such as train.global_batch=64"
    )
    add_need_arguments(parser)


def add_need_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how it is counted and shown, as `train --dry-run` has it too."""
    gpus = "numbers of GPUs to count for; default: of 1, 2, 4 and 8 those that the batch can be split over"
    parser.add_argument("--gpus", type=int, nargs="+", metavar="N", help=gpus)
    add_json_flag(parser, "print JSON in place of the tables: plain bytes and multiply-adds, all stages")


def run(args: argparse.Namespace) -> int:
    show_need(args.run, args.overrides, args.gpus, as_json=args.json)
    return 0


def show_need(source: str, overrides: list[str], gpus: list[int] | None, *, as_json: bool) -> None:
    """Print what a run's training needs."""
    from sparsevid.benchmark.candidates import open_run
    from sparsevid.benchmark.memory import need_as_json, need_tables, training_need
    from sparsevid.system.logging import print_json, print_table

    need = training_need(open_run(source, overrides), gpus)
    if as_json:
        print_json(need_as_json(need))
        return
    for title, columns, rows, note in need_tables(need):
        print_table(title, columns, rows, note)
