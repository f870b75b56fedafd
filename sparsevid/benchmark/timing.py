"""Timing in turns: each turn goes through all candidates, so that a machine that slows down slows all of them."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


class Turns:
    """What follows from the values of timed turns, for records that keep them in `turns`."""

    turns: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the turns."""
        return statistics.median(self.turns)

    @property
    def spread(self) -> float:
        """Largest less smallest turn, as a share of the median."""
        return (max(self.turns) - min(self.turns)) / self.median


def time_turn(candidates: Mapping[Key, Callable[[], object]]) -> dict[Key, float]:
    """Seconds of one call of each candidate, in the order of the dictionary."""
    seconds = {}
    for name, candidate in candidates.items():
        _wait_for_device()
        start = time.perf_counter()
        candidate()
        _wait_for_device()
        seconds[name] = time.perf_counter() - start
    return seconds


def time_alternately(candidates: Mapping[str, Callable[[], object]], *, repeats: int = 5, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each candidate, taken in turns.

    Args:
        candidates: functions by name.
        repeats: timed calls of each.
        warmup: untimed calls of each before.
    """
    turns = [time_turn(candidates) for _ in range(warmup + repeats)][warmup:]
    return {name: statistics.median(turn[name] for turn in turns) for name in candidates}


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
