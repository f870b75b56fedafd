"""What the sampling benchmark compares: models, samplers, numbers of steps, batches.

Dimensions: B clips of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product as combinations
from typing import NamedTuple

from sparsevid.benchmark.candidates import Candidate, name_of, spec_of
from sparsevid.benchmark.model import dense_preset
from sparsevid.diffusion.samplers import FLOW_SAMPLERS, sampler_times
from sparsevid.generation.pipeline import DTYPES
from sparsevid.runs.build import schedule_from_config
from sparsevid.runs.config import ScheduleConfig
from sparsevid.sparsity.cost import forward_macs
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.schedule import TokenSchedule, stage_at
from sparsevid.sparsity.spec import ModelSpec

# The product of the paper's 93×: sparse tokens and few steps of a rectified flow, against a dense model and many of diffusion.
PRODUCT_DENSE, PRODUCT_SPARSE = ("ddpm", 250), ("euler", 5)


class Network(NamedTuple):
    """What cases with the same one run on.

    Attributes:
        spec: sizes and layout; without a learned variance for samplers of rectified flow.
        schedule: the token schedule; None for a dense model.
        dtype: a key of `DTYPES`, of weights and activations; samplers compute in float32.
        compiled: whether the model is compiled, a graph for each stage.
    """

    spec: ModelSpec
    schedule: TokenSchedule | None
    dtype: str
    compiled: bool


class Call(NamedTuple):
    """A call of a model in one stage: what is timed once, whatever sampler makes it."""

    network: Network
    grid: Grid | None
    batch: int


@dataclass(frozen=True)
class SamplingCase:
    """Sampling of `batch` clips.

    Attributes:
        preset: name of the preset that the spec comes from, for the reader: cases that differ in nothing else are equal.
        network: the model.
        sampler: a key of `SAMPLERS`.
        steps: of the sampler.
        batch: B.
        extrapolated: add up calls in place of running the sampler.
    """

    preset: str = field(compare=False)
    network: Network
    sampler: str
    steps: int
    batch: int
    extrapolated: bool = False

    @property
    def dense(self) -> "SamplingCase":
        """The case that this one is compared with: the dense model of the same sizes."""
        network = self.network._replace(spec=self.network.spec.dense(), schedule=None)
        preset = dense_preset(self.preset) if self.network.spec.is_sparse else self.preset
        return replace(self, preset=preset, network=network)

    @property
    def calls(self) -> dict[Call, list[float]]:
        """The sampler's calls of the model by stage, with their diffusion times."""
        calls: dict[Call, list[float]] = {}
        schedule = self.network.schedule
        for u in sampler_times(self.sampler, self.steps):
            grid = None if schedule is None else schedule.stages[stage_at(schedule, u)].grid
            calls.setdefault(Call(self.network, grid, self.batch), []).append(u)
        return calls

    @property
    def macs(self) -> int:
        """Counted multiply-adds of all calls, all clips together."""
        spec = self.network.spec
        return self.batch * sum(len(times) * forward_macs(spec, grid=call.grid) for call, times in self.calls.items())


def plan_sampling(
    presets: Sequence[str | Candidate],
    *,
    samplers: Sequence[str] = ("ddim",),
    steps: Sequence[int] = (20,),
    batches: Sequence[int] = (1,),
    dtypes: Sequence[str] = ("float32",),
    compiled: Sequence[bool] = (False,),
    input_size: tuple[int, int, int] | None = None,
    extrapolate: bool = False,
    product: bool = False,
) -> list[SamplingCase]:
    """Every combination of what is given, each preceded by the dense case it is compared with; no case twice.

    Args:
        presets: names of presets, whose sparse ones walk their token schedule (the paper's), and models of runs.
        samplers: keys of `SAMPLERS`.
        steps: of the samplers.
        batches: clips of a batch.
        dtypes: keys of `DTYPES`.
        compiled: whether models are compiled.
        input_size: latent (frames, height, width); by default each preset's own. Models of runs have theirs.
        extrapolate: add up single calls in place of running the samplers.
        product: also the two cases of each `Product`, always extrapolated.

    Raises:
        KeyError: no such preset or dtype.
        ValueError: no such sampler, or a number or size that does not fit.
    """
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise KeyError(f"no dtype {dtype!r}; accepted are {', '.join(DTYPES)}")
    if min(batches) < 1:
        raise ValueError(f"a batch has at least one clip, got batches {list(batches)}")
    for sampler, count in combinations(samplers, steps):
        sampler_times(sampler, count)  # refuses what it does not know
    cases: dict[SamplingCase, None] = {}
    for dtype, batch, graphs, preset in combinations(dtypes, batches, compiled, presets):
        wanted = [(sampler, count, extrapolate) for sampler, count in combinations(samplers, steps)]
        few = [(*PRODUCT_SPARSE, True)] if product and spec_of(preset).is_sparse else []
        for sampler, count, added_up in wanted + few:
            network = Network(*_spec_and_schedule(preset, sampler, input_size), dtype, graphs)
            case = SamplingCase(name_of(preset), network, sampler, count, batch, added_up)
            others = [product_dense(case)] if (sampler, count, added_up) in few else [case.dense]
            cases |= dict.fromkeys([*others, case])
    return list(cases)


def product_dense(few: SamplingCase) -> SamplingCase:
    """Many steps of diffusion with all tokens, which few steps of flow with sparse tokens are compared with."""
    sampler, steps = PRODUCT_DENSE
    network = few.dense.network
    network = network._replace(spec=replace(network.spec, learn_sigma=True))
    return replace(few.dense, network=network, sampler=sampler, steps=steps)


def _spec_and_schedule(
    preset: str | Candidate, sampler: str, input_size: tuple[int, int, int] | None
) -> tuple[ModelSpec, TokenSchedule | None]:
    """A preset at this size, or the model of a run, with the output that the sampler takes, and its token schedule."""
    spec, learn_sigma = spec_of(preset), sampler not in FLOW_SAMPLERS
    if not isinstance(preset, str):
        return replace(spec, learn_sigma=learn_sigma), preset.schedule
    size = input_size or spec.input_size
    if not spec.is_sparse:
        return replace(spec, input_size=size, learn_sigma=learn_sigma), None
    schedule = schedule_from_config(ScheduleConfig(), spec.dense_grid(size), preset)
    grid = schedule.stages[0].grid
    return replace(spec, input_size=size, learn_sigma=learn_sigma, sparse_grid=grid), schedule
