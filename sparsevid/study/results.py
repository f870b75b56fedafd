"""Results of a study: one JSON line a row and seed, in a file that only grows; the newest line of a row and seed counts.

And the small files of JSON in which a study keeps its state.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sparsevid.study import StudyError
from sparsevid.system.locks import file_locked
from sparsevid.system.logging import get_logger

FIGURES = ("loss", "distance", "accuracy", "macs", "seconds")  # of every line, all finite
IDENTITY = ("study", "row", "seed", "settings")
LARGEST = 1e30  # of a figure: pictures can be drawn of numbers up to here
logger = get_logger(__name__)

Line = dict[str, Any]
Parsed = TypeVar("Parsed")


def read_results(path: Path) -> list[Line]:
    """The results in a file, oldest first; without the file there are none. Lines that are none are passed over, each with one
    warning a process, however often the file is read.
    """

    def checked(line: Line, where: str) -> Line:
        check_line(line)
        return line

    return list(parsed(path, checked, _warn)) if path.is_file() else []


def parsed(path: Path, parse: Callable[[Line, str], Parsed], say: Callable[[str], object]) -> Iterator[Parsed]:
    """What is made of each line of a file. One that is damaged, such as one that a kill cut off, is passed over.

    Args:
        path: of a file with a JSON object a line.
        parse: makes something of an object and of where it stands, or raises ValueError or StudyError.
        say: told what is left out, and why.
    """
    for number, text in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not text.strip():
            continue
        where = f"{path}, line {number}"
        try:
            found = parse(_json_object(text), where)
        except (ValueError, StudyError, RecursionError) as error:
            say(f"{where} is left out: {str(error).partition(chr(10))[0]}")
        else:
            yield found


def check_line(line: Line) -> None:
    """Refuse what is no result.

    Raises:
        StudyError: a key is missing, or a figure is no finite number.
    """
    if missing := [key for key in (*IDENTITY, *FIGURES) if key not in line]:
        raise StudyError(f"a result without {', '.join(missing)}")
    if not all(isinstance(line[key], str) for key in IDENTITY if key != "seed") or not isinstance(line["seed"], int):
        raise StudyError("a result whose study, row and settings are no texts, or whose seed is no whole number")
    if broken := [f"{key} = {line[key]!r}" for key in FIGURES if not is_finite(line[key])]:
        raise StudyError(f"{', '.join(broken)}: figures are finite numbers")


def is_finite(value: Any) -> bool:
    """Whether a value of JSON is a number up to `LARGEST`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def newest(lines: Iterable[Mapping]) -> dict[tuple[str, int], Line]:
    """The newest line of each row and seed, in the order in which these first came."""
    return {(line["row"], line["seed"]): dict(line) for line in lines}


def agree(said: Mapping[str, Any], found: Mapping[str, str | None]) -> bool:
    """Whether what is said of things is what was found. What one side says nothing of does not count: lines and runs of before
    it was said, data that are not here.
    """
    return all(said[key] == value for key, value in found.items() if value is not None and said.get(key) is not None)


def digest(values: Any) -> str:
    """By which values of JSON are told apart."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def append_result(path: Path, line: Line) -> None:
    """Add a line behind all that the file has, also by other processes and machines meanwhile. A line that was cut off, as by a
    kill, is ended; where there is no room for all of the line, nothing of it stays.

    Raises:
        StudyError: as `check_line`.
        OSError: the file cannot be written.
    """
    check_line(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with file_locked(path) as file:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            text = b"\n" + text
        try:
            while text:
                text = text[os.write(file, text) :]
            os.fsync(file)
        except OSError:
            os.ftruncate(file, size)
            raise


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; nothing where there is no such file, or one that cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


@cache
def _warn(text: str) -> None:
    logger.warning("%s", text)


def _json_object(text: bytes) -> Line:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON, as a line that was cut off ({error})") from error
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    return values
