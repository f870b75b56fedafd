"""`sparsevid cost`: multiply–adds of a model, by stage, against dense."""

import argparse
import json

from sparsevid.build import schedule_from_config
from sparsevid.config import ScheduleConfig
from sparsevid.diffusion.samplers import SAMPLERS, sampler_times
from sparsevid.logging import print_table
from sparsevid.models.presets import PRESETS, build_spec
from sparsevid.sparsity.cost import SamplingCost, parameter_count, sampling_macs
from sparsevid.sparsity.layout import parse_layout
from sparsevid.sparsity.spec import ModelSpec

NAME = "cost"
HELP = "Count the multiply-adds of a model, by stage of its token schedule, against the dense model of its size."
EXAMPLES = """examples:
  sparsevid cost --preset SparseLatte-XL/2
  sparsevid cost --preset SparseLatte-XL/2 --schedule constant --grid 4 8 8 --json
  sparsevid cost --preset SparseDiT-XL/2 --r-min 0.61 --r-max 0.86 --steps 250
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("--preset", default="SparseLatte-XL/2", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--layout", help="another layout of the same depth, such as '2P 4(1M3S1R1D) 2D'")
    parser.add_argument("--input-size", type=int, nargs=3, metavar=("T", "H", "W"), help="latent frames, height, width")
    parser.add_argument("--schedule", choices=("paper", "constant"), default="paper", help="token schedule")
    parser.add_argument("--r-min", type=float, help="paper: pruning rate at the data end; default: the preset's")
    parser.add_argument("--r-max", type=float, help="paper: pruning rate at the noise end; default: the preset's")
    parser.add_argument("--frames", type=int, help="paper: frames of the sparse grid (a quarter of T)")
    parser.add_argument("--grid", type=int, nargs=3, metavar=("T", "H", "W"), help="constant: the sparse grid")
    parser.add_argument("--sampler", choices=tuple(SAMPLERS), default="ddim", help="whose steps to average over")
    parser.add_argument("--steps", type=int, default=250, help="sampling steps to average over")
    parser.add_argument("--naive-pooling", action="store_true", help="count P as a product with an N×N matrix")
    parser.add_argument("--naive-w1", action="store_true", help="count W1 on upsampled tokens")
    parser.add_argument("--json", action="store_true", help="print JSON: plain multiply-adds")


def run(args: argparse.Namespace) -> int:
    spec, schedule = _spec_and_schedule(args)
    times = sampler_times(args.sampler, args.steps)
    cost = sampling_macs(spec, schedule, times, naive_pooling=args.naive_pooling, naive_w1=args.naive_w1)
    if args.json:
        print(json.dumps(_as_json(args.preset, spec, cost), indent=2))
    else:
        _print(args, spec, cost)
    return 0


def _spec_and_schedule(args: argparse.Namespace):
    spec = build_spec(args.preset)
    size = tuple(args.input_size or spec.input_size)
    layout = args.layout or spec.layout
    if not parse_layout(layout).is_sparse:
        return build_spec(args.preset, layout=layout, input_size=size, sparse_grid=None), None
    config = ScheduleConfig(kind=args.schedule, frames=args.frames, grid=args.grid, r_min=args.r_min, r_max=args.r_max)
    schedule = schedule_from_config(config, spec.dense_grid(size), args.preset)
    grid = schedule.stages[0].grid
    return build_spec(args.preset, layout=layout, input_size=size, sparse_grid=grid), schedule


def _as_json(preset: str, spec: ModelSpec, cost: SamplingCost) -> dict:
    return {
        "preset": preset,
        "layout": spec.layout,
        "parameters": parameter_count(spec),
        "dense_macs": cost.dense_macs,
        "mean_macs": cost.mean_macs,
        "ratio": cost.ratio,
        "stages": [
            {
                "low": each.stage.low,
                "high": each.stage.high,
                "grid": list(each.stage.grid),
                "macs": each.macs,
                "steps": each.steps,
            }
            for each in cost.stages
        ],
    }


def _print(args: argparse.Namespace, spec: ModelSpec, cost: SamplingCost) -> None:
    rows = [
        [
            f"{each.stage.low:.3f} – {each.stage.high:.3f}",
            str(each.stage.grid),
            f"{each.stage.grid.tokens / spec.dense_grid().tokens:.3f}",
            str(each.steps),
            f"{each.macs / 1e9:.2f}",
            f"{each.macs / cost.dense_macs:.3f}",
        ]
        for each in cost.stages
    ]
    rows.append(
        ["mean", "", "", str(sum(each.steps for each in cost.stages)), f"{cost.mean_macs / 1e9:.2f}", f"{cost.ratio:.3f}"]
    )
    rows.append([f"dense {spec.depth}D", str(spec.dense_grid()), "1.000", "", f"{cost.dense_macs / 1e9:.2f}", "1.000"])
    title = f"{args.preset}: {spec.layout}, {parameter_count(spec) / 1e6:.1f} M parameters, one clip"
    print_table(title, ["diffusion time u", "sparse grid", "tokens", "calls", "GMACs", "of dense"], rows)
