"""Threads that work ahead of their use."""

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
