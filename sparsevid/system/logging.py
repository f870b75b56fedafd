"""The console, and metrics written beside a run."""

import contextlib
import json
import logging
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm.auto import tqdm

from sparsevid.system.atomic import json_text

if TYPE_CHECKING:
    import numpy as np

_PACKAGE = "sparsevid"


def is_main() -> bool:
    """As of `distributed`, which is not imported for it: where nobody has, no ranks have joined."""
    known = sys.modules.get("sparsevid.system.distributed")
    return known is None or known.is_main()


def get_logger(name: str) -> logging.Logger:
    """The logger of a module's room, which writes to standard error under the room's name; ranks other than 0 only warn.

    A room inside another speaks with its name. `logging.getLogger("sparsevid.data").setLevel("WARNING")` silences one.

    Args:
        name: of the module, `__name__`; one from outside the package counts as a room.
    """
    package, *room = name.split(".")[:2] if name.startswith(_PACKAGE) else (_PACKAGE, name)
    root = logging.getLogger(package)
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_ByRoom("%(levelname).1s %(room)s: %(message)s"))
        # Asked at each message: loggers are made at import, before a process knows its rank.
        handler.addFilter(lambda record: record.levelno >= logging.WARNING or is_main())
        root.addHandler(handler)
        root.propagate = False
        root.setLevel(logging.INFO)
    return logging.getLogger(".".join([package, *room]))


class _ByRoom(logging.Formatter):
    """Knows the room that a record comes from as `room`."""

    def format(self, record: logging.LogRecord) -> str:
        record.room = record.name.removeprefix(f"{_PACKAGE}.").partition(".")[0]
        return super().format(record)


logger = get_logger(__name__)
CURSOR_UP = "\x1b[A"
LOG_SECONDS = 10.0  # between the states of a progress bar in a log file


def progress(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """A tqdm bar with rate and ETA, shown on rank 0 alone; a line every LOG_SECONDS where it goes to a file.

    In a notebook that has `ipywidgets` it is a widget.
    """
    lines = not sys.stderr.isatty() and not in_notebook()
    if lines:
        options = {"mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS} | options
    return tqdm(iterable, disable=not is_main(), dynamic_ncols=_has_width(), file=_Shown(sys.stderr, lines), **options)


def _has_width() -> bool:
    """False where a terminal says that it is 0 wide, as a container's may: tqdm would make empty bars of that."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):  # no terminal
        return True


def in_notebook() -> bool:
    """Whether bars are widgets."""
    return any(each.__module__ == "tqdm.notebook" for each in tqdm.__mro__)


class _Shown:
    """A stream of what may be missed: that it cannot be written, as a log on a full disk, is no error.

    Args:
        stream: where to write.
        lines: write each state of a bar as a line of its own; what moves the cursor, or clears a line, is left out.
    """

    def __init__(self, stream: TextIO, lines: bool = False) -> None:
        self._stream, self._lines = stream, lines

    def write(self, text: str) -> None:
        if self._lines:
            state = text.replace(CURSOR_UP, "").strip()
            text = f"{state}\n" if state else ""
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def print_table(title: str, columns: list[str], rows: list[list[str]], note: str = "") -> None:
    """Print a table on rank 0: words to the left, numbers to the right.

    Args:
        title: above it.
        columns: their heads; none of them for facts, each a name and what it is.
        rows: cells, as many in each row.
        note: a sentence below that says how to read it.
    """
    if not is_main():
        return
    table = Table(title=title, title_justify="left", title_style="bold", show_header=bool(columns))
    for i, column in enumerate(columns or [""] * max(map(len, rows), default=0)):
        words = not i or any(row[i][:1].isalpha() or row[i][:1] == "/" for row in rows) or not columns
        table.add_column(column, justify="left" if words else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # plain: square brackets in names are no markup
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    if note:
        console.print(Text(note))


def print_json(values: Any) -> None:
    """Print plain values as JSON on rank 0; numbers that JSON has no form for are words: `inf`, `nan`."""
    if is_main():
        print(json_text(values))


def printable(name: str) -> str:
    """A file's name with bytes that are no UTF-8 spelled out, for otherwise printing it would fail."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


class MetricWriter:
    """Scalars and images on rank 0, to TensorBoard, `metrics.jsonl`, and Weights & Biases if asked; nothing on other ranks.

    Use as a context manager. What cannot be written, as on a full disk, is a warning and never an error: a run is worth more
    than what is said of it. Rows of `metrics.jsonl` are then written once there is room; TensorBoard shows no more until the
    run is started again.

    Args:
        folder: the run's folder; TensorBoard's files go to `tensorboard` in it. A resumed run appends; a line of
            `metrics.jsonl` that a kill cut off stays as it is, and is ended.
        step: optimizer steps that the run has done: TensorBoard no longer shows what an earlier process wrote of later ones,
            which are made again. None: it shows all.
        wandb: log to Weights & Biases too, as the run whose id `wandb_id` in the folder holds, so that a resumed run goes on
            there. The project is $WANDB_PROJECT, or sparsevid.
        config: of the run, as plain values, for Weights & Biases.

    Raises:
        ImportError: `wandb` is asked for and not installed.
    """

    def __init__(
        self, folder: Path, *, step: int | None = None, wandb: bool = False, config: dict[str, Any] | None = None
    ) -> None:
        self.board = self.lines = self.wandb = None
        if is_main():
            from torch.utils.tensorboard import SummaryWriter

            if wandb:
                self.wandb = _wandb_run(folder, config)
            with self._board():
                self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=None if step is None else step + 1)
            self.lines = LineFile(folder / "metrics.jsonl")

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool = True) -> None:
        """Write what waits to be written, and say whether the run has failed."""
        if self.board is not None:
            with self._board():
                self.board.close()
        if self.lines is not None:
            self.lines.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=int(failed))

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write each value under its name at optimizer step `step`."""
        if self.board is not None:
            with self._board():
                for name, value in values.items():
                    self.board.add_scalar(name, value, step)
        if self.lines is not None:
            self.lines.write(json_text({"step": step, **values}, None))
        if self.wandb is not None:
            self.wandb.log(values, step=step)

    def image(self, name: str, array: "np.ndarray", step: int) -> None:
        """Show an image, uint8 (H, W, 3), RGB, under its name at optimizer step `step`: in TensorBoard and Weights & Biases."""
        if self.board is not None:
            with self._board():
                self.board.add_image(name, array, step, dataformats="HWC")
        if self.wandb is not None:
            import wandb

            self.wandb.log({name: wandb.Image(array)}, step=step)

    @contextlib.contextmanager
    def _board(self) -> Iterator[None]:
        """Around TensorBoard, whose thread that writes does not outlive an error: one of the next calls raises it."""
        try:
            yield
        except OSError as error:
            self.board = None
            logger.warning("TensorBoard's files cannot be written, and show no more of this process: %s", error)


class LineFile:
    """A file of lines to append to, which holds whole lines only, also where there is no room for another.

    Lines that cannot be written are kept, and written before the next one that can.

    Args:
        path: made if it is missing. A line that a kill cut off stays as it is, and is ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[bytes] = []
        self._failed = False
        self._file: FileIO | None = None

    def write(self, line: str) -> None:
        """Append a line, or keep it for later; the first time that it has to be kept is a warning."""
        self._waiting.append(line.encode() + b"\n")
        try:
            if self._file is None:
                self._file = self._open()
            while self._waiting:
                _append(self._file, self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            if not self._failed:
                logger.warning("%s cannot be written, its lines wait until it can: %s", self.path, error)
            self._failed = True
        else:
            self._failed = False

    def close(self) -> None:
        """Close the file; lines that still wait are lost, with a warning."""
        if self._waiting:
            logger.warning("%s lacks its last %d lines, which could not be written", self.path, len(self._waiting))
        if self._file is not None:
            self._file.close()

    def _open(self) -> FileIO:
        whole = True
        if self.path.is_file() and self.path.stat().st_size:
            with self.path.open("rb") as content:
                content.seek(-1, os.SEEK_END)
                whole = content.read() == b"\n"
        file = self.path.open("ab", buffering=0)
        if not whole:
            self._waiting[0] = b"\n" + self._waiting[0]
        return file


def _append(file: FileIO, line: bytes) -> None:
    """Append a line whole or not at all."""
    before = os.fstat(file.fileno()).st_size
    written = 0
    try:
        while written < len(line):
            written += file.write(line[written:])
    except OSError:
        if written:
            file.truncate(before)
        raise


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of `metrics.jsonl` in a run's folder, in the order of the file: `step`, and values by name.

    Lines that a kill cut off are passed over. Without the file there are none. A resumed run may have rows of a step twice.
    """
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
            rows.append(json.loads(line))
    return rows


def metric_by_step(folder: Path, name: str) -> dict[int, Any]:
    """A metric of the run in a folder by rising step; of a step that was made again, the last."""
    return dict(sorted({row["step"]: row[name] for row in read_metrics(folder) if name in row}.items()))


def _wandb_run(folder: Path, config: dict[str, Any] | None) -> Any:
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ImportError("monitor.wandb=true needs the package wandb (`pip install wandb`); false logs without it") from error
    id_file = folder / "wandb_id"
    if not id_file.is_file():
        id_file.write_text(secrets.token_hex(8) + "\n", encoding="utf-8")
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "sparsevid"),
        name=folder.name,
        id=id_file.read_text(encoding="utf-8").strip(),
        resume="allow",
        dir=str(folder),
        config=config,
    )
