"""The tests that are marked for a GPU, in a process of their own."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sparsevid.benchmark.gpu.parts import CHECKOUT, NotRun, Row, Settings, in_checkout

# Where there is no GPU, some that are for none show that this part works.
SELECTED = {"cuda": ("-m", "gpu", "tests"), "cpu": ("-m", "not gpu and not slow", "tests/models/test_reference.py")}
OUTCOME = re.compile(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
NOTHING_SELECTED = 5  # pytest's exit status


def rows(settings: Settings) -> Iterator[Row]:
    """The outcome of each test as it comes, then that of all.

    Raises:
        NotRun: no tests here, or all that are meant were deselected or skipped.
    """
    in_checkout("tests")
    yield from outcomes(CHECKOUT, SELECTED[settings.device])


def outcomes(folder: Path, selected: tuple[str, ...]) -> Iterator[Row]:
    """Run tests of a folder.

    Args:
        folder: pytest's.
        selected: its arguments that say which tests.

    Raises:
        NotRun: none was run, of those that were collected.
    """
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--color=no", "--tb=short", *selected]
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    counts: Counter[str] = Counter()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if match := OUTCOME.match(line):
                counts[match[2]] += 1
                if match[2] != "SKIPPED":
                    yield Row(match[1], "outcome", match[2].lower(), ok=match[2] in ("PASSED", "XFAIL"))
    done = sum(counts.values()) - counts["SKIPPED"]
    if process.returncode == NOTHING_SELECTED or (process.returncode == 0 and not done):
        raise NotRun(f"pytest {' '.join(selected)}: {counts['SKIPPED']} skipped, none run")
    said = ", ".join(f"{count} {outcome.lower()}" for outcome, count in counts.items())
    yield Row("pytest", "exit status", process.returncode, ok=process.returncode == 0, note=said)
