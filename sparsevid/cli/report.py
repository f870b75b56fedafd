"""`sparsevid report`: one static page of studies and runs."""

import argparse
from pathlib import Path

EXAMPLES = """examples:
  sparsevid report docs/study/paper.jsonl --out report                       # then open report/index.html
  sparsevid report docs/study/*.jsonl runs/dense runs/sparse --out report
  sparsevid report runs/mine --out report --clips 0

A study is a file of results, one JSON object a line (docs/report.md has the keys); a run is its folder. The page is one file
that opens from the disk, without a server and without a network. What was not measured is said to be so; lines that are
damaged are named, on the page too, and left out.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("sources", type=Path, nargs="+", metavar="RUN_OR_STUDY", help="folder of a run, or a study's results")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where index.html goes")
    parser.add_argument("--clips", type=int, default=12, metavar="N", help="classes of which clips are shown, at most; 0: none")
    text = "also write plot and clips of each study as NAME.svg and NAME.webp into this folder, for documents"
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help=text)


def run(args: argparse.Namespace) -> int:
    """Write the page and say where it is. Returns 0; failures raise."""
    from sparsevid.study.page.document import PAGE, write_page, write_pictures

    sources = write_page(args.sources, args.out, lines=args.clips)
    path = args.out / PAGE
    for study in sources.studies:
        print(f"{study.name}: {len(study.rows)} rows, {len(study.measurements)} measurements")
    for each in sources.runs:
        print(f"{each.name}: a run")
    for written in write_pictures(sources.studies, args.pictures) if args.pictures else ():
        print(f"{written} ({written.stat().st_size / 1e3:.0f} kB)")
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
