"""Threads that work ahead of their use, and how many."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def thread_pool(workers: int | None) -> Iterator[ThreadPoolExecutor]:
    """Threads for the block. Left by an error or an interruption, what they have not begun is dropped, not waited for.

    Args:
        workers: their number; None: Python's choice.
    """
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def own_threads(most: int) -> int:
    """This rank's share of the machine's cores, at least 1 and at most `most`."""
    return max(1, min(most, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
