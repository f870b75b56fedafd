"""The report of `benchmark gpu`: gpu.json and gpu.md, whole at any time, and the check of the former's schema."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sparsevid.benchmark.gpu.parts import SKIPPED, Row
from sparsevid.system.atomic import write_json, write_text

JSON, MARKDOWN, LOG, PROFILE = FILES = ("gpu.json", "gpu.md", "gpu.log", "profile.txt")
STATUSES = ("passed", "failed", "killed", "out of time", "stopped", "not run")
ROW_KEYS = ("part", "case", "metric", "value", "unit", "ok", "note")  # in the order in which they are written
HEADER_KEYS = ("command", "date", "asked_device", "tiny", "budget_seconds")  # those that are there from the start
COLUMNS = ("part", "status", "seconds", "rows", "note")


@dataclass(frozen=True)
class PartResult:
    """How a part ended: one of `STATUSES`, the seconds it took, and why."""

    part: str
    status: str
    seconds: float | int
    note: str


@dataclass
class Report:
    """What was found so far, on disk after every change.

    Attributes:
        folder: of the files.
        header: what a reader needs in order to judge and to repeat the numbers.
        parts: all that were asked for, in their order.
        rows: in the order of their coming.
    """

    folder: Path
    header: dict[str, Any]
    parts: list[PartResult]
    rows: list[Row] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all parts ran, and found all as it should be."""
        return all(part.status == "passed" for part in self.parts)

    def add(self, row: Row) -> None:
        """Take in a row."""
        self.rows.append(row)
        self.write()

    def describe(self, values: Mapping[str, Any]) -> None:
        """Take in more of the header."""
        self.header = {**values, **self.header}
        self.write()

    def end(self, result: PartResult) -> None:
        """Take in how a part ended."""
        self.parts = [result if part.part == result.part else part for part in self.parts]
        self.write()

    def verdict(self, part: str) -> tuple[str, str]:
        """Status and note of a part that came to its end, by its rows."""
        rows = [row for row in self.rows if row.part == part]
        wrong = [f"{row.case}, {row.metric}" for row in rows if row.ok is False]
        skipped = sum(row.metric == SKIPPED for row in rows)
        if not rows:
            return "failed", "it reported nothing"
        if wrong:
            return "failed", f"{len(wrong)} of {len(rows)} rows are not as they should be: {'; '.join(wrong[:3])}"
        return "passed", f"{skipped} skipped" if skipped else ""

    def values(self) -> dict[str, Any]:
        """As gpu.json has it."""
        rows = [{key: value for key in ROW_KEYS for value in [getattr(row, key)]} for row in self.rows]
        return {"header": self.header, "parts": [asdict(part) for part in self.parts], "rows": rows}

    def write(self) -> None:
        """Replace both files."""
        write_json(self.folder / JSON, self.values())
        write_text(self.folder / MARKDOWN, self.as_markdown())

    def table(self) -> str:
        """A line for each part, in Markdown."""
        counts = {part.part: sum(row.part == part.part for row in self.rows) for part in self.parts}
        return _table(
            COLUMNS, [[part.part, part.status, f"{part.seconds:.0f}", counts[part.part], part.note] for part in self.parts]
        )

    def as_markdown(self) -> str:
        """Header, the table of parts, and a table of the rows of each."""
        lines = ["# GPU", "", *(f"- {name.replace('_', ' ')}: {_shown(value)}" for name, value in self.header.items())]
        lines += ["", self.table()]
        for part in self.parts:
            own = [row for row in self.rows if row.part == part.part]
            if own:
                cells = [[getattr(row, key) for key in ROW_KEYS[1:]] for row in own]
                lines += ["", f"## {part.part}", "", _table(ROW_KEYS[1:], cells)]
        return "\n".join([*lines, ""])


def check_report(values: Any) -> None:
    """Compare what a gpu.json holds with its schema.

    Raises:
        ValueError: the first thing that is otherwise, by its place.
    """
    _check_keys(values, {"header": dict, "parts": list, "rows": list}, "gpu.json")
    missing = [key for key in HEADER_KEYS if key not in values["header"]]
    if missing:
        raise ValueError(f"gpu.json: header has no {', '.join(missing)}")
    for name, schema in (("parts", PartResult), ("rows", Row)):
        types = {item.name: item.type for item in fields(schema)}
        for number, each in enumerate(values[name]):
            _check_keys(each, types, f"gpu.json: {name}[{number}]")
    names = [part["part"] for part in values["parts"]]
    if unknown := {part["status"] for part in values["parts"]} - set(STATUSES):
        raise ValueError(f"gpu.json: status {unknown.pop()!r}; accepted are {', '.join(STATUSES)}")
    if strangers := {row["part"] for row in values["rows"]} - set(names):
        raise ValueError(f"gpu.json: rows of part {strangers.pop()!r}, which parts does not name")


def _check_keys(values: Any, types: Mapping[str, Any], where: str) -> None:
    if not isinstance(values, dict) or values.keys() != types.keys():
        found = ", ".join(values) if isinstance(values, dict) else repr(values)
        raise ValueError(f"{where} has {found}; it is to have {', '.join(types)}")
    for key, kind in types.items():
        if not isinstance(values[key], kind):
            raise ValueError(f"{where}: {key} = {values[key]!r} is no {kind}")


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [list(columns), ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _cell(value: Any) -> str:
    return " ".join(_shown(value).replace("|", "\\|").split())


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
