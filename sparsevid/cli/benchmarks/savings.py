"""`sparsevid benchmark savings`: fewer steps, caches, cheaper guidance and sparse tokens, side by side."""

import argparse
from pathlib import Path

from sparsevid.cli import add_autoencoder_option, add_prompt_options, check_least
from sparsevid.cli.benchmarks.arguments import add_device, add_json, command_line, named_device
from sparsevid.system.atomic import make_writable, write_json, write_text
from sparsevid.system.logging import get_logger

HELP = "Set savings, samplers and steps of models side by side: cost, seconds, memory, distance to real clips, pictures."
EXAMPLES = """examples:
  sparsevid benchmark savings runs/demo/sparse --steps 5 10 20 50 --protocol-option real_stride=1 --out savings
  sparsevid benchmark savings runs/demo/flow --samplers euler heun --steps 2 5 10 20 --clips 256
  sparsevid benchmark savings runs/dense runs/sparse --saving static:every=2 --saving first_block:threshold=0.1 --steps 10 20
  sparsevid benchmark savings runs/dense --guidance 4 --saving guidance:every=2+static:every=2 --steps 20 --graph off
"""
logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="runs or checkpoints; real clips are those of the first")
    text = "a row's savings, several of them joined by +; may be given again. Each model is also sampled without"
    parser.add_argument("--saving", action="append", metavar="NAME:OPTION=VALUE", help=text)
    parser.add_argument("--samplers", nargs="+", metavar="NAME", help="of those the ones that fit a model; default: its own")
    parser.add_argument("--steps", nargs="+", type=int, default=[10, 20, 50], metavar="N", help="of each sampler")
    parser.add_argument("--guidance", type=float, metavar="SCALE", help="of all rows; default: as each run says")
    parser.add_argument("--clips", type=int, default=64, metavar="N", help="samples of each row, and real clips")
    parser.add_argument("--protocol", metavar="NAME", help="of the distances; default: that of the first run")
    option = "a field of the protocol, such as real_stride=1, which gets another name; may be given again"
    parser.add_argument("--protocol-option", metavar="KEY=VALUE", action="append", help=option)
    parser.add_argument("--data-root", metavar="DIR", help="the folder with the real videos; default: as the run says")
    parser.add_argument("--bootstrap", type=int, default=200, metavar="N", help="resamplings for an interval, 0 for none")
    parser.add_argument("--weights", choices=("ema", "model"), help="averaged or raw weights; default: averaged")
    add_autoencoder_option(parser, "the models'")
    parser.add_argument("--dtype", default="float32", metavar="NAME", help="float32 or bfloat16, of the models")
    text = "on a GPU replay rows without a saving as CUDA graphs when they are timed, as `sample` does"
    parser.add_argument("--graph", default="on", choices=("off", "on"), help=text)
    parser.add_argument("--seed", type=int, default=0, help="sample i starts from the same noise in all rows")
    parser.add_argument("--batch", type=int, default=16, metavar="B", help="clips denoised together")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed turns; each takes a batch of each row")
    parser.add_argument("--scale", type=int, default=1, metavar="N", help="pixels of the picture for one of a clip")
    add_prompt_options(parser)
    add_device(parser)
    text = "for savings.md, savings.json, savings.png (the plot) and clips.png"
    parser.add_argument("--out", type=Path, default=Path("savings"), metavar="DIR", help=text)
    add_json(parser)


def measure(args: argparse.Namespace) -> dict:
    """Measure all rows, print, draw and write them, and return everything as plain values."""
    from sparsevid.benchmark.model import PEAK_METHOD
    from sparsevid.benchmark.report import as_markdown, describe_run
    from sparsevid.benchmark.savings import SavingsMeasurement, measure_savings, open_scoring, time_savings
    from sparsevid.benchmark.savings_cases import model_names, plan_savings
    from sparsevid.benchmark.savings_plot import plot_savings
    from sparsevid.benchmark.savings_report import SAVINGS_COLUMNS, savings_as_json, savings_lines, savings_rows, write_clips
    from sparsevid.evaluation.plot import check_can_draw
    from sparsevid.generation import OF_PROMPTS
    from sparsevid.generation.pipeline import VideoPipeline
    from sparsevid.generation.prompts import read_prompts

    check_least(args, scale=1, repeats=1, clips=2)
    check_can_draw()
    names, device = model_names(args.models), named_device(args)
    how = {"weights": args.weights, "dtype": args.dtype, "graph": args.graph == "on", "autoencoder": args.autoencoder}
    how["text_encoder"] = args.text_encoder
    models = {
        name: VideoPipeline.from_pretrained(source, device=device, **how)
        for name, source in zip(names, args.models, strict=True)
    }
    options = {"batch": args.batch, "seed": args.seed, "guidance": args.guidance}
    options |= {name: getattr(args, name) for name in OF_PROMPTS}
    options["prompts"] = None if args.prompts is None else read_prompts(args.prompts)
    plan = plan_savings(models, args.saving or (), args.samplers, args.steps, **options)
    make_writable(args.out)
    scoring = open_scoring(models, args.clips, args.protocol, args.data_root, args.bootstrap, args.protocol_option or ())
    header = describe_run(command_line(args), device) | {"peak_memory": PEAK_METHOD[device.type]}

    def written(measured: SavingsMeasurement) -> str:
        lines = savings_lines(measured, scoring, args.clips)
        table = as_markdown(header, lines, SAVINGS_COLUMNS, savings_rows(measured))
        write_json(args.out / "savings.json", savings_as_json(header, measured))
        write_text(args.out / "savings.md", f"{table}\n")
        return table

    sampled = {"clips": args.clips, "bootstrap": args.bootstrap, **options}
    measured = measure_savings(models, scoring, plan, on_change=written, **sampled)
    if not measured.results:
        raise ValueError(f"no row could be sampled; the first one: {next(iter(measured.failed.values()))}")
    write_clips(args.out / "clips.png", measured, args.scale)
    time_savings(models, measured, repeats=args.repeats, on_change=written, **options)
    print(written(measured))
    title = f"{args.clips} clips, {header['device']}"
    plot_savings(args.out / "savings.png", measured, title=title, metric=scoring.detector.metric)
    logger.info("savings.md, savings.json, savings.png (the plot) and clips.png in %s", args.out)
    return savings_as_json(header, measured)
