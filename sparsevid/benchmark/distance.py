"""The Fréchet distance by singular values beside its textbook form with a matrix square root, in one run.

Dimensions: N clips on each side, D feature dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparsevid.benchmark.timing import Turns, time_turn
from sparsevid.evaluation.metrics.distances import frechet_by_square_root, frechet_distance
from sparsevid.system.logging import progress

DISTANCE_COLUMNS = ("N", "D", "ours s", "spread", "sqrtm s", "spread", "speed", "difference")


@dataclass(frozen=True)
class Form(Turns):
    """One form of the distance; `turns` are the seconds of its timed turns."""

    turns: tuple[float, ...]


@dataclass(frozen=True)
class DistanceTime:
    """Both forms of the distance of the same two feature sets.

    Attributes:
        count: clips on each side.
        dim: feature dimensions.
        ours: by singular values.
        textbook: by the matrix square root.
        difference: of the two distances, over tr Σ_r + tr Σ_f.
    """

    count: int
    dim: int
    ours: Form
    textbook: Form
    difference: float

    @property
    def speed(self) -> float:
        """How many times as fast ours is: the ratio of the medians."""
        return self.textbook.median / self.ours.median


def measure_distances(sizes: Sequence[tuple[int, int]], *, repeats: int = 5) -> list[DistanceTime]:
    """Time both forms on the CPU, in turns, size after size, on random features with correlated dimensions.

    Args:
        sizes: (N, D) of each case, N ≥ 2.
        repeats: timed turns of each size. One more comes before, untimed.

    Raises:
        ValueError: a number is out of range.
    """
    if repeats < 1 or min(min(size) for size in sizes) < 2:
        raise ValueError(f"need repeats from 1 and sizes (N, D) from 2, got repeats={repeats}, sizes={list(sizes)}")
    return [_measure(count, dim, repeats) for count, dim in progress(sizes, desc="sizes")]


def _measure(count: int, dim: int, repeats: int) -> DistanceTime:
    pair = random_pair(count, dim)
    difference = abs(frechet_distance(*pair) - frechet_by_square_root(*pair))  # the untimed turn
    turns = [
        time_turn({form: partial(form, *pair) for form in (frechet_distance, frechet_by_square_root)}) for _ in range(repeats)
    ]
    ours, textbook = (Form(tuple(turn[form] for turn in turns)) for form in (frechet_distance, frechet_by_square_root))
    traces = sum(features.var(dim=0).sum().item() for features in pair)
    return DistanceTime(count, dim, ours, textbook, difference / traces)


def random_pair(count: int, dim: int) -> tuple[Tensor, Tensor]:
    """Two float64 feature sets (N, D), the same at every call.

    The i-th principal component has variance 1/i: those of networks fall off too, and the square root takes its time by it.
    """
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    mixing = axes / torch.arange(1, dim + 1, dtype=torch.float64).sqrt()[:, None]
    real, fake = (torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mixing for _ in range(2))
    return real, fake + 0.1


def distance_rows(measured: Sequence[DistanceTime]) -> list[list[str]]:
    """The table: a row of `DISTANCE_COLUMNS` for each size."""
    rows = []
    for time in measured:
        forms = [text for form in (time.ours, time.textbook) for text in (f"{form.median:.4g}", f"{form.spread:.0%}")]
        rows.append([str(time.count), str(time.dim), *forms, f"{time.speed:.2f}×", f"{time.difference:.1e}"])
    return rows


def distance_as_json(header: dict, measured: Sequence[DistanceTime]) -> dict:
    """Everything measured, as plain values: seconds and ratios.

    Args:
        header: as `describe_run` gives it.
        measured: as `measure_distances` gives it.
    """
    distances = [
        {
            "clips": time.count,
            "dim": time.dim,
            "seconds_of_turns": list(time.ours.turns),
            "square_root_seconds_of_turns": list(time.textbook.turns),
            "speed": time.speed,
            "difference": time.difference,
        }
        for time in measured
    ]
    return {"header": header, "distances": distances}
