"""What a search is asked, and what can be chosen of a dense model: layers, modules, grids, intervals of diffusion time.

Dimensions: J intervals of diffusion time, G grids.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sparsevid.diffusion.gaussian import GaussianDiffusion
from sparsevid.diffusion.samplers import sampler_times
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.models.presets import IMAGE_RATES, PRESETS, SIZES, preset_rates
from sparsevid.runs.build import schedule_from_config
from sparsevid.runs.config import RunConfig
from sparsevid.search import SearchError
from sparsevid.search.allocation import Allocation
from sparsevid.search.measure import Losses, error_of_sum, loss_tables, name_of
from sparsevid.search.refine import rungs
from sparsevid.search.tables import (
    Choice,
    CostTables,
    LossTables,
    Span,
    choices_of_layout,
    cost_tables,
    modules_of,
    places,
    possible_modules,
)
from sparsevid.sparsity.cost import sampling_macs
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.layout import parse_layout
from sparsevid.sparsity.schedule import TIME_ERROR, TokenSchedule, default_frames, paper_schedule
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.study.file import MeasureSettings
from sparsevid.study.heldout import time_edges

OBJECTIVES = ("objective", "log_snr")
DIGITS = 4  # of times between stages, which people read
LAST_TIME = 0.999  # of the log-SNR of a flow, which is infinite at both ends


@dataclass(frozen=True)
class SearchSettings:
    """What is asked.

    Attributes:
        budget: multiply–adds of a sampling run, as a share of the dense model's.
        objective: weights of diffusion time in the loss: `objective`, as training draws it, or `log_snr`, uniform in that.
        monotone: no side of the grid grows with noise.
        clips, times, split, batch, seed: of the held-out losses; the seed is that of the fine-tunes too.
        rounds: into which clips are divided; between them, choices that cannot win are left.
        every: modules start at every so many layers.
        longest: layers of a module.
        tried: candidates that are fine-tuned in the first rung; 0: none.
        steps: of fine-tuning in the last rung.
    """

    budget: float
    objective: str = "objective"
    monotone: bool = True
    clips: int = 32
    times: int = 8
    split: str = "test"
    batch: int = 8
    seed: int = 0
    rounds: int = 4
    every: int = 2
    longest: int = 8
    tried: int = 8
    steps: int = 200

    def check(self) -> None:
        """Raise SearchError for what cannot be asked."""
        if not 0.0 < self.budget <= 1.0:
            raise SearchError(f"budget = {self.budget}: a share of the dense model's multiply–adds, above 0 and at most 1")
        if self.objective not in OBJECTIVES:
            raise SearchError(f"objective = {self.objective!r}; accepted are {', '.join(OBJECTIVES)}")
        for name, least in (("clips", 4), ("times", 1), ("batch", 1), ("rounds", 1), ("every", 1), ("longest", 3),
                            ("tried", 0), ("steps", 2)):  # fmt: skip
            if getattr(self, name) < least:
                raise SearchError(f"{name} = {getattr(self, name)}; it is at least {least}")
        if self.rounds * 2 > self.clips:
            raise SearchError(f"rounds = {self.rounds} of {self.clips} clips: a round has at least 2")
        planned = rungs(self.tried, self.steps)
        if len({steps for _, steps in planned}) < len(planned):
            raise SearchError(
                f"steps = {self.steps}: {len(planned)} rungs for {self.tried} candidates need {2 ** len(planned)}"
            )


@dataclass(frozen=True)
class Problem:
    """A dense model and what can be chosen of it.

    Attributes:
        pipeline: of the model.
        settings: what is asked.
        grids: G, from few to many tokens.
        modules: that can be chosen.
        times: of a sampling run's forwards.
        edges: (J + 1) ends of the intervals.
        weights: (J,) of them in the loss.
        costs: of all choices.
    """

    pipeline: VideoPipeline
    settings: SearchSettings
    grids: tuple[Grid, ...]
    modules: tuple[Span, ...]
    times: tuple[float, ...]
    edges: tuple[float, ...]
    weights: torch.Tensor
    costs: CostTables

    @property
    def spec(self) -> ModelSpec:
        """Of the dense model."""
        return self.pipeline.model.spec

    @property
    def choices(self) -> list[Choice]:
        """All that are measured."""
        return [*range(self.spec.depth), *((module, g) for module in self.modules for g in range(len(self.grids)))]

    @property
    def measure(self) -> MeasureSettings:
        """Of the held-out losses."""
        own = self.settings
        return MeasureSettings(clips=own.clips, times=own.times, split=own.split, batch=own.batch, seed=own.seed)

    def tables(self, losses: Losses) -> LossTables:
        """What was measured, as tables."""
        return loss_tables(losses, self.spec.depth, self.grids, self.modules, self.weights.tolist())

    def error_of(self, found: Allocation, losses: Losses) -> float:
        """The standard error of a prediction over the clips that all its choices were asked of."""
        pooled = [name_of(i, self.grids) for i, each in places(choices_of_layout(found.layout)) if each == "P"]
        modules = modules_of(found.layout)
        chosen = [[*pooled, *(name_of((each, g), self.grids) for each in modules)] for g in found.grids]
        return error_of_sum(losses, chosen, self.weights.tolist())

    def ratio(self, layout: str, schedule: TokenSchedule) -> float:
        """Multiply–adds of a sampling run over the dense model's, by the code that counts runs."""
        sparse = parse_layout(layout).is_sparse
        spec = replace(self.spec, layout=layout, sparse_grid=schedule.stages[0].grid if sparse else None)
        return sampling_macs(spec, schedule if sparse else None, self.times).ratio


def open_problem(pipeline: VideoPipeline, settings: SearchSettings) -> Problem:
    """What can be chosen of a dense model.

    Args:
        pipeline: its config says the grids, as the token schedule that a sparse model would have, and the sampling run.
        settings: what is asked.

    Raises:
        SearchError: the model is not dense, or the sampling run has fewer forwards than there are intervals.
        ValueError: as `schedule_from_config`.
    """
    spec, config = pipeline.model.spec, pipeline.config
    if spec.parsed_layout.kinds.strip("D"):
        raise SearchError(f"a search starts from a dense model; the layout of this one is {spec.layout!r}")
    if config.sample.steps < settings.times:
        raise SearchError(
            f"times = {settings.times} of a sampling run of sample.steps = {config.sample.steps}: in an interval of time "
            "without a forward all grids would cost the same, nothing"
        )
    grids = tuple(sorted({stage.grid for stage in own_schedule(config, spec).stages}, key=lambda grid: grid.tokens))
    edges = tuple(round(each, DIGITS) for each in time_edges(config, settings.times))
    times = tuple(sampler_times(pipeline.default_sampler, config.sample.steps))
    visits = [bisect_left(edges[1:-1], u - TIME_ERROR) for u in times]
    modules = {*possible_modules(spec.depth, every=settings.every, longest=settings.longest)}
    if (paper := paper_layout(spec)) is not None:  # what it has is asked too, so that it is predicted
        modules |= set(modules_of(paper))
    costs = cost_tables(spec, grids, [visits.count(j) for j in range(settings.times)], sorted(modules))
    weights = time_weights(config, edges, settings.objective)
    return Problem(pipeline, settings, grids, tuple(sorted(modules)), times, edges, weights, costs)


def paper_layout(spec: ModelSpec) -> str | None:
    """The paper's layout for a model of this depth; None where it has none."""
    return next((layout for depth, _, _, layout in SIZES.values() if depth == spec.depth), None)


def paper_schedules(problem: Problem) -> list[TokenSchedule]:
    """The run's own schedule, and all of the paper's form whose sides are whole at both ends."""
    config, dense = problem.pipeline.config.schedule, problem.spec.dense_grid()
    table = [(row[0], row[1]) for row in config.frames_table] if config.frames_table else None
    frames = table or config.frames or default_frames(dense.t)
    rates = [1 - (side / dense.h) ** 2 for side in range(dense.h, 0, -1)]
    others = [paper_schedule(dense, frames, low, high) for low in rates for high in rates if low <= high]
    return [own_schedule(problem.pipeline.config, problem.spec), *others]


def own_schedule(config: RunConfig, spec: ModelSpec) -> TokenSchedule:
    """The token schedule that a sparse model of this run would have: rates that it leaves open are those of the sparse preset,
    or without one the paper's, for images or for video.
    """
    preset = f"Sparse{config.model.preset}"
    low, high = preset_rates(preset) if preset in PRESETS or spec.is_video else IMAGE_RATES
    own = config.schedule
    r_min, r_max = low if own.r_min is None else own.r_min, high if own.r_max is None else own.r_max
    return schedule_from_config(replace(own, r_min=r_min, r_max=r_max), spec.dense_grid())


def time_weights(config: RunConfig, edges: Sequence[float], objective: str) -> torch.Tensor:
    """Weights (J,) of intervals of diffusion time, with the sum 1.

    Args:
        config: of the run.
        edges: ends of the intervals, which training draws equally often.
        objective: `objective`, equal ones; or `log_snr`, by their length in log-SNR.
    """
    if objective == "objective":
        return torch.full((len(edges) - 1,), 1 / (len(edges) - 1), dtype=torch.float64)
    ends = torch.tensor([_log_snr(config, u) for u in edges], dtype=torch.float64)
    return (ends[:-1] - ends[1:]) / (ends[0] - ends[-1])


def _log_snr(config: RunConfig, u: float) -> float:
    """log(α²/σ²) at a diffusion time."""
    if config.objective.kind == "flow":
        u = min(max(u, 1 - LAST_TIME), LAST_TIME)
        return 2 * math.log((1 - u) / u)
    kept = GaussianDiffusion().alphas_cumprod
    alpha = float(kept[round(u * (len(kept) - 1))])
    return math.log(alpha / (1 - alpha))
