"""`sparsevid benchmark`: seconds, memory and counted cost of models side by side."""

import argparse
import json
import platform
import shlex
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from sparsevid.distributed import default_device, is_main
from sparsevid.models.presets import PRESETS
from sparsevid.sparsity.grid import Grid

if TYPE_CHECKING:
    import torch

    from sparsevid.benchmark import Case, Measurement, Result

NAME = "benchmark"
HELP = "Time models side by side in one run, with their memory and their counted cost, against the dense model of their size."
EXAMPLES = """examples:
  sparsevid benchmark model --presets Latte-XL/2 SparseLatte-XL/2
  sparsevid benchmark model --presets SparseLatte-B/2 --grids 4,8,8 4,6,6 4,4,4 --batch 1 4 --json bench.json
  sparsevid benchmark model --presets Latte-S/2 --against-naive --dtype float32 bfloat16
  sparsevid benchmark model --presets SparseLatte-S/2 --input-size 8 16 16 --grids 2,4,4 --device cpu
  sparsevid benchmark model --presets SparseLatte-XL/2 --layouts '2P 4(1M3S1R1D) 2D' '2P 3(1M4S1R1D) 5D'
"""
COLUMNS = (
    "preset",
    "layout",
    "form",
    "latents",
    "sparse grid",
    "batch",
    "dtype",
    "s/forward",
    "spread",
    "clips/s",
    "GMACs",
    "of matmul",
    "weights MB",
    "peak MB",
    "time / dense",
    "GMACs / dense",
    "peak / dense",
    "note",
)
WORDS = ("preset", "layout", "form", "latents", "sparse grid", "dtype", "note")  # columns set to the left


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command `model`."""
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    model = actions.add_parser("model", help="forwards of models", formatter_class=parser.formatter_class, epilog=EXAMPLES)
    model.add_argument(
        "--presets", nargs="+", default=["Latte-XL/2", "SparseLatte-XL/2"], metavar="NAME", help=f"of {', '.join(PRESETS)}"
    )
    model.add_argument("--layouts", nargs="+", metavar="LAYOUT", help="layouts of the presets' depth; default: their own")
    model.add_argument("--grids", nargs="+", type=_grid, metavar="T,H,W", help="sparse grids; default: the presets' own")
    model.add_argument("--batch", nargs="+", type=int, default=[1], metavar="B", help="clips of a forward")
    model.add_argument("--dtype", nargs="+", default=["float32"], metavar="NAME", help="float32 or bfloat16, or both")
    model.add_argument("--input-size", type=int, nargs=3, metavar=("T", "H", "W"), help="latent frames, height, width")
    model.add_argument("--against-naive", action="store_true", help="time the dense models as public code writes them too")
    model.add_argument("--repeats", type=int, default=5, metavar="N", help="timed turns; each goes through all cases")
    model.add_argument("--warmup", type=int, default=1, metavar="N", help="untimed turns before")
    model.add_argument("--matmul-sizes", nargs="+", type=int, metavar="N", help="sides of the square matmuls")
    model.add_argument("--device", help="cpu, cuda or cuda:N; default: the GPU if there is one, else the CPU")
    model.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here too")


def run(args: argparse.Namespace) -> int:
    """Measure, print the Markdown table, and write the JSON file if one is named. Returns 0; failures raise."""
    from sparsevid.benchmark import check_device, measure_cases, plan_cases

    if args.json is not None and not args.json.absolute().parent.is_dir():
        raise FileNotFoundError(f"--json {args.json}: there is no folder {args.json.absolute().parent}")
    cases = plan_cases(
        args.presets,
        layouts=args.layouts or (),
        grids=args.grids or (),
        batches=args.batch,
        dtypes=args.dtype,
        input_size=None if args.input_size is None else tuple(args.input_size),
        against_naive=args.against_naive,
    )
    device = check_device(args.device or default_device())
    header = describe_run(args, device)
    measured = measure_cases(cases, repeats=args.repeats, warmup=args.warmup, device=device, matmul_sizes=args.matmul_sizes)
    if is_main():
        print(as_markdown(header, measured))
        if args.json is not None:
            args.json.write_text(json.dumps(as_json(header, measured), indent=2) + "\n", encoding="utf-8")
    return 0


def describe_run(args: argparse.Namespace, device: "torch.device") -> dict[str, str | int | None]:
    """What a reader needs in order to judge and to repeat the numbers.

    Args:
        args: the command's arguments.
        device: where the models run.

    Returns:
        Command with all its options, date (UTC), commit or None, hardware, threads, versions, how memory was measured.
    """
    import torch

    from sparsevid.benchmark import PEAK_METHOD

    gpu = device.type == "cuda"
    return {
        "command": command_line(args),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": find_commit(Path(__file__).parent),
        "device": torch.cuda.get_device_name(device) if gpu else _cpu_name(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "peak_memory": PEAK_METHOD[device.type],
    }


def command_line(args: argparse.Namespace) -> str:
    """The command with every option that rules the numbers, defaults included."""
    words = ["sparsevid", NAME, args.action]
    for name, value in vars(args).items():
        option = f"--{name.replace('_', '-')}"
        if value is None or value is False or name in ("action", "command", "json"):
            continue
        words.append(option)
        if value is not True:
            each = value if isinstance(value, list) else [value]
            words += [",".join(map(str, part)) if isinstance(part, Grid) else str(part) for part in each]
    return shlex.join(words)


def find_commit(folder: Path) -> str | None:
    """The commit that `folder` is checked out at, with a remark if tracked files were changed since.

    Returns:
        None where there is no git, or where the files of the folder are not kept in it (an installed package).
    """

    def git(*words: str) -> str | None:
        command = ["git", "--no-optional-locks", "-C", str(folder), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if git("ls-files", ".") else None
    if commit is None:
        return None
    return f"{commit} with local changes" if git("status", "--porcelain", "--untracked-files=no") else commit


def as_json(header: dict, measured: "Measurement") -> dict:
    """Everything measured, as plain values: seconds, bytes, multiply-adds.

    Args:
        header: as `describe_run` gives it.
        measured: as `measure_cases` gives it.
    """
    return {
        "header": header,
        "matmul_macs_per_second": {
            dtype: {str(size): rate for size, rate in rates.items()} for dtype, rates in measured.matmul_rates.items()
        },
        "results": [_result_as_json(result) for result in measured.results],
    }


def as_markdown(header: dict, measured: "Measurement") -> str:
    """The header as a list, the results as a table.

    Args:
        header: as `describe_run` gives it.
        measured: as `measure_cases` gives it.
    """
    from sparsevid.benchmark import TOLERANCE

    lines = [f"- {name.replace('_', ' ')}: {'unknown' if value is None else value}" for name, value in header.items()]
    for dtype, rates in measured.matmul_rates.items():
        best = max(rates, key=rates.get)
        lines.append(f"- best {dtype} matmul of {', '.join(map(str, rates))}: {best}, {rates[best] / 1e9:.1f} GMAC/s")
    lines.append(
        "- s/forward: median of the turns, spread: slowest less fastest over it; GMACs: counted multiply-adds of the batch; "
        "of matmul: their rate over the best matmul's; peak: memory beyond weights and inputs; "
        f"noted where time / dense and GMACs / dense differ by more than {TOLERANCE:.0%}"
    )
    marks = [":--" if column in WORDS else "--:" for column in COLUMNS]
    rows = [COLUMNS, marks, *(_row(result) for result in measured.results)]
    # Rich's Markdown box knows no alignment and folds wide tables, so the lines are joined here.
    return "\n".join([*lines, "", *(f"| {' | '.join(row)} |" for row in rows)])


def _row(result: "Result") -> list[str]:
    case = result.case
    note = f"{abs(result.excess):.0%} {'slower' if result.excess > 0 else 'faster'} than counted" if result.differs else ""
    return [
        case.preset,
        case.spec.layout,
        _form(case),
        "×".join(map(str, case.spec.input_size)),
        "–" if case.grid is None else str(case.grid),
        str(case.batch),
        case.dtype,
        f"{result.seconds:.4g}",
        f"{result.spread:.0%}",
        f"{case.batch / result.seconds:.3g}",
        f"{case.macs / 1e9:.4g}",
        f"{result.matmul_share:.0%}",
        f"{result.weight_bytes / 1e6:.1f}",
        "–" if result.peak_bytes is None else f"{result.peak_bytes / 1e6:.1f}",
        f"{result.measured_ratio:.3f}",
        f"{result.counted_ratio:.3f}",
        "–" if result.memory_ratio is None else f"{result.memory_ratio:.3f}",
        note,
    ]


def _result_as_json(result: "Result") -> dict:
    case = result.case
    return {
        "preset": case.preset,
        "layout": case.spec.layout,
        "form": _form(case),
        "input_size": list(case.spec.input_size),
        "grid": None if case.grid is None else list(case.grid),
        "batch": case.batch,
        "dtype": case.dtype,
        "seconds": result.seconds,
        "seconds_of_turns": list(result.turns),
        "macs": case.macs,
        "matmul_share": result.matmul_share,
        "weight_bytes": result.weight_bytes,
        "peak_bytes": result.peak_bytes,
        "measured_ratio": result.measured_ratio,
        "counted_ratio": result.counted_ratio,
        "memory_ratio": result.memory_ratio,
        "differs": result.differs,
    }


def _form(case: "Case") -> str:
    return "naive" if case.naive else "ours"


def _grid(text: str) -> Grid:
    """`4,8,8` as a grid."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"a sparse grid is T,H,W such as 4,8,8, got {text!r}")
    return Grid(*map(int, parts))


def _cpu_name() -> str:
    """The processor's model name where the kernel tells it, else what Python knows of it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
