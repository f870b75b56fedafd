"""Token grids: how many frames, rows and columns of tokens, which grid can stand for which, and where a cell's centre lies.

T×H×W dense grid, t×h×w sparse grid: t divides T; h ≤ H and w ≤ W are free. What is done to tokens by them is in `tokens`.
"""

from typing import NamedTuple

LONGEST_SIDE = 4096  # tokens: of latents, frames of 65,536 pixels; a token schedule has about as many stages as its grid rows


class Grid(NamedTuple):
    """Frames, rows and columns of tokens."""

    t: int
    h: int
    w: int

    @property
    def tokens(self) -> int:
        """Number of tokens of one clip."""
        return self.t * self.h * self.w

    def __str__(self) -> str:
        return f"{self.t}×{self.h}×{self.w}"


def check_dense_grid(dense: Grid) -> None:
    """Raise ValueError unless every side of a grid of dense tokens is from 1 to `LONGEST_SIDE`."""
    if min(dense) < 1 or max(dense) > LONGEST_SIDE:
        raise ValueError(f"dense grid {dense} (frames × rows × columns of tokens): each is from 1 to {LONGEST_SIDE}")


def check_sparse_grid(sparse: Grid, dense: Grid) -> None:
    """Raise ValueError unless `sparse` can stand for `dense`: t divides T, 1 ≤ h ≤ H, 1 ≤ w ≤ W."""
    if sparse.t < 1 or dense.t % sparse.t:
        divisors = [k for k in range(1, dense.t + 1) if dense.t % k == 0]
        raise ValueError(
            f"sparse grid {sparse}: t = {sparse.t} does not divide the {dense.t} frames of the dense grid {dense}; "
            f"accepted are {divisors}"
        )
    for name, small, large in (("h", sparse.h, dense.h), ("w", sparse.w, dense.w)):
        if not 1 <= small <= large:
            raise ValueError(f"sparse grid {sparse}: {name} = {small} is not between 1 and {large} (dense grid {dense})")


def cell_centres(size: int, cells: int) -> tuple[float, ...]:
    """Mean coordinate of each adaptive-pooling bin along an axis of `size` tokens.

    Bin i holds the tokens ⌊i·size/cells⌋ … ⌈(i+1)·size/cells⌉ − 1.
    """
    starts = [i * size // cells for i in range(cells)]
    stops = [-(-(i + 1) * size // cells) for i in range(cells)]
    return tuple((start + stop - 1) / 2 for start, stop in zip(starts, stops, strict=True))
