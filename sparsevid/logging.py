"""The console, and metrics written beside a run."""

import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from sparsevid.distributed import is_main


def get_logger(name: str) -> logging.Logger:
    """A logger below `sparsevid` that writes to standard error; ranks other than 0 only warn."""
    root = logging.getLogger("sparsevid")
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname).1s %(name)s: %(message)s"))
        # Asked at each message: loggers are made at import, before a process knows its rank.
        handler.addFilter(lambda record: record.levelno >= logging.WARNING or is_main())
        root.addHandler(handler)
        root.propagate = False
        root.setLevel(logging.INFO)
    return logging.getLogger(name if name.startswith("sparsevid") else f"sparsevid.{name}")


LOG_SECONDS = 10.0  # between the states of a progress bar in a log file


def progress(iterable: Iterable | None = None, **options) -> tqdm:
    """A tqdm bar with rate and ETA, shown on rank 0 alone; a line every LOG_SECONDS where it goes to a file."""
    if not sys.stderr.isatty():
        options = {"mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS} | options
    return tqdm(iterable, disable=not is_main(), dynamic_ncols=True, **options)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table on rank 0: first column to the left, numbers to the right."""
    if not is_main():
        return
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # plain: square brackets in names are no markup
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def printable(name: str) -> str:
    """A file's name with bytes that are no UTF-8 spelled out, for otherwise printing it would fail."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


class MetricWriter:
    """Scalars on rank 0, to TensorBoard and to `metrics.jsonl`; nothing on the others. Use as a context manager.

    Args:
        folder: the run's folder; TensorBoard's files go to `tensorboard` in it. A resumed run appends.
    """

    def __init__(self, folder: Path) -> None:
        self.board = self.lines = None
        if is_main():
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"))
            self.lines = (folder / "metrics.jsonl").open("a", encoding="utf-8")

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.board is not None:
            self.board.close()
            self.lines.close()

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write each value under its name at optimizer step `step`."""
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
            self.lines.write(json.dumps({"step": step, **values}) + "\n")
            self.lines.flush()
