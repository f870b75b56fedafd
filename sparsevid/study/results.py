"""Results of a study: one JSON line a row and seed, in a file that only grows; the newest line of a row and seed counts.

And the small files of JSON in which a study keeps its state.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsevid.study import StudyError
from sparsevid.system.atomic import renamed
from sparsevid.system.logging import get_logger

FIGURES = ("loss", "distance", "accuracy", "macs", "seconds")  # of every line, all finite
IDENTITY = ("study", "row", "seed", "settings")
logger = get_logger(__name__)

Line = dict[str, Any]


def read_results(path: Path) -> list[Line]:
    """The lines of a file, oldest first; without the file there are none. What a kill cut off is passed over,
    with a warning.
    """
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines() if path.is_file() else [], start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            check_line(line)
        except (ValueError, StudyError) as error:
            logger.warning("%s, line %d, is left out: %s", path, number, str(error).partition("\n")[0])
        else:
            lines.append(line)
    return lines


def check_line(line: Any) -> None:
    """Refuse what is no result.

    Raises:
        StudyError: a key is missing, or a figure is no finite number.
    """
    if not isinstance(line, dict):
        raise StudyError(f"a result is a JSON object, got {type(line).__name__}")
    if missing := [key for key in (*IDENTITY, *FIGURES) if key not in line]:
        raise StudyError(f"a result without {', '.join(missing)}")
    if broken := [f"{key} = {line[key]!r}" for key in FIGURES if not _is_finite(line[key])]:
        raise StudyError(f"{', '.join(broken)}: figures are finite numbers")


def newest(lines: Iterable[Mapping]) -> dict[tuple[str, int], Line]:
    """The newest line of each row and seed, in the order in which these first came."""
    return {(line["row"], line["seed"]): dict(line) for line in lines}


def of_settings(lines: Sequence[Line], settings: str) -> Line | None:
    """The newest line of these settings, of whatever row."""
    return next((line for line in reversed(lines) if line["settings"] == settings), None)


def append_result(path: Path, line: Line) -> None:
    """Add a line: the file has it whole or not at all, and all lines that it had. A line that was cut off is ended.

    Raises:
        StudyError: as `check_line`.
        OSError: the file cannot be written.
    """
    check_line(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.is_file() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    with renamed(path) as draft:
        draft.write_bytes(before + json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a small file of JSON, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with renamed(path) as draft:
        draft.write_text(json.dumps(values) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; nothing where there is no such file, or one that cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
