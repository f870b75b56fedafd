"""`sparsevid benchmark sampling`: clips from noise to file."""

import argparse

from sparsevid.cli.benchmarks.arguments import add_device, add_json, add_models, command_line, named_device, named_models
from sparsevid.diffusion import SAMPLER_NAMES
from sparsevid.generation.formats import OF_VIDEOS
from sparsevid.system.logging import is_main

HELP = "Time sampling, from noise to file, beside the dense model."
EXAMPLES = """examples:
  sparsevid benchmark sampling --presets SparseLatte-XL/2 --samplers ddim --steps 20
  sparsevid benchmark sampling --presets SparseLatte-XL/2 --steps 20 --extrapolate --product --json sampling.json
  sparsevid benchmark sampling --presets SparseLatte-S/2 --input-size 8 16 16 --steps 5 --autoencoder none --device cpu
  sparsevid benchmark sampling --presets SparseLatte-XL/2 --dtype bfloat16 --batch 1 4 16 32 --compile off on --extrapolate
  sparsevid benchmark sampling --presets SparseLatte-S/2 --batch 1 --graph off
  sparsevid benchmark sampling --config runs/demo/sparse --steps 50
"""
DEFAULT = ["SparseLatte-XL/2"]  # where neither presets nor a run are given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_models(parser, DEFAULT, "each beside the dense model of its size")
    samplers = f"of {', '.join(SAMPLER_NAMES)}; default: the run's, without one ddim"
    parser.add_argument("--samplers", nargs="+", metavar="NAME", help=samplers)
    parser.add_argument("--steps", nargs="+", type=int, default=[20], metavar="N", help="of the samplers")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="B", help="clips denoised together")
    parser.add_argument("--dtype", nargs="+", default=["float32"], metavar="NAME", help="float32 or bfloat16, or both")
    parser.add_argument("--compile", nargs="+", default=["off"], choices=("off", "on"), help="the layers, or both")
    text = "on a GPU: replay forwards as CUDA graphs, as `sample` does"
    parser.add_argument("--graph", default="on", choices=("off", "on"), help=text)
    parser.add_argument("--input-size", type=int, nargs=3, metavar=("T", "H", "W"), help="latent frames, height, width")
    parser.add_argument("--extrapolate", action="store_true", help="time single calls of the model and add them up")
    parser.add_argument("--product", action="store_true", help="also 5 flow steps, sparse, against 250 of DDPM, dense")
    parser.add_argument(
        "--autoencoder", default="linear", metavar="WHAT", help="linear, none, or the folder of a checkpoint or autoencoder"
    )
    parser.add_argument("--format", default="ffv1", choices=OF_VIDEOS, help="of the files that are written")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed turns; each goes through everything")
    parser.add_argument("--matmul-sizes", nargs="+", type=int, metavar="N", help="sides of the square matmuls")
    add_device(parser)
    add_json(parser)


def measure(args: argparse.Namespace) -> dict:
    """Measure sampling, print it, and return everything as plain values."""
    from sparsevid.benchmark.report import as_markdown, describe_run
    from sparsevid.benchmark.sampling import measure_sampling, open_autoencoder
    from sparsevid.benchmark.sampling_cases import plan_sampling
    from sparsevid.benchmark.sampling_report import SAMPLING_COLUMNS, sampling_as_json, sampling_lines, sampling_rows

    models = named_models(args, DEFAULT)
    args.samplers = args.samplers or ["ddim" if isinstance(models[-1], str) else models[-1].sampler]
    cases = plan_sampling(
        models,
        samplers=args.samplers,
        steps=args.steps,
        batches=args.batch,
        dtypes=args.dtype,
        compiled=[each == "on" for each in args.compile],
        input_size=None if args.input_size is None else tuple(args.input_size),
        extrapolate=args.extrapolate,
        product=args.product,
    )
    device = named_device(args)
    autoencoder = open_autoencoder(args.autoencoder, cases[0].network.spec.in_channels)
    header = describe_run(command_line(args), device)
    options = {"repeats": args.repeats, "matmul_sizes": args.matmul_sizes, "format": args.format, "graph": args.graph == "on"}
    measured = measure_sampling(cases, autoencoder, device=device, **options)
    if is_main():
        lines = sampling_lines(measured, args.autoencoder)
        print(as_markdown(header, lines, SAMPLING_COLUMNS, sampling_rows(measured)))
    return sampling_as_json(header, measured)
