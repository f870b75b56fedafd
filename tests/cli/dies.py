"""`sparsevid sample`, killed by SIGKILL after it has written the file of sample 3, before the file has its name."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsevid.cli import run_tool
from sparsevid.videos import write as files

whole_renamed = files.renamed


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    with whole_renamed(path) as draft:
        yield draft
        if path.stem == "000003":
            os.kill(os.getpid(), signal.SIGKILL)


files.renamed = renamed
run_tool("sample", sys.argv[1:])
