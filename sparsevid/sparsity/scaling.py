"""Sparse grids and token schedules at another size than the one they were made for."""

from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.schedule import TokenSchedule, table_schedule


def scaled_grid(grid: Grid, trained: Grid, dense: Grid) -> Grid:
    """The sparse grid that stands for `dense` as `grid` does for `trained`.

    Args:
        grid: (t, h, w).
        trained: (T, H, W) that `grid` belongs to.
        dense: (T', H', W') of the new size.

    Returns:
        Sides in the same proportion, whole tokens, at least 1; of the divisors of T' the largest that is not above t·T'/T.
    """
    frames = max(k for k in range(1, dense.t + 1) if dense.t % k == 0 and (k == 1 or k * trained.t <= grid.t * dense.t))
    sides = [max(1, (2 * grid[axis] * dense[axis] + trained[axis]) // (2 * trained[axis])) for axis in (1, 2)]  # halves up
    return Grid(frames, *sides)


def scaled_schedule(schedule: TokenSchedule, trained: Grid, dense: Grid) -> TokenSchedule:
    """The same stages with their grids scaled to `dense`; those whose grids become equal are one."""
    if trained == dense:
        return schedule
    return table_schedule([(stage.high, scaled_grid(stage.grid, trained, dense)) for stage in schedule.stages], dense)
