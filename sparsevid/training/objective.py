"""What is minimised: noise and variance of a diffusion, or the velocity of a rectified flow, over stages and times.

Dimensions: B clips of a micro-batch, C latent channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sparsevid.diffusion.flow import MODEL_TIME_SCALE, interpolate, velocity_loss
from sparsevid.diffusion.gaussian import TIMESTEPS, GaussianDiffusion
from sparsevid.diffusion.null_text import NullText
from sparsevid.diffusion.samplers import Model
from sparsevid.runs.config import ObjectiveConfig
from sparsevid.sparsity.schedule import Stage, TokenSchedule, constant_schedule
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.sparsity.times import LogitNormalTimes, TimeDistribution, UniformTimes, UniformTimesteps, draw_stage, stage_block
from sparsevid.system.seeding import Purpose, keyed_generator
from sparsevid.system.transfer import to_device


class Draw(NamedTuple):
    """The random part of a micro-batch: its stage, and times u (B,) in the stage's interval."""

    index: int  # type: ignore[assignment]  # hides `tuple.index`, which nobody asks of a draw
    stage: Stage
    u: Tensor


class Objective(Protocol):
    """An objective: a distribution of times, and a loss."""

    @property
    def times(self) -> TimeDistribution: ...

    learn_sigma: bool

    def loss(self, model: Model, x0: Tensor, u: Tensor, noise: Tensor, **cond: Any) -> Tensor:
        """Per-sample losses (B,) of clean latents x0 (B, C, ...) at times u (B,) with unit normal noise like x0."""
        ...


class DiffusionObjective:
    """The hybrid loss on discrete timesteps (arXiv 2102.09672, equation 16)."""

    learn_sigma = True

    def __init__(self) -> None:
        self.times = UniformTimesteps(TIMESTEPS)
        self.diffusion = GaussianDiffusion()

    def loss(self, model: Model, x0: Tensor, u: Tensor, noise: Tensor, **cond: Any) -> Tensor:
        t = (u * (TIMESTEPS - 1)).round().long()
        x = self.diffusion.q_sample(x0, t, noise)
        return self.diffusion.loss(model(x, t, **cond).float(), x0, x, t, noise).loss


class FlowObjective:
    """The velocity of a rectified flow (arXiv 2209.03003, equation 1)."""

    learn_sigma = False

    def __init__(self, times: TimeDistribution) -> None:
        self.times = times

    def loss(self, model: Model, x0: Tensor, u: Tensor, noise: Tensor, **cond: Any) -> Tensor:
        t = (MODEL_TIME_SCALE * u).float()
        return velocity_loss(model(interpolate(x0, u, noise), t, **cond).float(), x0, noise)


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective of a run.

    Raises:
        ValueError: times that the objective does not know.
    """
    if config.kind == "diffusion":
        if config.times not in (None, "uniform"):
            raise ValueError(f"objective.times = {config.times!r}: diffusion draws its discrete timesteps uniformly")
        return DiffusionObjective()
    return FlowObjective(UniformTimes() if config.times == "uniform" else LogitNormalTimes())


def draw_times(
    objective: Objective, schedule: TokenSchedule | None, batch: int, *, seed: int, step: int, slot: int, slots: int
) -> Draw:
    """The stage and the times of one micro-batch; a function of the arguments alone.

    Args:
        schedule: None for a dense model, which has one stage.
        batch: clips of the micro-batch.
        step: optimizer step.
        slot: this micro-batch among the `slots` = ranks × accumulation of the step.
    """
    schedule = schedule or constant_schedule((1, 1, 1))
    shared = keyed_generator(Purpose.STAGE, seed, stage_block(step, slots))
    index = draw_stage(schedule, objective.times, slot, slots, step, shared)
    own = keyed_generator(Purpose.TIME, seed, step, slot)
    return Draw(index, schedule.stages[index], objective.times.sample(schedule.stages[index], batch, own))


def draw_noise(like: Tensor, *, seed: int, step: int, slot: int) -> Tensor:
    """Unit normal noise like the latents, keyed by (seed, step, slot)."""
    generator = keyed_generator(Purpose.NOISE, seed, step, slot)
    return to_device(torch.randn(like.shape, generator=generator), like.device)


def draw_dropped(shape: Sequence[int], share: float, *, seed: int, step: int, slot: int) -> Tensor:
    """Which clips, and stills, are told of no class or prompt, for guidance: about `share`; keyed by (seed, step, slot).

    Args:
        shape: (B,), or with k stills (B, 1 + k).

    Returns:
        bool of this shape.
    """
    return torch.rand(shape, generator=keyed_generator(Purpose.LABEL_DROPOUT, seed, step, slot)) < share


def told(
    spec: ModelSpec, batch: Mapping[str, Tensor], dropped: Tensor | None = None, null: NullText | None = None
) -> dict[str, Tensor]:
    """What a model is told of a batch beside latents and times, where the batch has it.

    Args:
        spec: of the model.
        batch: of clips: `label` (B,) for a model of classes; `text` (B, L, C) and `text_mask` (B, L) for one of text; `sizes`
            (B, 3) for one whose conditions they are. With k stills (B, 1 + k) in place of (B,), but of sizes.
        dropped: bool like `label`, on its device: who is told of no class or prompt. None: nobody.
        null: "no prompt", where the text is, for a model of text of whose clips some are dropped.

    Returns:
        Arguments of the model's forward by name.

    Raises:
        ValueError: a model of text, and a batch without, or dropped clips and no "no prompt" in their place.
    """
    sizes = {"sizes": batch["sizes"]} if spec.micro_conditions else {}
    if spec.num_classes:
        labels = batch["label"]
        return {"labels": labels if dropped is None else labels.masked_fill(dropped, spec.num_classes)} | sizes
    if not spec.text_channels:
        return sizes
    if "text" not in batch:
        raise ValueError(
            "the model is of text, and its data have no captions: data.captions names the folder of their features"
        )
    text, mask = batch["text"], batch["text_mask"]
    if dropped is not None:
        if null is None:
            raise ValueError("of a model of text some clips are to have no prompt, and nothing says what that is: give `null`")
        text, mask = null.in_place_of(text, mask, to_device(dropped, text.device))
    return {"text": text, "text_mask": mask} | sizes
