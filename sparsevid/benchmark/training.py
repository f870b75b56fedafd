"""Training steps of models side by side: forward, backward and optimizer, over the stages of the token schedule.

Dimensions: B clips of a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from sparsevid.benchmark.candidates import Candidate
from sparsevid.benchmark.model import build_random_model
from sparsevid.benchmark.timing import Turns, time_turn
from sparsevid.models.inputs import drawn_condition
from sparsevid.models.presets import build_spec
from sparsevid.runs.build import schedule_from_config
from sparsevid.runs.config import ScheduleConfig
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.logging import progress

LATENT_FACTOR = 8  # pixels of a latent's side, in the autoencoder that the presets are made for


@dataclass(frozen=True)
class StepTime(Turns):
    """Training steps of a model in one stage.

    Attributes:
        preset: of the model.
        grid: sparse tokens of the stage; None for a dense model.
        share: of training's steps that are in this stage.
        turns: seconds of a step in each timed turn.
        batch: clips of a step.
    """

    preset: str
    grid: Grid | None
    share: float
    turns: tuple[float, ...]
    batch: int

    @property
    def seconds(self) -> float:
        """Median over the turns."""
        return self.median


def measure_training(
    presets: Sequence[str | Candidate],
    *,
    frames: int,
    size: tuple[int, int],
    batch: int,
    device: torch.device,
    repeats: int = 3,
) -> list[StepTime]:
    """Time training steps of all presets in all stages of their token schedules, in turns.

    Args:
        presets: names, and models of runs.
        frames: of a clip of the presets.
        size: (H,W) of such a clip in pixels.
        batch: B.
        device: where the models train.
        repeats: timed turns; each goes through everything. One more comes before, untimed.

    Raises:
        KeyError, ValueError: see `training_spec`; `batch` or `repeats` below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}")
    steps: dict[str, TrainingStep] = {}
    cases: dict[tuple[str, Grid | None], float] = {}
    for model in presets:
        each = _preset(model, frames, size) if isinstance(model, str) else model
        steps[each.name] = TrainingStep(each.spec, batch, device)
        if each.schedule is None:
            cases[each.name, None] = 1.0
            continue
        for stage in each.schedule.stages:
            cases[each.name, stage.grid] = cases.get((each.name, stage.grid), 0.0) + each.times.mass(stage)
    calls = {(name, grid): partial(steps[name], grid) for name, grid in cases}
    turns = [time_turn(calls) for _ in progress(range(repeats + 1), desc="turns")][1:]
    return [StepTime(*case, share, tuple(turn[case] for turn in turns), batch) for case, share in cases.items()]


def clips_per_second(times: Sequence[StepTime], preset: str) -> float:
    """Clips a second of a preset in training: its stages, each as often as training draws it."""
    own = [time for time in times if time.preset == preset]
    return own[0].batch / sum(time.share * time.seconds for time in own)


class TrainingStep:
    """Forward, backward and a plain AdamW step in float32 on random latents: what of training does not read clips.

    Args:
        spec: sizes and layout of the model; it holds random weights.
        batch: B, clips of a step.
        device: where it runs.

    Raises:
        ValueError: the batch is empty.
    """

    def __init__(self, spec: ModelSpec, batch: int, device: torch.device) -> None:
        if batch < 1:
            raise ValueError(f"a training step has at least one clip, got {batch}")
        self.model = build_random_model(spec, torch.float32, device).train().requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.x = torch.randn(batch, spec.in_channels, *spec.input_size, device=device)
        self.t = torch.linspace(0, 999, batch, device=device)
        self.told = drawn_condition(spec, batch, device, torch.float32)

    def __call__(self, grid: Grid | None = None) -> None:
        """Take one step, with these sparse tokens; None: the spec's."""
        self.optimizer.zero_grad()
        self.model(self.x, self.t, grid=grid, **self.told).square().mean().backward()
        self.optimizer.step()


def training_spec(preset: str, frames: int, size: tuple[int, int]) -> ModelSpec:
    """A preset for latents of clips of `frames` frames and `size` (H,W) pixels; a sparse one with the grid of its first stage.

    Raises:
        KeyError: no such preset.
        ValueError: latents of this size do not fit the preset.
    """
    return _preset(preset, frames, size).spec


def _preset(preset: str, frames: int, size: tuple[int, int]) -> Candidate:
    if size[0] % LATENT_FACTOR or size[1] % LATENT_FACTOR:
        raise ValueError(f"clips of {size[0]}×{size[1]} pixels have no whole latents: both are multiples of {LATENT_FACTOR}")
    latents = (frames, size[0] // LATENT_FACTOR, size[1] // LATENT_FACTOR)
    spec = build_spec(preset)
    if not spec.is_sparse:
        return Candidate(preset, replace(spec, input_size=latents), None)
    schedule = schedule_from_config(ScheduleConfig(), spec.dense_grid(latents), preset)
    return Candidate(preset, replace(spec, input_size=latents, sparse_grid=schedule.stages[0].grid), schedule)
