"""Distributions of diffusion time, and drawing a stage of the token schedule for each micro-batch.

A micro-batch must have one token count, so its stage is drawn first, with the probability that the time distribution gives the
stage's interval; then its times, from the distribution restricted to that interval. The marginal of the times is then the
distribution itself, whatever the number of ranks.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from sparsevid.sparsity.schedule import LAST_TIMESTEP, Stage, TokenSchedule

BLOCK_STEPS = 8  # with a single slot a step, stages are stratified over this many consecutive steps


class TimeDistribution(Protocol):
    """A distribution of diffusion time u on [0, 1]."""

    def quantile(self, q: float) -> float:
        """F⁻¹(q) for q in [0, 1)."""

    def mass(self, stage: Stage) -> float:
        """Probability of the stage's interval."""

    def sample(self, stage: Stage, count: int, generator: torch.Generator) -> Tensor:
        """(count,) float64 times from the distribution restricted to the stage's interval."""


class UniformTimesteps:
    """Uniform over the discrete timesteps k = 0 … steps − 1, with u = k / (steps − 1)."""

    def __init__(self, steps: int = LAST_TIMESTEP + 1) -> None:
        self.steps = steps

    def quantile(self, q: float) -> float:
        return min(int(q * self.steps), self.steps - 1) / (self.steps - 1)

    def timestep_range(self, stage: Stage) -> tuple[int, int]:
        """First and last timestep (inclusive) of the stage; the first is larger than the last if it holds none."""
        last = self.steps - 1
        first = 0 if stage.low == 0.0 else math.floor(stage.low * last) + 1
        return first, min(math.floor(stage.high * last), last)

    def mass(self, stage: Stage) -> float:
        first, last = self.timestep_range(stage)
        return max(0, last - first + 1) / self.steps

    def sample(self, stage: Stage, count: int, generator: torch.Generator) -> Tensor:
        first, last = self.timestep_range(stage)
        return torch.randint(first, last + 1, (count,), generator=generator).double() / (self.steps - 1)


class UniformTimes:
    """Uniform on [0, 1]."""

    def quantile(self, q: float) -> float:
        return q

    def mass(self, stage: Stage) -> float:
        return stage.high - stage.low

    def sample(self, stage: Stage, count: int, generator: torch.Generator) -> Tensor:
        v = 1.0 - torch.rand(count, generator=generator, dtype=torch.float64)  # (0, 1]: intervals exclude their low end
        return (stage.low + v * (stage.high - stage.low)).clamp(max=stage.high)


class LogitNormalTimes:
    """u = sigmoid(z) with z normal: the usual choice for rectified flow (arXiv 2403.03206, section 3.1)."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        if std <= 0:
            raise ValueError(f"the standard deviation of logit-normal times is positive, got {std}")
        self.mean, self.std = mean, std

    def _cdf(self, u: float) -> float:
        if u <= 0.0 or u >= 1.0:
            return float(u >= 1.0)
        return torch.special.ndtr(torch.tensor((math.log(u / (1.0 - u)) - self.mean) / self.std, dtype=torch.float64)).item()

    def _inverse(self, q: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(q))

    def quantile(self, q: float) -> float:
        return self._inverse(torch.tensor(q, dtype=torch.float64)).item()

    def mass(self, stage: Stage) -> float:
        return self._cdf(stage.high) - self._cdf(stage.low)

    def sample(self, stage: Stage, count: int, generator: torch.Generator) -> Tensor:
        low, high = self._cdf(stage.low), self._cdf(stage.high)
        v = torch.rand(count, generator=generator, dtype=torch.float64)
        u = self._inverse((low + v * (high - low)).clamp(1e-12, 1.0 - 1e-12))
        # Rounding of F⁻¹(F(·)) may step over an end of the interval by one unit in the last place.
        return u.clamp(min=math.nextafter(stage.low, 1.0), max=stage.high)


def draw_stage(
    schedule: TokenSchedule, times: TimeDistribution, slot: int, slots: int, step: int, generator: torch.Generator
) -> int:
    """The stage of one micro-batch, stratified over the slots (ranks × accumulation) of an optimizer step.

    Slot i takes the stage that holds F⁻¹((i + U) / n), F the time distribution and U one offset shared by all slots, so that a
    step covers the stages in proportion: each stage's count is within one of n·p. Slots are shuffled, so that no rank always
    has the same stage. With one slot, the strata are those of `BLOCK_STEPS` consecutive steps.

    Args:
        slot: this micro-batch's index in 0 … slots − 1.
        slots: n, micro-batches of an optimizer step over all ranks.
        step: optimizer step.
        generator: in the same state on every slot that shares U: keyed by `stage_block(step, slots)`.

    Returns:
        Index into `schedule.stages`.
    """
    if slots == 1:
        slot, slots = step % BLOCK_STEPS, BLOCK_STEPS
    offset = torch.rand((), generator=generator, dtype=torch.float64).item()
    stratum = torch.randperm(slots, generator=generator)[slot].item()
    return schedule.stage_index(times.quantile((stratum + offset) / slots))


def stage_block(step: int, slots: int) -> int:
    """The key of the offset that `draw_stage` shares: the step, or the block of consecutive steps if there is one slot."""
    return step if slots > 1 else step // BLOCK_STEPS
