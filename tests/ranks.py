"""A script as some ranks of one group, in processes that share one start of Python: what `launch.run_all` runs.

    python ranks.py PROCESSES SCRIPT [ARGUMENT…] [-- [ARGUMENT…]]…

The script is read under another name than `__main__` first, so that what it imports is there, and then by each rank. After `--`
the arguments of another launch follow, for new processes when the first have ended. A rank that fails ends the others.

PyTorch's launcher and its ranks would each import all that anew, which takes longer than what most tests have them do.
"""

import gc
import os
import runpy
import signal
import socket
import sys
from collections.abc import Sequence
from itertools import groupby

NEXT_LAUNCH = "--"


def launch(script: str, arguments: Sequence[str], processes: int) -> int:
    """Run the script in so many ranks.

    Returns:
        0, or what `os.wait` said of the first that failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush()  # or each rank would print it too
    ranks = set()
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            be_rank(script, arguments, rank, processes, port)
        ranks.add(pid)
    failed = 0
    while ranks:
        pid, status = os.wait()
        ranks.discard(pid)
        if status and not failed:
            failed = status
            for each in ranks:
                os.kill(each, signal.SIGKILL)
    return failed


def be_rank(script: str, arguments: Sequence[str], rank: int, processes: int, port: int) -> None:
    """The rest of a rank's life."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    count, path, *rest = sys.argv[1:]
    runpy.run_path(path, run_name="imported")
    gc.freeze()  # no rank has to look through what was imported
    groups = [list(group) for separates, group in groupby(rest, NEXT_LAUNCH.__eq__) if not separates]
    for group in groups or [[]]:
        if status := launch(path, group, int(count)):
            sys.exit(f"a rank ended with status {os.waitstatus_to_exitcode(status)}")
