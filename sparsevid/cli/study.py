"""`sparsevid study`: a table of runs, trained, sampled and measured alike, row by row and seed by seed."""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sparsevid.cli import add_json_flag, all_ranks
from sparsevid.system.logging import get_logger, print_json, print_table

if TYPE_CHECKING:
    from sparsevid.study.measure import Circumstances
    from sparsevid.study.measurements import Measurement
    from sparsevid.study.plan import Plan, Study
    from sparsevid.study.run import Report

    Measurements = dict[tuple[str, int], Measurement]

EXAMPLES = """examples:
  sparsevid study configs/study/paper.yaml --list                  # what there is to do, and how far it is
  sparsevid study configs/study/paper.yaml --budget 60             # go on for an hour, at most
  sparsevid study configs/study/paper.yaml --rows dense sparse --seeds 0
  sparsevid study configs/study/paper.yaml --times                 # seconds of all rows that are done, in turns
  sparsevid study configs/study/paper.yaml --table                 # the results in Markdown
  sparsevid study configs/study/paper.yaml --table --against sparse          # each row's difference to another than its control
  sparsevid study configs/study/paper.yaml --scale gpu             # the same rows at another size
  torchrun --nproc_per_node 8 -- tools/study.py configs/study/paper.yaml --scale gpu

A row that is done is never done again; one whose settings have changed is. Killed at any time, the same command goes on where
it was. Rows that need others (what they are fine-tuned from, a teacher) do those first. The status is 1 if a row failed; the
others are done all the same. docs/study.md says what the figures mean.
"""
logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("study", type=Path, help="YAML file of the study")
    parser.add_argument(
        "overrides", nargs="*", default=[], help="dotted settings of the base run, below those of rows: data.root=/data/atari"
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="these alone, with what they need; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="these alone; default: of each row its own")
    text = "begin no row that would not end in time, as far as earlier rows tell, and stop training with a checkpoint then"
    parser.add_argument("--budget", type=float, metavar="MINUTES", help=f"{text}; default: no end")
    parser.add_argument("--scale", metavar="NAME", help="another size of data and model, as the file's `scales` says it")
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--list", action="store_true", help="print rows, how far they are and what they cost, and do nothing")
    others.add_argument("--table", action="store_true", help="print the results as a Markdown table, and do nothing")
    text = "time all done rows again, in turns, so that ratios hold on a machine whose speed moves; do nothing else"
    others.add_argument("--times", action="store_true", help=text)
    add_json_flag(parser, "with --list or --table: print JSON in place of the table")
    parser.add_argument("--against", metavar="ROW", help="of --table: compare all rows with this one, not with their control")
    text = "files of results: the first is read and added to, the others are read; for a trial, and to measure anew what there "
    text += "are lines of, a file of your own in another folder. Default: docs/study/NAME.jsonl"
    parser.add_argument("--results", nargs="+", type=Path, metavar="FILE", help=text)
    parser.add_argument("--out", type=Path, default=Path("runs/study"), metavar="DIR", help="folder of the runs of all studies")


def run(args: argparse.Namespace) -> int:
    """Do, list or print a study. Returns 0; 1 if a row failed. What is wrong with the study itself raises."""
    if args.against and not args.table:
        raise ValueError(f"--against {args.against} is of --table; a row's own control stands in the study's file")
    if args.json and not (args.table or args.list):
        raise ValueError("--json is of --list and --table; results are lines of JSON in their file as it is")
    if args.budget is not None and not args.budget >= 0:
        raise ValueError(f"--budget {args.budget}: minutes, from 0")
    from sparsevid.study.plan import Study
    from sparsevid.study.run import chosen_plans

    study = Study(args.study, args.out, args.scale, args.overrides)
    files = args.results or [Path("docs/study") / f"{study.name}.jsonl"]
    if args.table:
        return _print_table(args, study, files)
    plans = chosen_plans(study, args.rows, args.seeds)
    siblings = [path for path in sorted(files[0].parent.glob("*.jsonl")) if path not in files] + files[1:]
    if args.list:
        return _list(study, plans, files[0], siblings, args.json)
    if not args.results and not args.times:
        _keep_lines(args, plans, files[0])
    return _do(args, study, plans, files[0], siblings)


def _keep_lines(args: argparse.Namespace, plans: "list[Plan]", results: Path) -> None:
    """Lines that everybody reads are not to be replaced by those of a trial.

    Raises:
        ValueError: settings of the command would replace some.
    """
    from sparsevid.study.results import read_results
    from sparsevid.study.run import superseded

    if not (count := superseded(plans, read_results(results))):
        return
    text = f"{count} rows and seeds have lines of other settings or data in {results}, where the newest line counts"
    if args.overrides:
        raise ValueError(f"{text}: for a trial with {' '.join(args.overrides)} give a file of its own, --results FILE")
    logger.warning("%s: they are done anew; --results FILE keeps a trial apart", text)


def _print_table(args: argparse.Namespace, study: "Study", files: list[Path]) -> int:
    from sparsevid.study.measurements import StudyResults, read_studies
    from sparsevid.study.table import study_table, table_values

    found, problems = read_studies(file for file in reversed(files) if file.is_file())
    for problem in problems:
        logger.warning("%s", problem)
    every = next((each.measurements for each in found if each.name == study.name), {})
    if args.against:
        every = _against(every, args.against)
    wanted = {(row, seed): each for (row, seed), each in every.items() if not args.seeds or seed in args.seeds}
    rows = [study.row(name).name for name in args.rows or ()]
    if not any(not rows or row in rows for row, _ in wanted):
        raise ValueError(f"no results of {study.name} in {', '.join(map(str, files))}")
    results, notes = StudyResults(study.name, wanted), _changed(study, wanted)
    if args.json:
        print_json({"study": study.name, "notes": notes, "rows": table_values(results, only=rows)})
    else:
        print(study_table(results, list(study.file.rows), only=rows, notes=notes))
    return 0


def _changed(study: "Study", measured: "Measurements") -> list[str]:
    """A note, if lines were measured by other settings than the study's file says now."""
    known = [key for key in measured if key[0] in study.file.rows and measured[key].facts.get("settings")]
    try:
        found = [f"{row}, seed {seed}" for row, seed in known
                 if measured[row, seed].facts["settings"] != study.plan(row, seed).settings]  # fmt: skip
    except (ValueError, OSError) as error:  # results can be read without what was run
        return [f"whether rows were measured by the settings that the study's file has now is not known: {error}"]
    return [f"measured by other settings than the study's file has now: {'; '.join(found)}"] if found else []


def _against(every: "Measurements", control: str) -> "Measurements":
    """The same measurements, all to be compared with this row."""
    if not any(row == control for row, _ in every):
        names = ", ".join(dict.fromkeys(row for row, _ in every)) or "none"
        raise ValueError(f"--against {control}: nothing was measured of such a row; measured are {names}")
    return {key: replace(each, control=control) for key, each in every.items()}


def _circumstances(study: "Study", results: Path, command: str = "") -> "Circumstances":
    from sparsevid.benchmark.report import describe_run
    from sparsevid.study.measure import Circumstances
    from sparsevid.system.distributed import default_device

    return Circumstances(describe_run(command, default_device()), results)


def _list(study: "Study", plans: "list[Plan]", results: Path, siblings: list[Path], as_json: bool) -> int:
    from sparsevid.study.listing import LISTED, left, listing
    from sparsevid.study.results import read_results

    lines = [line for path in (results, *siblings) for line in read_results(path)]
    hardware = _circumstances(study, results).hardware
    if lines and not any(line.get("hardware") == hardware for line in lines):
        hardware = str(lines[-1].get("hardware"))
        logger.info("times are of %s: nothing has been measured as this command would", hardware)
    listed = listing(plans, lines, hardware)
    if as_json:
        print_json([each._asdict() for each in listed])
        return 0
    title = f"{study.name}: {len(plans)} rows and seeds, results in {results}"
    print_table(title, list(LISTED), [each.cells() for each in listed])
    if text := left(plans, lines, hardware):
        print(text)
    return 0


def _do(args: argparse.Namespace, study: "Study", plans: "list[Plan]", results: Path, siblings: list[Path]) -> int:
    from sparsevid.study.run import Report, alone_on_machine, run_study
    from sparsevid.study.times import time_rows
    from sparsevid.study.train import Budget
    from sparsevid.system.atomic import make_writable
    from sparsevid.system.distributed import is_main, peers_may_die

    budget = Budget(args.budget)
    with all_ranks():  # which wait for rank 0: it measures some things alone
        if is_main():
            make_writable(results.parent)
        circumstances = _circumstances(study, results, _command(args))
        with alone_on_machine(), peers_may_die("a study"):
            if args.times:
                report = Report(done=time_rows(plans, circumstances))
            else:
                report = run_study(plans, circumstances, siblings, budget)
        if is_main():
            _say(study, report, results, "timed" if args.times else "done")
    return 1 if report.failed else 0


def _command(args: argparse.Namespace) -> str:
    """The command that a reader repeats. Budget, chosen rows and the place of the data are each machine's own."""
    words = ["sparsevid", "study", str(args.study), *(each for each in args.overrides if not each.startswith("data.root="))]
    return shlex.join([*words, *(["--scale", args.scale] if args.scale else [])])


def _say(study: "Study", report: "Report", results: Path, done: str) -> None:
    for name, reason in report.failed.items():
        logger.warning("failed: %s: %s", name, reason)
    for name in report.left:
        logger.info("left for another time, for it would not end within the budget: %s", name)
    if report.stopped:
        logger.info("%s: the same command goes on", report.stopped)
    counts = f"{len(report.done)} rows and seeds {done}, {len(report.there)} were there, {len(report.failed)} failed"
    logger.info("%s: %s; results in %s", study.name, counts, results)
