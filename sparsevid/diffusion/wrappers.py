"""What wraps a model while sampling: model → model. They compose: guidance outside, token schedule inside."""

import torch
from torch import Tensor

from sparsevid.diffusion.samplers import Model
from sparsevid.sparsity.schedule import TokenSchedule
from sparsevid.sparsity.times import LAST_TIMESTEP


def with_token_schedule(model: Model, schedule: TokenSchedule) -> Model:
    """Call `model` with the sparse grid that the schedule has at the time of the call.

    The wrapped model raises ValueError if the times of a batch lie in different stages: one call has one grid.
    """

    def scheduled(x: Tensor, t: Tensor, **cond) -> Tensor:
        low, high = (value / LAST_TIMESTEP for value in torch.stack([t.min(), t.max()]).tolist())
        stage = schedule.stage_index(low)
        if stage != schedule.stage_index(high):
            raise ValueError(f"diffusion times from {low:.4f} to {high:.4f} lie in different stages of the token schedule")
        return model(x, t, grid=schedule.stages[stage].grid, **cond)

    return scheduled


def with_guidance(model: Model, scale: float, null_label: int, channels: int | None = None) -> Model:
    """Classifier-free guidance (arXiv 2207.12598): unconditional + scale·(conditional − unconditional), in one batch.

    Args:
        model: takes `labels`.
        scale: 1 is no guidance.
        null_label: the label that means "no class".
        channels: guide the first `channels` output channels only, and keep the conditional values of the others. None guides
            the channels of x: all but a learned variance. (DiT's published samples guide three of four.)

    Returns:
        A model that needs `labels` (B,).
    """

    def guided(x: Tensor, t: Tensor, *, labels: Tensor, **cond) -> Tensor:
        if scale == 1.0:
            return model(x, t, labels=labels, **cond)
        both = torch.cat([labels, torch.full_like(labels, null_label)])
        output = model(torch.cat([x, x]), torch.cat([t, t]), labels=both, **cond)
        conditional, unconditional = output.chunk(2)
        count = x.shape[1] if channels is None else channels
        mixed = torch.lerp(unconditional[:, :count], conditional[:, :count], scale)
        return torch.cat([mixed, conditional[:, count:]], dim=1)

    return guided
