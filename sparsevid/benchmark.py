"""Warm wall-clock time of things side by side, in one run."""

import statistics
import time
from collections.abc import Callable

import torch


def time_alternately(candidates: dict[str, Callable[[], object]], *, repeats: int = 5, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each candidate, taken in turns so that a machine that slows down slows all of them.

    Args:
        candidates: functions by name.
        repeats: timed calls of each.
        warmup: untimed calls of each before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + repeats):
        for name, candidate in candidates.items():
            _wait_for_device()
            start = time.perf_counter()
            candidate()
            _wait_for_device()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
