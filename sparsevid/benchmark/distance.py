"""The Fréchet distance by singular values beside its textbook form with a matrix square root, in one run.

Dimensions: N clips on each side, D feature dimensions.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparsevid.benchmark.model import time_turn
from sparsevid.evaluation.distances import frechet_by_square_root, frechet_distance
from sparsevid.logging import progress

# Clips and dimensions of FVD, of content-debiased FVD, and of the latter with few clips.
SIZES = ((2048, 400), (2048, 1408), (512, 1408))
COLUMNS = ("N", "D", "ours s", "spread", "sqrtm s", "spread", "speed", "difference")


@dataclass(frozen=True)
class DistanceTime:
    """Both forms of the distance of the same two feature sets.

    Attributes:
        count: clips on each side.
        dim: feature dimensions.
        turns: seconds of ours in each timed turn.
        square_root_turns: the same of the textbook form.
        difference: of the two distances, over tr Σ_r + tr Σ_f.
    """

    count: int
    dim: int
    turns: tuple[float, ...]
    square_root_turns: tuple[float, ...]
    difference: float

    @property
    def speed(self) -> float:
        """How many times as fast ours is: the ratio of the medians."""
        return statistics.median(self.square_root_turns) / statistics.median(self.turns)


def measure_distances(sizes: Sequence[tuple[int, int]] = SIZES, *, repeats: int = 5) -> list[DistanceTime]:
    """Time both forms on the CPU, in turns, size after size, on random features with correlated dimensions.

    Args:
        sizes: (N, D) of each case, N ≥ 2.
        repeats: timed turns of each size. One more comes before, untimed.

    Raises:
        ValueError: a number is out of range.
    """
    if repeats < 1 or min(min(size) for size in sizes) < 2:
        raise ValueError(f"need repeats from 1 and sizes (N, D) from 2, got repeats={repeats}, sizes={list(sizes)}")
    return [_measure(*size, repeats) for size in progress(sizes, desc="sizes")]


def _measure(count: int, dim: int, repeats: int) -> DistanceTime:
    pair = random_pair(count, dim)
    difference = abs(frechet_distance(*pair) - frechet_by_square_root(*pair))  # the untimed turn
    forms = {form: partial(form, *pair) for form in (frechet_distance, frechet_by_square_root)}
    turns = [time_turn(forms) for _ in range(repeats)]
    return DistanceTime(
        count,
        dim,
        tuple(turn[frechet_distance] for turn in turns),
        tuple(turn[frechet_by_square_root] for turn in turns),
        difference / sum(features.var(dim=0).sum().item() for features in pair),
    )


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
    """The table: a row of `COLUMNS` for each size."""
    return [
        [
            str(time.count),
            str(time.dim),
            *_median_and_spread(time.turns),
            *_median_and_spread(time.square_root_turns),
            f"{time.speed:.2f}×",
            f"{time.difference:.1e}",
        ]
        for time in measured
    ]


def distance_as_json(header: dict, measured: Sequence[DistanceTime]) -> dict:
    """Everything measured, as plain values: seconds and ratios.

    Args:
        header: as `describe_run` gives it.
        measured: as `measure_distances` gives it.
    """
    return {
        "header": header,
        "distances": [
            {
                "clips": time.count,
                "dim": time.dim,
                "seconds_of_turns": list(time.turns),
                "square_root_seconds_of_turns": list(time.square_root_turns),
                "speed": time.speed,
                "difference": time.difference,
            }
            for time in measured
        ],
    }


def add_arguments(distance: argparse.ArgumentParser) -> None:
    """Declare what `measure_distances` takes."""
    distance.add_argument(
        "--sizes", nargs="+", type=_size, default=list(SIZES), metavar="N,D", help="clips on each side, feature dimensions"
    )
    distance.add_argument("--repeats", type=int, default=5, metavar="N", help="timed turns of each size")


def _size(text: str) -> tuple[int, int]:
    """`2048,400` as (N, D)."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"a size is N,D such as 2048,400, got {text!r}")
    return int(parts[0]), int(parts[1])


def _median_and_spread(turns: Sequence[float]) -> tuple[str, str]:
    median = statistics.median(turns)
    return f"{median:.4g}", f"{(max(turns) - min(turns)) / median:.0%}"
