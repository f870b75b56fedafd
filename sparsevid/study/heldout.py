"""Held-out loss: of given weights on fixed clips, times and noise, clip by clip and by interval of time.

Unlike a run's validation, which asks in each stage of its token schedule, times are the same for all models of an objective:
one in each of J intervals that training draws equally often. So losses of dense and sparse models are paired, clip by clip.

Dimensions: N clips, J intervals of diffusion time, B clips of a forward.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from sparsevid.data.open import open_data
from sparsevid.diffusion.samplers import Model
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.runs.config import RunConfig
from sparsevid.sparsity.schedule import TokenSchedule
from sparsevid.study.file import MeasureSettings
from sparsevid.system.distributed import sum_over_ranks
from sparsevid.system.seeding import Purpose, keyed_generator
from sparsevid.training.objective import build_objective
from sparsevid.training.validation import FixedClip, fixed_latents, validation_dataset


def time_edges(config: RunConfig, intervals: int) -> list[float]:
    """The J + 1 ends of intervals of diffusion time that training draws equally often."""
    times = build_objective(config.objective).times
    return [0.0, *(times.quantile(number / intervals) for number in range(1, intervals)), 1.0]


def heldout_losses(pipeline: VideoPipeline, measure: MeasureSettings) -> Tensor:
    """Losses on the fixed clips of a split. All ranks call it together, and each computes its share.

    Args:
        pipeline: of the averaged weights, with the config of its run.
        measure: split, clips, times and their seed.

    Returns:
        (N, J) float64, on all ranks.

    Raises:
        ValueError: there is no such split, or see `open_data`.
    """
    share = heldout_clips(pipeline, measure)
    return sum_over_ranks(clip_losses(pipeline, share, measure))


def heldout_clips(pipeline: VideoPipeline, measure: MeasureSettings) -> list[FixedClip]:
    """This rank's share of the fixed clips of a split, as latents.

    Raises:
        ValueError: there is no such split, or see `open_data`.
    """
    config = heldout_config(pipeline.config, measure)
    _, manifest, dataset = open_data(config)
    chosen = validation_dataset(config, manifest, dataset)
    return fixed_latents(chosen, pipeline.autoencoder, measure.clips, pipeline.device)


def heldout_config(config: RunConfig, measure: MeasureSettings) -> RunConfig:
    """A run's config that opens the held-out clips, the same for all seeds of training; nothing is decoded in advance."""
    data = replace(config.data, cache_frames=False, latents=None, flip=False, images=0, workers=0)
    return replace(config, data=data, seed=measure.seed, monitor=replace(config.monitor, validate_split=measure.split))


@torch.no_grad()
def clip_losses(
    pipeline: VideoPipeline,
    clips: Sequence[FixedClip],
    measure: MeasureSettings,
    *,
    model: Model | None = None,
    schedule: TokenSchedule | None = None,
) -> Tensor:
    """Losses of this rank's clips, and zeros for the others.

    Args:
        pipeline: whose objective, and whose model if no other is given.
        clips: this rank's share, as `heldout_clips` gives it.
        measure: clips, times, their seed, and the batch, of which losses are independent up to rounding.
        model: asked in place of the pipeline's, at the same times with the same noise.
        schedule: of that model; a dense one has none.

    Returns:
        (N, J) float64.
    """
    objective, spec = build_objective(pipeline.config.objective), pipeline.model.spec
    if model is None:
        model, schedule = pipeline.model, pipeline.schedule
    found = torch.zeros(measure.clips, measure.times, dtype=torch.float64)
    asked = []  # (stage, interval, clip, u, generator of its noise)
    for interval in range(measure.times):
        for clip in clips:
            generator = keyed_generator(Purpose.HELD_OUT, measure.seed, interval, clip.number)
            drawn = torch.rand((), generator=generator, dtype=torch.float64).item()
            u = objective.times.quantile((interval + drawn) / measure.times)
            asked.append((0 if schedule is None else schedule.stage_index(u), interval, clip, u, generator))
    asked.sort(key=lambda each: each[0])  # a forward has one grid; the rest stays in its order
    for stage, group in groupby(asked, key=lambda each: each[0]):
        members = list(group)
        grid = {} if schedule is None else {"grid": schedule.stages[stage].grid}
        for first in range(0, len(members), measure.batch):
            part = members[first : first + measure.batch]
            x0 = torch.stack([clip.latents for _, _, clip, _, _ in part]).to(pipeline.device)
            noise = torch.stack([torch.randn(clip.latents.shape, generator=each) for _, _, clip, _, each in part])
            u = torch.tensor([each for _, _, _, each, _ in part], dtype=torch.float64)
            labels = torch.tensor([clip.label for _, _, clip, _, _ in part], device=pipeline.device)
            condition = {"labels": labels} if spec.num_classes else {}
            inputs = (x0, u.to(pipeline.device), noise.to(pipeline.device))
            losses = objective.loss(model, *inputs, **grid, **condition).double().cpu()
            for (_, interval, clip, _, _), loss in zip(part, losses.tolist(), strict=True):
                found[clip.number, interval] = loss
    return found
