"""Samplers: functions of `model(x, t, **cond)` that walk from noise to data.

Each takes x (B, C, ...) of unit normal noise and the number of steps. `noise()` gives fresh unit normal noise like x, for
samplers that need it. `progress` wraps the steps, for a bar. Conditions (`labels`) go to the model as they are.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sparsevid.diffusion.flow import MODEL_TIME_SCALE
from sparsevid.diffusion.gaussian import TIMESTEPS, GaussianDiffusion

Model = Callable[..., Tensor]
Progress = Callable[[Iterable], Iterable]


def spaced_timesteps(steps: int) -> list[int]:
    """round(linspace(0, 999, steps)), rising.

    Raises:
        ValueError: steps outside 1 … 1000.
    """
    if not 1 <= steps <= TIMESTEPS:
        raise ValueError(f"a diffusion sampler takes 1 to {TIMESTEPS} steps, got {steps}")
    if steps == 1:
        return [TIMESTEPS - 1]
    return [round(i * (TIMESTEPS - 1) / (steps - 1)) for i in range(steps)]


def flow_times(steps: int) -> list[float]:
    """Times at which `euler` calls the model: 1, 1 − 1/steps, …, 1/steps.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"a flow sampler takes at least 1 step, got {steps}")
    return [1.0 - i / steps for i in range(steps)]


def ddpm(
    model: Model,
    x: Tensor,
    steps: int,
    *,
    noise: Callable[[], Tensor],
    clip_denoised: bool = False,
    progress: Progress = iter,
    **cond,
) -> Tensor:
    """Ancestral sampling with the learned variance (DDPM, algorithm 2), on `steps` evenly spaced timesteps."""
    diffusion = GaussianDiffusion(spaced_timesteps(steps))
    for i in progress(range(steps - 1, -1, -1)):
        t = torch.full(x.shape[:1], i, device=x.device)
        output = model(x, _model_time(diffusion, i, x), **cond)
        step = diffusion.p_mean_variance(output, x, t, clip_denoised)
        fresh = noise()
        x = step.mean + (0.5 * step.log_variance).exp() * fresh if i > 0 else step.mean
    return x


def ddim(
    model: Model,
    x: Tensor,
    steps: int,
    *,
    eta: float = 0.0,
    noise: Callable[[], Tensor] | None = None,
    clip_denoised: bool = False,
    progress: Progress = iter,
    **cond,
) -> Tensor:
    """DDIM (arXiv 2010.02502, equation 12); deterministic for eta = 0. A learned variance is not used.

    Raises:
        ValueError: eta > 0 without a source of noise.
    """
    if eta > 0 and noise is None:
        raise ValueError(f"ddim with eta={eta} draws noise: pass `noise`")
    diffusion = GaussianDiffusion(spaced_timesteps(steps))
    for i in progress(range(steps - 1, -1, -1)):
        t = torch.full(x.shape[:1], i, device=x.device)
        eps = model(x, _model_time(diffusion, i, x), **cond)[:, : x.shape[1]]
        x0 = diffusion.pred_x0(x, t, eps)
        x0 = x0.clamp(-1, 1) if clip_denoised else x0
        eps = diffusion.pred_eps(x, t, x0)
        previous = diffusion.alphas_cumprod_prev[i]
        variance = eta**2 * diffusion.posterior_variance[i]
        x = previous.sqrt().item() * x0 + (1 - previous - variance).sqrt().item() * eps
        if eta > 0 and i > 0:
            x = x + variance.sqrt().item() * noise()
    return x


def euler(model: Model, x: Tensor, steps: int, *, progress: Progress = iter, **cond) -> Tensor:
    """Euler's method for rectified flow: x ← x − v/steps at u = 1, 1 − 1/steps, …"""
    for u in progress(flow_times(steps)):
        t = torch.full(x.shape[:1], MODEL_TIME_SCALE * u, device=x.device)
        x = x - model(x, t, **cond) / steps
    return x


DIFFUSION_SAMPLERS = {"ddpm": ddpm, "ddim": ddim}
FLOW_SAMPLERS = {"euler": euler}
SAMPLERS = DIFFUSION_SAMPLERS | FLOW_SAMPLERS


def sampler_times(sampler: str, steps: int) -> list[float]:
    """Diffusion times u in [0, 1] at which a sampler calls the model, first call first.

    Raises:
        ValueError: no such sampler.
    """
    if sampler in FLOW_SAMPLERS:
        return flow_times(steps)
    if sampler in DIFFUSION_SAMPLERS:
        return [k / (TIMESTEPS - 1) for k in reversed(spaced_timesteps(steps))]
    raise ValueError(f"no sampler {sampler!r}; the samplers are {', '.join(SAMPLERS)}")


def _model_time(diffusion: GaussianDiffusion, index: int, x: Tensor) -> Tensor:
    """(B,) original timestep of step `index`."""
    return torch.full(x.shape[:1], int(diffusion.timesteps[index]), device=x.device)
