"""What a click calls: clips of a model by some settings, what they cost as counted, and how long they took.

Dimensions: N clips, C = 3 channels (RGB), T frames, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsevid.benchmark.timing import time_turn
from sparsevid.diffusion.samplers import DIFFUSION_SAMPLERS, FLOW_SAMPLERS, OnStep
from sparsevid.diffusion.wrappers import guidance_acts
from sparsevid.evaluation.metrics.likeness import psnr
from sparsevid.generation import SCHEDULES
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.generation.sampling import Sampling
from sparsevid.savings.tally import Tally
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
    """

    clips: int = 4
    seed: int = 0
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class Made:
    """Clips of one side.

    Attributes:
        side: what was asked for.
        sampling: all settings.
        clips: uint8 (N, C, T, H, W).
        captions: the class of each clip, or nothing of an unconditional model.
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
        usual: the settings of its run.
    """

    classes: tuple[str, ...]
    samplers: tuple[str, ...]
    schedules: tuple[str, ...]
    guided: bool
    usual: Sampling


def choices(pipeline: VideoPipeline) -> Choices:
    """What the page offers for a model."""
    spec, objective = pipeline.model.spec, pipeline.config.objective
    return Choices(
        classes=tuple(pipeline.classes),
        samplers=tuple(FLOW_SAMPLERS if objective.kind == "flow" else DIFFUSION_SAMPLERS),
        schedules=SCHEDULES if spec.is_sparse else ("off",),
        guided=bool(spec.num_classes and spec.no_class and objective.label_dropout),
        usual=pipeline.sampling(),
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
    classes = list(shared.classes) or None if pipeline.classes else None
    sampling = pipeline.sampling(classes=classes, seed=shared.seed, batch=shared.clips, **ways)
    tally = Tally() if sampling.savings else None
    if pipeline.graphed and not sampling.savings:
        pipeline.warm_up(sampling)  # recording graphs is no part of what the clips take
    latents: list[Tensor] = []
    timed = time_turn({"": lambda: latents.append(pipeline.denoise(range(shared.clips), sampling, on_step, tally=tally))})
    names, (counted, dense) = pipeline.classes, clip_cost(pipeline, sampling)
    return Made(
        side=side,
        sampling=sampling,
        clips=pipeline.decode(latents[0]),
        captions=tuple(names[sampling.label(index)] for index in range(shared.clips)) if names else (),
        fps=pipeline.fps,
        macs=counted if tally is None else tally.macs / shared.clips,
        dense_macs=dense,
        seconds=timed[""] / shared.clips,
        share=1.0 if tally is None else tally.share,
    )


def clip_cost(pipeline: VideoPipeline, sampling: Sampling) -> tuple[float, int]:
    """Multiply–adds of a clip from noise to latents, counted without making one.

    Returns:
        Without a saving, which is what a `Tally` of these settings says; and those of the dense model of this size.
    """
    halves = [2 if sampling.guidance != 1.0 and guidance_acts(sampling.guidance_interval, u) else 1 for u in sampling.times()]
    calls = [u for u, number in zip(sampling.times(), halves, strict=True) for _ in range(number)]
    cost = sampling_macs(pipeline.model.spec, pipeline.token_schedule(sampling), calls, size=sampling.input_size)
    return cost.mean_macs * len(calls), cost.dense_macs * len(calls)


def likeness(one: Made, other: Made) -> float | None:
    """PSNR in decibels of one side's clips to the other's; None where they are of other models, classes or sizes."""
    same = one.side.model == other.side.model and one.captions == other.captions and one.clips.shape == other.clips.shape
    return psnr(one.clips, other.clips) if same else None
