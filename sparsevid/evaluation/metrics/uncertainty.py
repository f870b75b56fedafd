"""How far a distance between two sets of features is to be trusted: its interval, and its limit for many clips.

Dimensions: N real clips, M fake clips, D feature dimensions.

Clips are never drawn twice here. A sample with replacement holds about 63 % of the clips, some of them several times, and
a Fréchet distance of such sets lies far above that of the sets they come from.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsevid.evaluation.metrics.distances import check_pair
from sparsevid.system.logging import progress
from sparsevid.system.seeding import Purpose, keyed_generator

Distance = Callable[[Tensor, Tensor], float]
PARTS = 5  # sizes of subsets in an extrapolation


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low, high: its ends.
        halves: the distance on each pair of random halves. Those of two sets of as many fakes, by the same real clips and
            the same seed, are paired: if fake i of both has something in common, such as its noise, their differences scatter
            less.
    """

    low: float
    high: float
    halves: tuple[float, ...] = ()


@dataclass(frozen=True)
class Extrapolation:
    """A straight line through distances against the inverse number of clips.

    Attributes:
        value: the line's value for N → ∞. Where both sets follow one distribution it scatters around 0, to both sides.
        slope: of the line: the distance of `size` fakes is about value + slope / size.
        sizes: numbers of fake clips; reals are taken in proportion.
        means: the distance at each size, mean over the disjoint subsets.
        error: standard error of `value`, from half-samples.
        reliable: whether the smallest subset has as many clips as dimensions. A Fréchet distance of fewer is far from the
            line, and so is the limit.
    """

    value: float
    slope: float
    sizes: tuple[int, ...]
    means: tuple[float, ...]
    error: float
    reliable: bool


def bootstrap_interval(
    distance: Distance, real: Tensor, fake: Tensor, *, repeats: int = 200, level: float = 0.95, seed: int = 0
) -> Interval:
    """An interval for the mean of `distance` over sets of as many clips: how far the same protocol with other clips may end.

    The distance is computed on random halves of both sets, drawn without replacement. Around their own mean, the values on
    halves scatter as the value on fresh sets of full size does (half-sampling, the delete-d jackknife with d = N/2: Shao
    and Wu 1989; Politis and Romano 1994). The interval is d − q_high … d − q_low, with quantiles q of the halves' deviations
    from their mean, so the higher bias of smaller sets drops out. It is too wide, never too narrow to first order, where
    both sets follow nearly one distribution. It says nothing of the bias itself: see `extrapolate`.

    Args:
        distance: of two feature sets, such as `frechet_distance`.
        real: features (N, D), N ≥ 4.
        fake: features (M, D), M ≥ 4.
        repeats: random halves.
        level: the interval's probability, between 0 and 1.
        seed: of the halves.

    Raises:
        ValueError: see `check_pair`; or a number is out of range.
    """
    check_pair(real, fake, minimum=4)
    if repeats < 2 or not 0 < level < 1:
        raise ValueError(
            f"an interval takes 2 repeats or more and a level between 0 and 1, got repeats={repeats}, level={level}"
        )
    found = torch.tensor([distance(*halves) for halves in _halves(real, fake, repeats, seed)], dtype=torch.float64)
    ends = torch.tensor([(1 + level) / 2, (1 - level) / 2], dtype=torch.float64)
    low, high = distance(real, fake) - torch.quantile(found - found.mean(), ends)
    return Interval(low.item(), high.item(), tuple(found.tolist()))


def extrapolate(
    distance: Distance, real: Tensor, fake: Tensor, *, parts: int = PARTS, repeats: int = 20, shuffles: int = 2, seed: int = 0
) -> Extrapolation:
    """The distance that infinitely many clips would have (Chong and Forsyth 2020), by its fit against 1/N.

    The bias of a Fréchet distance falls with 1/N and 1/M. So both sets are cut into p = 1, 2, … `parts` disjoint subsets,
    real subset i goes with fake subset i, and a line is fitted by least squares to the mean distance against p / M.
    Every clip is used at every size, so the points differ in size and hardly in content.

    Args:
        distance: of two feature sets, such as `frechet_distance`.
        real: features (N, D), N ≥ 4 · `parts`.
        fake: features (M, D), M ≥ 4 · `parts`.
        parts: sizes, M down to M / `parts`. The law holds for subsets of many clips; where they have fewer than D the
            result is too low or too high by some of the bias, and not `reliable`.
        repeats: half-samples for the standard error; 2 or more.
        shuffles: random orders in which the sets are cut, for each size.
        seed: of the orders and of the half-samples.

    Raises:
        ValueError: see `check_pair`; or a number is out of range.
    """
    if parts < 2 or repeats < 2 or shuffles < 1:
        raise ValueError(
            "a line takes 2 parts or more, 2 repeats or more and 1 shuffle or more, got "
            f"parts={parts}, repeats={repeats}, shuffles={shuffles}"
        )
    check_pair(real, fake, minimum=4 * parts)  # a half-sample's smallest subset has two clips
    sizes, means = _distances_by_size(distance, real, fake, parts, shuffles, seed)
    value, slope = _fit_line(sizes, means)
    limits = [
        _fit_line(*_distances_by_size(distance, *halves, parts, shuffles, seed))[0]
        for halves in _halves(real, fake, repeats, seed)
    ]
    error = torch.tensor(limits, dtype=torch.float64).std().item()
    reliable = min(len(real), len(fake)) // parts >= real.shape[1]
    return Extrapolation(value, slope, tuple(sizes), tuple(means), error, reliable)


def _halves(real: Tensor, fake: Tensor, repeats: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random halves of both sets."""
    for repeat in progress(range(repeats), desc="halves", unit="draw", leave=False, delay=2):
        generator = keyed_generator(Purpose.HALVES, seed, repeat)
        yield _shuffled(real, generator)[: len(real) // 2], _shuffled(fake, generator)[: len(fake) // 2]


def _distances_by_size(
    distance: Distance, real: Tensor, fake: Tensor, parts: int, shuffles: int, seed: int
) -> tuple[list[int], list[float]]:
    """For 1, 2, … `parts` disjoint subsets their number of fake clips and the mean distance."""
    sizes, means = [len(fake)], [distance(real, fake)]
    for number in range(2, parts + 1):
        n, m = len(real) // number, len(fake) // number
        generator = keyed_generator(Purpose.PARTS, seed, number)
        found = []
        for _ in range(shuffles):
            pairs = zip(_shuffled(real, generator).split(n), _shuffled(fake, generator).split(m), strict=False)
            found += [distance(*pair) for pair, _ in zip(pairs, range(number), strict=False)]
        sizes.append(m)
        means.append(sum(found) / len(found))
    return sizes, means


def _shuffled(features: Tensor, generator: torch.Generator) -> Tensor:
    return features[torch.randperm(len(features), generator=generator).to(features.device)]


def _fit_line(sizes: list[int], means: list[float]) -> tuple[float, float]:
    """Value at 0 and slope of the least-squares line through the means against 1 / size."""
    inverse = 1 / torch.tensor(sizes, dtype=torch.float64)
    points = torch.stack([torch.ones_like(inverse), inverse], dim=1)  # (sizes, 2)
    value, slope = torch.linalg.lstsq(points, torch.tensor(means, dtype=torch.float64)).solution.tolist()
    return value, slope
