"""Held-out loss: of given weights on fixed clips, times and noise, clip by clip and by interval of time.

Unlike a run's validation, which asks in each stage of its token schedule, times are the same for all models of an objective:
one in each of J intervals that training draws equally often. So losses of dense and sparse models are paired, clip by clip.

Dimensions: N clips, J intervals of diffusion time, B clips of a forward.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsevid.data.clips import NO_LABEL, fixed_clips
from sparsevid.data.open import open_data
from sparsevid.diffusion.samplers import Model
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.runs.config import RunConfig
from sparsevid.sparsity.schedule import TokenSchedule
from sparsevid.study.file import MeasureSettings
from sparsevid.system.distributed import sum_over_ranks
from sparsevid.system.seeding import Purpose, keyed_generator
from sparsevid.text.encoder import EncodedText
from sparsevid.training.objective import Objective, build_objective
from sparsevid.training.validation import FixedClip, condition_of, fixed_latents, fixed_prompts, validation_dataset


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
    config, manifest, dataset = open_data(heldout_config(pipeline.config, measure))
    chosen = validation_dataset(config, manifest, dataset)
    return fixed_latents(chosen, pipeline.autoencoder, measure.clips, pipeline.device)


class SampleCaptions(NamedTuple):
    """Captions that samples of a model of text are made of, in turn.

    Attributes:
        texts: of held-out clips, drawn evenly over classes.
        encoded: their features.
        labels: class of each of these clips.
    """

    texts: list[str]
    encoded: EncodedText
    labels: list[int]  # -1 for none


def sample_captions(config: RunConfig, measure: MeasureSettings, count: int) -> SampleCaptions | None:
    """What samples of a run are asked to show; None of a run without captions. All ranks call it together.

    Args:
        config: of the run.
        measure: split and seed.
        count: samples.

    Raises:
        ValueError: as `heldout_clips`.
    """
    if config.data.captions is None:
        return None
    config, manifest, dataset = open_data(heldout_config(config, measure))
    chosen = validation_dataset(config, manifest, dataset)
    texts, encoded = fixed_prompts(chosen, count)
    own = (chosen.videos[index].label for _, index in fixed_clips(chosen, count, chosen.seed))
    return SampleCaptions(texts, encoded, [NO_LABEL if label is None else label for label in own])


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
    objective = build_objective(pipeline.config.objective)
    if model is None:
        model, schedule = pipeline.model, pipeline.schedule
    found = torch.zeros(measure.clips, measure.times, dtype=torch.float64)
    for asked in questions(pipeline, clips, measure, schedule):
        found[asked.numbers, asked.intervals] = asked.losses(objective, model).double().cpu()
    return found


class Question(NamedTuple):
    """A forward: clips at one time each, with their noise, all of one token grid.

    Attributes:
        numbers: of the clips, B.
        intervals: of their times, B.
        x0: clean latents (B, C, T, H, W), on the model's device.
        u: times (B,), float64, there.
        noise: like x0.
        condition: what else the model is called with: `labels` of one with classes, `text` and its mask of one of text, `grid`
            of one with a token schedule.
    """

    numbers: list[int]
    intervals: list[int]
    x0: Tensor
    u: Tensor
    noise: Tensor
    condition: dict[str, Any]

    def losses(self, objective: Objective, model: Model) -> Tensor:
        """Losses (B,) of a model that is called as `condition` says."""
        return objective.loss(model, self.x0, self.u, self.noise, **self.condition)


def questions(
    pipeline: VideoPipeline, clips: Sequence[FixedClip], measure: MeasureSettings, schedule: TokenSchedule | None
) -> Iterator[Question]:
    """What models are asked about these clips: each at one time in each interval, which as its noise is a function of the
    seed, the interval and the clip's number.

    Args:
        pipeline: whose objective, classes and device.
        clips: this rank's share.
        measure: times, their seed, and the batch.
        schedule: of the model that is asked; None of a dense one.
    """
    times, spec = build_objective(pipeline.config.objective).times, pipeline.model.spec
    asked = []  # (stage, interval, clip, u, generator of its noise)
    for interval in range(measure.times):
        for clip in clips:
            generator = keyed_generator(Purpose.HELD_OUT, measure.seed, interval, clip.number)
            drawn = torch.rand((), generator=generator, dtype=torch.float64).item()
            u = times.quantile((interval + drawn) / measure.times)
            asked.append((0 if schedule is None else schedule.stage_index(u), interval, clip, u, generator))
    asked.sort(key=lambda each: each[0])  # a forward has one grid; the rest stays in its order
    for stage, group in groupby(asked, key=lambda each: each[0]):
        members = list(group)
        grid = {} if schedule is None else {"grid": schedule.stages[stage].grid}
        for first in range(0, len(members), measure.batch):
            _, intervals, part, us, generators = zip(*members[first : first + measure.batch], strict=True)
            x0 = torch.stack([clip.latents for clip in part])
            noise = torch.stack([torch.randn(each.shape, generator=own) for each, own in zip(x0, generators, strict=True)])
            yield Question(
                numbers=[clip.number for clip in part],
                intervals=list(intervals),
                x0=x0.to(pipeline.device),
                u=torch.tensor(us, dtype=torch.float64).to(pipeline.device),
                noise=noise.to(pipeline.device),
                condition=grid | condition_of(spec, part, pipeline.device),
            )
