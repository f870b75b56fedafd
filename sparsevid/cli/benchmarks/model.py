"""`sparsevid benchmark model`: forwards of models."""

import argparse

from sparsevid.cli.benchmarks.arguments import add_device, add_json, add_models, command_line, grid, named_device, named_models
from sparsevid.models.presets import PRESETS
from sparsevid.system.logging import is_main

HELP = "Time forwards of models, and hold them against what is counted."
EXAMPLES = """examples:
  sparsevid benchmark model --presets Latte-XL/2 SparseLatte-XL/2
  sparsevid benchmark model --presets SparseLatte-B/2 --grids 4,8,8 4,6,6 4,4,4 --batch 1 4 --json bench.json
  sparsevid benchmark model --presets Latte-S/2 --against-naive --dtype float32 bfloat16
  sparsevid benchmark model --presets SparseLatte-S/2 --input-size 8 16 16 --grids 2,4,4 --device cpu
  sparsevid benchmark model --presets SparseLatte-XL/2 --layouts '2P 4(1M3S1R1D) 2D' '2P 3(1M4S1R1D) 5D'
  sparsevid benchmark model --config configs/demo/sparse.yaml model.hidden_size=256 --device cpu
"""
DEFAULT = ["Latte-XL/2", "SparseLatte-XL/2"]  # where neither presets nor a run are given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_models(parser, DEFAULT, f"of {', '.join(PRESETS)}")
    parser.add_argument("--layouts", nargs="+", metavar="LAYOUT", help="layouts of the presets' depth; default: their own")
    parser.add_argument("--grids", nargs="+", type=grid, metavar="T,H,W", help="sparse grids; default: the presets' own")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="B", help="clips of a forward")
    parser.add_argument("--dtype", nargs="+", default=["float32"], metavar="NAME", help="float32 or bfloat16, or both")
    parser.add_argument("--input-size", type=int, nargs=3, metavar=("T", "H", "W"), help="latent frames, height, width")
    parser.add_argument("--against-naive", action="store_true", help="time the dense models as public code writes them too")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed turns; each goes through all cases")
    parser.add_argument("--warmup", type=int, default=1, metavar="N", help="untimed turns before")
    parser.add_argument("--matmul-sizes", nargs="+", type=int, metavar="N", help="sides of the square matmuls")
    add_device(parser)
    add_json(parser)


def measure(args: argparse.Namespace) -> dict:
    """Measure models, print them, and return everything as plain values."""
    from sparsevid.benchmark.model import PEAK_METHOD, measure_cases, plan_cases
    from sparsevid.benchmark.report import MODEL_COLUMNS, as_markdown, describe_run, model_as_json, model_lines, model_rows

    cases = plan_cases(
        named_models(args, DEFAULT),
        layouts=args.layouts or (),
        grids=args.grids or (),
        batches=args.batch,
        dtypes=args.dtype,
        input_size=None if args.input_size is None else tuple(args.input_size),
        against_naive=args.against_naive,
    )
    device = named_device(args)
    header = describe_run(command_line(args), device) | {"peak_memory": PEAK_METHOD[device.type]}
    measured = measure_cases(cases, repeats=args.repeats, warmup=args.warmup, device=device, matmul_sizes=args.matmul_sizes)
    if is_main():
        print(as_markdown(header, model_lines(measured), MODEL_COLUMNS, model_rows(measured)))
    return model_as_json(header, measured)
