"""`sparsevid benchmark data`: reading of clips."""

import argparse

from sparsevid.cli import add_card_option
from sparsevid.cli.benchmarks.arguments import (
    RUN,
    add_device,
    add_json,
    clips_of_card,
    clips_of_run,
    command_line,
    named_device,
)
from sparsevid.system.logging import is_main, print_table

HELP = "Time the reading of clips, beside the training step that takes them."
EXAMPLES = """examples:
  sparsevid benchmark data demo
  sparsevid benchmark data ucf101 --decoders pyav decord --workers 1 2 4 --latents latents/ucf101 --json data.json
  sparsevid benchmark data demo --frames 16 --stride 3 --size 256 256 --preset Latte-S/2 --device cpu --markdown
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("card", nargs="?", metavar="CARD", help="a dataset card: a name or a YAML file; default: demo")
    add_card_option(parser)
    parser.add_argument(
        "--config", **RUN, help="clips and model of a run: its YAML file or folder, and dotted settings over it"
    )
    parser.add_argument("--root", metavar="DIR", help="the folder with the data; default: the card's")
    parser.add_argument("--decoders", nargs="+", default=["pyav", "decord"], metavar="NAME", help="decoding backends")
    parser.add_argument("--latents", metavar="DIR", help="read from this latent cache too")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], metavar="N", help="processes that read; 0: this one")
    parser.add_argument("--frames", type=int, metavar="T", help="of a clip; default: the card's")
    parser.add_argument("--stride", type=int, metavar="N", help="of a clip's frames; default: the card's")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of a clip in pixels; default: the card's")
    parser.add_argument("--clips", type=int, default=64, metavar="N", help="timed clips of a turn")
    parser.add_argument("--batch", type=int, default=4, metavar="B", help="clips of a batch that is read")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed turns; each goes through everything")
    parser.add_argument("--preset", metavar="NAME", help="the model that takes the clips in training; default: Latte-S/2")
    parser.add_argument("--step-batch", type=int, default=1, metavar="B", help="clips of a training step")
    add_device(parser, "where the model trains")
    add_json(parser)
    parser.add_argument("--markdown", action="store_true", help="print a Markdown list and table")


def measure(args: argparse.Namespace) -> dict:
    """Measure ways to read clips, print them, and return everything as plain values."""
    from sparsevid.benchmark.data import measure_data, open_sources
    from sparsevid.benchmark.report import (
        DATA_COLUMNS,
        as_markdown,
        data_as_json,
        data_lines,
        data_rows,
        describe_run,
        header_lines,
    )
    from sparsevid.benchmark.training import TrainingStep

    title, model, spec, manifest, rule, size = clips_of_card(args) if args.config is None else clips_of_run(args)
    device = named_device(args)
    sources = open_sources(manifest, rule, size, args.decoders, args.latents)
    step = TrainingStep(spec, args.step_batch, device)
    header = describe_run(command_line(args), device) | {"data": f"{len(manifest.videos)} videos, {manifest.fingerprint}"}
    sizes = {"clips": args.clips, "batch": args.batch, "repeats": args.repeats}
    measured = measure_data(sources, args.workers, step, args.step_batch, **sizes)
    lines, rows = data_lines(measured, model, rule), data_rows(measured)
    if is_main() and args.markdown:
        print(as_markdown(header, lines, DATA_COLUMNS, rows))
    elif is_main():
        print("\n".join(header_lines(header)))
        print_table(f"reading clips of {title}", list(DATA_COLUMNS), rows)
        print("\n".join(lines))
    return data_as_json(header, measured)
