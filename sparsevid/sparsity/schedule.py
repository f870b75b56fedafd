"""The token schedule: how many sparse tokens at which diffusion time (SparseDiT, section 3.3).

Diffusion time u lies in [0, 1], 1 = noise. The pruning rate r(u) falls while noise is removed, so the token count grows.
Sides are whole tokens, so the schedule has few distinct grids: its *stages*, intervals (low, high] of u with one grid each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from sparsevid.sparsity.grid import Grid, check_dense_grid, check_sparse_grid

LAST_TIMESTEP = 999  # discrete timesteps are k = 0 … 999, u = k / 999
TIME_ERROR = 1e-6  # a model's time is float32: 0.8 comes back as 0.80000001
HOLD_FROM = 0.75  # the first quarter of denoising keeps the highest pruning rate


class Stage(NamedTuple):
    """Times `low` < u ≤ `high` (the first stage also has u = 0) with the same sparse grid."""

    low: float
    high: float
    grid: Grid


@dataclass(frozen=True)
class TokenSchedule:
    """Stages in order of time, from data (u = 0) to noise (u = 1), without gaps; neighbours differ in their grid."""

    stages: tuple[Stage, ...]

    def stage_index(self, u: float) -> int:
        """Index of the stage that holds diffusion time `u`.

        Raises:
            ValueError: u outside [0, 1].
        """
        if not 0.0 <= u <= 1.0:
            raise ValueError(f"diffusion time {u} is not in [0, 1]")
        return next(i for i, stage in enumerate(self.stages) if u <= stage.high)

    def grid(self, u: float) -> Grid:
        """The sparse grid at diffusion time `u` in [0, 1]."""
        return self.stages[self.stage_index(u)].grid


def stage_at(schedule: TokenSchedule, u: float) -> int:
    """Index of the stage that holds diffusion time `u`; a time that rounding put beyond a stage's end still belongs to it.

    Raises:
        ValueError: u outside [0, 1] by more than rounding.
    """
    return schedule.stage_index(max(u - TIME_ERROR, min(u, 0.0)))


def pruning_rate(u: float, r_min: float, r_max: float) -> float:
    """r(u) = r_max for u ≥ 3/4, then linear in u down to r_min at u = 0."""
    return r_max if u >= HOLD_FROM else r_min + (r_max - r_min) * u / HOLD_FROM


def sparse_side(side: int, rate: float) -> int:
    """round(side·√(1 − r)), halves up, at least 1."""
    return max(1, math.floor(side * math.sqrt(1.0 - rate) + 0.5))


def default_frames(frames: int) -> int:
    """Frames of the sparse grid if none are given: the largest divisor of T that is at most a quarter of it, at least 1."""
    return max(k for k in range(1, max(1, frames // 4) + 1) if frames % k == 0)


def constant_schedule(grid: Sequence[int]) -> TokenSchedule:
    """One sparse grid (t, h, w) at all times."""
    return TokenSchedule((Stage(0.0, 1.0, Grid(*grid)),))


def paper_schedule(dense: Sequence[int], t: int | Sequence[tuple[float, int]], r_min: float, r_max: float) -> TokenSchedule:
    """The paper's schedule for a dense grid: hold r_max for the first quarter of denoising, then fall linearly to r_min.

    Args:
        dense: (T, H, W), the dense grid.
        t: frames of the sparse grid: the same at all times, or rows (high, frames) with rising `high`, the last 1.
        r_min: pruning rate at u = 0, in [0, 1).
        r_max: pruning rate at u ≥ 3/4, in [r_min, 1).

    Raises:
        ValueError: rates out of order or range, or t does not divide T.
    """
    if not 0.0 <= r_min <= r_max < 1.0:
        raise ValueError(f"pruning rates obey 0 ≤ r_min ≤ r_max < 1; got r_min={r_min}, r_max={r_max}")
    dense = Grid(*dense)
    check_dense_grid(dense)
    frames = [(1.0, t)] if isinstance(t, int) else list(t)
    _check_rising([high for high, _ in frames])
    cuts = {HOLD_FROM, *(high for high, _ in frames)}
    if r_max > r_min:
        cuts |= set(_crossings(dense.h, r_min, r_max)) | set(_crossings(dense.w, r_min, r_max))
    edges = [0.0, *sorted(cuts)]
    stages = []
    for low, high in pairwise(edges):
        rate = pruning_rate((low + high) / 2, r_min, r_max)
        count = next(each for until, each in frames if high <= until)
        stages.append(Stage(low, high, Grid(count, sparse_side(dense.h, rate), sparse_side(dense.w, rate))))
    schedule = TokenSchedule(_merge_equal(stages))
    for stage in schedule.stages:
        check_sparse_grid(stage.grid, dense)
    return schedule


def table_schedule(table: Sequence[tuple[float, Sequence[int]]], dense: Sequence[int]) -> TokenSchedule:
    """A schedule of one's own.

    Args:
        table: rows (high, (t, h, w)) with rising `high`, the last 1: the grid of times up to `high`.
        dense: (T, H, W), the dense grid.

    Raises:
        ValueError: times that do not rise to 1, or a grid that does not fit.
    """
    highs = [float(high) for high, _ in table]
    _check_rising(highs)
    lows = [0.0, *highs[:-1]]
    stages = [Stage(low, high, Grid(*grid)) for low, (high, grid) in zip(lows, table, strict=True)]
    for stage in stages:
        check_sparse_grid(stage.grid, Grid(*dense))
    return TokenSchedule(_merge_equal(stages))


def _check_rising(highs: Sequence[float]) -> None:
    if not highs or list(highs) != sorted(set(highs)) or highs[0] <= 0.0 or highs[-1] != 1.0:
        raise ValueError(f"the times of a token schedule rise from above 0 to 1, got {list(highs)}")


def _crossings(side: int, r_min: float, r_max: float) -> list[float]:
    """Times at which side·√(1 − r(u)) passes a half integer, so that the rounded side changes."""
    few, many = side * math.sqrt(1.0 - r_max), side * math.sqrt(1.0 - r_min)
    halves = [k + 0.5 for k in range(math.floor(few - 0.5), math.ceil(many)) if few < k + 0.5 < many]
    return [HOLD_FROM * (1.0 - (half / side) ** 2 - r_min) / (r_max - r_min) for half in halves]


def _merge_equal(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    merged: list[Stage] = []
    for stage in stages:
        if merged and merged[-1].grid == stage.grid:
            merged[-1] = merged[-1]._replace(high=stage.high)
        else:
            merged.append(stage)
    return tuple(merged)
