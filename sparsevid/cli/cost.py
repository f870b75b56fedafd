"""`sparsevid cost`: multiply–adds of a model, by stage, against dense."""

import argparse

from sparsevid.cli import add_json_flag, refuse, refuse_said_by_run
from sparsevid.diffusion import SAMPLER_NAMES
from sparsevid.models.presets import PRESETS, build_spec
from sparsevid.sparsity.cost import SamplingCost, parameter_count, sampling_macs
from sparsevid.sparsity.layout import parse_layout
from sparsevid.sparsity.schedule import TokenSchedule
from sparsevid.sparsity.spec import MERGE_TEXT, ModelSpec
from sparsevid.system.logging import print_json, print_table

EXAMPLES = """examples:
  sparsevid cost --preset SparseLatte-XL/2
  sparsevid cost --preset SparseLatte-XL/2 --schedule constant --grid 4 8 8 --json
  sparsevid cost --preset SparsePixArt-XL/2-256 --naive-text --naive-pooling --naive-w1
  sparsevid cost --preset SparseDiT-XL/2 --r-min 0.61 --r-max 0.86 --steps 250
  sparsevid cost configs/ucf101/sparse_xl2.yaml model.layout='2P 3(1M4S1R1D) 5D'
  sparsevid cost runs/demo/sparse --json
"""
PRESET, SAMPLER, STEPS = "SparseLatte-XL/2", "ddim", 250  # where neither a run nor an option says another
NOTE = (
    "u: 0 is data, 1 is noise; grid: frames×height×width; GMACs: 10^9 multiply-adds of one forward; mean: over sampling's steps"
)
# What a run says itself, by options that are of presets.
SAID_BY_RUN = {"preset": "model.preset=NAME", "layout": "model.layout=LAYOUT", "input_size": "data.frames=T data.size=[H,W]",
               "schedule": "schedule.kind=constant", "r_min": "schedule.r_min=R", "r_max": "schedule.r_max=R",
               "merge_text": "model.preset=NAME", "frames": "schedule.frames=T", "grid": "schedule.grid=[T,H,W]"}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    run = "a run: its YAML file or folder, and dotted settings over it, in place of a preset"
    parser.add_argument("run", nargs="*", default=[], metavar="RUN KEY=VALUE", help=run)
    parser.add_argument("--preset", help=f"one of {', '.join(PRESETS)}; default: {PRESET}")
    parser.add_argument("--layout", help="another layout of the same depth, such as '2P 4(1M3S1R1D) 2D'")
    parser.add_argument("--input-size", type=int, nargs=3, metavar=("T", "H", "W"), help="latent frames, height, width")
    parser.add_argument("--schedule", choices=("paper", "constant"), help="token schedule; default: paper")
    parser.add_argument("--r-min", type=float, help="paper: pruning rate at the data end; default: the preset's")
    parser.add_argument("--r-max", type=float, help="paper: pruning rate at the noise end; default: the preset's")
    parser.add_argument("--frames", type=int, help="paper: frames of the sparse grid (a quarter of T)")
    parser.add_argument("--grid", type=int, nargs=3, metavar=("T", "H", "W"), help="constant: the sparse grid")
    sampler = f"whose steps to average over; default: the run's, of a preset {SAMPLER}"
    parser.add_argument("--sampler", choices=SAMPLER_NAMES, help=sampler)
    parser.add_argument("--steps", type=int, help=f"sampling steps to average over; default: the run's, of a preset {STEPS}")
    listen = "of a model of text: whose tokens listen to the prompt in M; default: the preset's"
    parser.add_argument("--merge-text", choices=MERGE_TEXT, help=listen)
    parser.add_argument("--naive-pooling", action="store_true", help="count P as a product with an N×N matrix")
    parser.add_argument("--naive-w1", action="store_true", help="count W1 on upsampled tokens")
    text = "count embedding, keys and values of a prompt in every forward, as public code computes them, not once for all"
    parser.add_argument("--naive-text", action="store_true", help=text)
    add_json_flag(parser, "print JSON in place of the table: plain multiply-adds")


def run(args: argparse.Namespace) -> int:
    from sparsevid.diffusion.samplers import sampler_times

    name, spec, schedule, sampler, steps = _of_run(args) if args.run else _of_preset(args)
    times = sampler_times(args.sampler or sampler, steps if args.steps is None else args.steps)
    naive = {name: getattr(args, name) for name in ("naive_pooling", "naive_w1", "naive_text")}
    cost = sampling_macs(spec, schedule, times, **naive)
    if args.json:
        print_json(_as_json("run" if args.run else "preset", name, spec, cost))
    else:
        _print(name, spec, cost)
    return 0


def _of_run(args: argparse.Namespace) -> tuple[str, ModelSpec, TokenSchedule | None, str, int]:
    """Name, model and sampling of a run."""
    from sparsevid.benchmark.candidates import open_run

    refuse_said_by_run(args, SAID_BY_RUN, "RUN")
    source, *overrides = args.run
    found = open_run(source, overrides)
    return found.name, found.spec, found.schedule, found.sampler, found.run_config.sample.steps


def _of_preset(args: argparse.Namespace) -> tuple[str, ModelSpec, TokenSchedule | None, str, int]:
    """The same of a preset, with what the options change."""
    from sparsevid.runs.build import schedule_from_config
    from sparsevid.runs.config import ScheduleConfig

    name = PRESET if args.preset is None else args.preset
    spec = build_spec(name)
    size = tuple(args.input_size or spec.input_size)
    layout = spec.layout if args.layout is None else args.layout
    if args.merge_text is not None and not spec.text_channels:
        raise ValueError(f"--merge-text is of models of text, and {name} is none: take one such as SparsePixArt-XL/2-256")
    if not parse_layout(layout).is_sparse:
        refuse(args, ("schedule", "r_min", "r_max", "frames", "grid", "merge_text"), f"{name} with layout {layout} is dense")
        return name, build_spec(name, layout=layout, input_size=size, sparse_grid=None), None, SAMPLER, STEPS
    if args.schedule == "constant" and args.grid is None:
        raise ValueError("--schedule constant needs the grid that it keeps: --grid T H W, such as --grid 4 8 8")
    if args.schedule == "constant":
        refuse(args, ("r_min", "r_max", "frames"), "--schedule constant keeps --grid")
    else:
        refuse(args, ("grid",), "the paper's schedule says the grids; --schedule constant keeps one")
    options = {"frames": args.frames, "grid": args.grid, "r_min": args.r_min, "r_max": args.r_max}
    schedule = schedule_from_config(ScheduleConfig(kind=args.schedule or "paper", **options), spec.dense_grid(size), name)
    grid = schedule.stages[0].grid
    sizes = {"layout": layout, "input_size": size, "sparse_grid": grid, "merge_text": args.merge_text or spec.merge_text}
    return name, build_spec(name, **sizes), schedule, SAMPLER, STEPS


def _as_json(kind: str, name: str, spec: ModelSpec, cost: SamplingCost) -> dict:
    return {
        kind: name,
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


def _print(name: str, spec: ModelSpec, cost: SamplingCost) -> None:
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
    title = f"{name}: {spec.layout}, {parameter_count(spec) / 1e6:.1f} M parameters, one clip"
    print_table(title, ["diffusion time u", "sparse grid", "of dense tokens", "steps", "GMACs", "of dense GMACs"], rows, NOTE)
