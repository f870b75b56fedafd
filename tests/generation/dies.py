"""`sparsevid sample`, killed by SIGKILL while it writes sample 3: half of that file is there under its temporary name."""

import os
import signal
import sys

from sparsevid.cli import run_tool
from sparsevid.generation.folder import ClipFolder

whole_write = ClipFolder.write


def write(self: ClipFolder, index: int, *rest) -> None:
    if index == 3:
        (self.path / f".{index:06d}.mkv.{os.getpid()}.partial").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    whole_write(self, index, *rest)


ClipFolder.write = write
run_tool("sample", sys.argv[1:])
