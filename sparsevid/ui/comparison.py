"""What a click calls: clips of a model by some settings, what they cost as counted, and how long they took.

Dimensions: N clips, C = 3 channels (RGB), T frames, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsevid.benchmark.timing import time_turn
from sparsevid.diffusion.samplers import DIFFUSION_SAMPLERS, FLOW_SAMPLERS, OnStep
from sparsevid.diffusion.wrappers import guidance_acts
from sparsevid.evaluation.metrics.likeness import psnr
from sparsevid.generation import SCHEDULES
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.generation.sampling import Sampling
from sparsevid.savings.base import TextTold
from sparsevid.savings.tally import Tally
from sparsevid.savings.wrapper import text_told
from sparsevid.sparsity.cost import sampling_macs

MOST_CLIPS = 8  # of a click: one batch


@dataclass(frozen=True)
class Side:
    """One of the two ways to sample; what is None is as the model's run says.

    Attributes:
        model: its name on the page.
        sampler, steps, guidance, schedule, savings: as of `VideoPipeline.sampling`.
    """

    model: str
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    schedule: str | None = None
    savings: Sequence[str] | None = None


@dataclass(frozen=True)
class Shared:
    """What both sides have in common.

    Attributes:
        clips: N, 1 to `MOST_CLIPS`.
        seed: of the noise.
        classes: names to go through in turn; empty: all, in an order drawn by the seed.
        prompts: of models of text, to go through in turn; empty lines among them are passed over.
        negative: what guidance compares with in place of "no prompt"; nothing for a side without guidance.
    """

    clips: int = 4
    seed: int = 0
    classes: Sequence[str] = ()
    prompts: Sequence[str] = ()
    negative: str = ""


@dataclass(frozen=True)
class Made:
    """Clips of one side.

    Attributes:
        side: what was asked for.
        sampling: all settings.
        clips: uint8 (N, C, T, H, W).
        captions: the class or prompt of each clip, or nothing of an unconditional model.
        fps: frames a second.
        macs: counted multiply–adds of a clip, from noise to latents.
        dense_macs: the same of the dense model of this size without a saving.
        seconds: of a clip, the same.
        share: of the layers, what savings left; 1 without any.
    """

    side: Side
    sampling: Sampling
    clips: Tensor
    captions: tuple[str, ...]
    fps: float
    macs: float
    dense_macs: float
    seconds: float
    share: float


@dataclass(frozen=True)
class Choices:
    """What a model can be asked for, and what its run says.

    Attributes:
        classes: names by label; empty for an unconditional model.
        samplers: those that fit it.
        schedules: those that fit it.
        guided: whether guidance has something to compare with.
        text: whether it takes prompts.
        usual: the settings of its run.
    """

    classes: tuple[str, ...]
    samplers: tuple[str, ...]
    schedules: tuple[str, ...]
    guided: bool
    text: bool
    usual: Sampling


def choices(pipeline: VideoPipeline) -> Choices:
    """What the page offers for a model.

    Raises:
        ValueError: of a model of text, that nothing is known which encodes prompts; the message says what to give.
    """
    spec, objective = pipeline.model.spec, pipeline.config.objective
    text = spec.conditioned_on == "text"
    return Choices(
        classes=tuple(pipeline.classes),
        samplers=tuple(FLOW_SAMPLERS if objective.kind == "flow" else DIFFUSION_SAMPLERS),
        schedules=SCHEDULES if spec.is_sparse else ("off",),
        guided=bool(objective.label_dropout and (text or (spec.num_classes and spec.no_class))),
        text=text,
        usual=pipeline.sampling(prompts=[""] if text else None),
    )


def make(pipeline: VideoPipeline, side: Side, shared: Shared, on_step: OnStep | None = None) -> Made:
    """Generate the clips of one side, as one batch.

    Args:
        pipeline: of the side's model.
        on_step: as of `VideoPipeline.denoise`; what it raises ends the sampling.

    Raises:
        ValueError: settings that do not fit the model, with what is accepted.
        GenerationError: as `VideoPipeline.denoise`.
    """
    if not 1 <= shared.clips <= MOST_CLIPS:
        raise ValueError(f"{shared.clips} clips; a click makes 1 to {MOST_CLIPS}: for more there is `sparsevid sample`")
    ways = {name: getattr(side, name) for name in ("sampler", "steps", "guidance", "schedule", "savings")}
    sampling = pipeline.sampling(seed=shared.seed, batch=shared.clips, **ways, **_said(pipeline, side, shared))
    indices = range(shared.clips)
    with torch.inference_mode():
        told = text_told(pipeline.condition(indices, sampling).given)  # prompts are encoded now, and not timed
    tally = Tally() if sampling.savings else None
    if pipeline.graphed and not sampling.savings:
        pipeline.warm_up(sampling)  # recording graphs is no part of what the clips take
    latents: list[Tensor] = []
    timed = time_turn({"": lambda: latents.append(pipeline.denoise(indices, sampling, on_step, tally=tally))})
    counted, dense = clip_cost(pipeline, sampling, told)
    return Made(
        side=side,
        sampling=sampling,
        clips=pipeline.decode(latents[0]),
        captions=tuple(filter(None, (sampling.caption(index, pipeline.classes) for index in indices))),
        fps=pipeline.fps,
        macs=counted if tally is None else tally.macs / shared.clips,
        dense_macs=dense,
        seconds=timed[""] / shared.clips,
        share=1.0 if tally is None else tally.share,
    )


def clip_cost(pipeline: VideoPipeline, sampling: Sampling, text: TextTold | None = None) -> tuple[float, int]:
    """Multiply–adds of a clip from noise to latents, counted without making one.

    Args:
        text: of a model of text, as `text_told` gives it.

    Returns:
        Without a saving, which is what a `Tally` of these settings says; and those of the dense model of this size.
    """
    halves = [2 if sampling.guidance != 1.0 and guidance_acts(sampling.guidance_interval, u) else 1 for u in sampling.times()]
    calls = [u for u, number in zip(sampling.times(), halves, strict=True) for _ in range(number)]
    cost = sampling_macs(
        pipeline.model.spec, pipeline.token_schedule(sampling), calls, size=sampling.input_size, **(text or {})
    )
    return cost.mean_macs * len(calls), cost.dense_macs * len(calls)


def _said(pipeline: VideoPipeline, side: Side, shared: Shared) -> dict[str, Any]:
    """What the model is told: prompts, classes, or nothing. What it does not know is not told."""
    if pipeline.prompts is None:
        return {"classes": list(shared.classes) or None} if pipeline.classes else {}
    guided = (pipeline.config.sample.guidance if side.guidance is None else side.guidance) != 1.0
    prompts = [line.strip() for line in shared.prompts if line.strip()]
    return {"prompts": prompts, "negative": shared.negative.strip() or None if guided else None}


def likeness(one: Made, other: Made) -> float | None:
    """PSNR in decibels of one side's clips to the other's; None where they are of other models, classes or sizes."""
    same = one.side.model == other.side.model and one.captions == other.captions and one.clips.shape == other.clips.shape
    return psnr(one.clips, other.clips) if same else None
