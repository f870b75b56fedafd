"""`sparsevid benchmark gpu`: a GPU's whole picture."""

import argparse
import math
from pathlib import Path

from sparsevid.benchmark.gpu.parts import PARTS

HELP = "Show a GPU's whole picture, part by part: parity, kernels, forwards, training, runs, sampling, tests, compiled layers."
EXAMPLES = """examples:
  sparsevid benchmark gpu --out report
  sparsevid benchmark gpu --out report --budget 300 --parts environment forward training
  sparsevid benchmark gpu --out report --device cpu --tiny
"""
DEFAULT_BUDGET = float(sum(part.seconds for part in PARTS))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = [part.name for part in PARTS]
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the report, at most eight files")
    parser.add_argument("--budget", type=float, default=DEFAULT_BUDGET, metavar="SECONDS", help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="NAME", help=f"some of {', '.join(names)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where everything is computed")
    parser.add_argument("--tiny", action="store_true", help="small models and few repetitions, as for a trial on a CPU")


def measure(args: argparse.Namespace) -> dict:
    """Run the parts, print a table of them, and say whether all passed."""
    from sparsevid.benchmark.gpu.parent import run_parts
    from sparsevid.benchmark.gpu.report import JSON, MARKDOWN
    from sparsevid.cli.benchmarks.arguments import command_line

    if not 0 < args.budget < math.inf:
        raise ValueError(f"--budget is a number of seconds above 0, got {args.budget:g}")
    parts = [part for part in PARTS if part.name in args.parts]
    command = f"{command_line(args)} --out {args.out}"
    report = run_parts(parts, args.out, command=command, budget=args.budget, device=args.device, tiny=args.tiny)
    print(report.table())
    print(f"\n{args.out / MARKDOWN} has all rows, {args.out / JSON} too")
    return {"passed": report.passed}
