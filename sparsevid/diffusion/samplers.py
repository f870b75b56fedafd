"""Samplers: functions of `model(x, t, **cond)` that walk from noise to data.

Each takes x (B, C, ...) of unit normal noise and the number of steps. Those of diffusion models also take `noise`, which gives
fresh unit normal noise like x. `on_step` is called after each step. Conditions (`labels`) go to the model as they are.

No step makes the host wait for a device: coefficients are numbers or lie on the device, and a `TimedModel` is told the time.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsevid.diffusion import CONDITIONAL
from sparsevid.diffusion.flow import MODEL_TIME_SCALE
from sparsevid.diffusion.gaussian import TIMESTEPS, GaussianDiffusion
from sparsevid.sparsity.schedule import LAST_TIMESTEP

Model = Callable[..., Tensor]
# Told after a step: its number from 0, the diffusion time u that x is at by now, 0 after the last, and x, not to be changed.
OnStep = Callable[[int, float, Tensor], object]


class Told(NamedTuple):
    """What a caller knows of a call, and the tensors do not say without being waited for.

    Attributes:
        u: diffusion time of all clips; None: it has to be read from t.
        halves: what the rows are, in equal parts: one half of guidance, or both; without guidance `CONDITIONAL`.
    """

    u: float | None = None
    halves: tuple[str, ...] = (CONDITIONAL,)


class TimedModel:
    """A model that decides something by the time of a call: the grid, whether guidance acts, what is left out.

    Samplers tell it the diffusion time that they know, by `call_at`. Called by hand, `model(x, t, **cond)`, it has to read the
    times of the batch, for which the host waits if they lie on a GPU.

    Args:
        call: of (x, t, told, **cond), `told` a `Told`.
    """

    def __init__(self, call: Model) -> None:
        self.call = call

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.call(x, t, Told(), **cond)


def call_at(model: Model, x: Tensor, t: Tensor, told: Told, **cond: Any) -> Tensor:
    """Call a model of any kind, at times `t` (B,) in the model's scale, with what is known of the call."""
    return model.call(x, t, told, **cond) if isinstance(model, TimedModel) else model(x, t, **cond)


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
    """Times at which the steps of a flow sampler begin: 1, 1 − 1/steps, …, 1/steps.

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
    on_step: OnStep | None = None,
    **cond: Any,
) -> Tensor:
    """Ancestral sampling with the learned variance (DDPM, algorithm 2), on `steps` evenly spaced timesteps."""
    timesteps = spaced_timesteps(steps)
    diffusion = GaussianDiffusion(timesteps)
    for i in range(steps - 1, -1, -1):
        output = _call_at_timestep(model, x, timesteps[i], **cond)
        step = diffusion.p_mean_variance(output, x, _full(x, i), clip_denoised)
        x = step.mean + (0.5 * step.log_variance).exp() * noise() if i > 0 else step.mean
        _tell(on_step, steps - 1 - i, timesteps[i - 1] / LAST_TIMESTEP if i else 0.0, x)
    return x


def ddim(
    model: Model,
    x: Tensor,
    steps: int,
    *,
    eta: float = 0.0,
    noise: Callable[[], Tensor] | None = None,
    clip_denoised: bool = False,
    on_step: OnStep | None = None,
    **cond: Any,
) -> Tensor:
    """DDIM (arXiv 2010.02502, equation 12); deterministic for eta = 0. A learned variance is not used.

    Raises:
        ValueError: eta > 0 without a source of noise.
    """
    if eta > 0 and noise is None:
        raise ValueError(f"ddim with eta={eta} draws noise: pass `noise`")
    timesteps = spaced_timesteps(steps)
    diffusion = GaussianDiffusion(timesteps)
    for i in range(steps - 1, -1, -1):
        t = _full(x, i)
        eps = _call_at_timestep(model, x, timesteps[i], **cond)[:, : x.shape[1]]
        x0 = diffusion.pred_x0(x, t, eps)
        x0 = x0.clamp(-1, 1) if clip_denoised else x0
        eps = diffusion.pred_eps(x, t, x0)
        previous = diffusion.alphas_cumprod_prev[i]
        variance = eta**2 * diffusion.posterior_variance[i]  # these two lie on the host
        x = previous.sqrt().item() * x0 + (1 - previous - variance).sqrt().item() * eps
        if noise is not None and eta > 0 and i > 0:
            x = x + variance.sqrt().item() * noise()
        _tell(on_step, steps - 1 - i, timesteps[i - 1] / LAST_TIMESTEP if i else 0.0, x)
    return x


def dpm_solver(
    model: Model,
    x: Tensor,
    steps: int,
    *,
    noise: Callable[[], Tensor] | None = None,
    on_step: OnStep | None = None,
    **cond: Any,
) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): deterministic, of second order. A learned variance is not used.

    The step onto timestep 0 is of first order. On evenly spaced timesteps it is by far the longest in log-SNR, with 10 steps
    38 % of the whole way, and extrapolating over it overshoots: the end is then mostly farther from the exact one than DDIM's.

    `noise` is taken, so that all samplers of diffusion models are called alike, and nothing is drawn from it.
    """
    del noise
    timesteps = spaced_timesteps(steps)[::-1]
    scheduler = _dpm_scheduler(timesteps)
    for i, k in enumerate(timesteps):
        eps = _call_at_timestep(model, x, k, **cond)[:, : x.shape[1]]
        if k in timesteps[-2:-1]:
            scheduler.lower_order_nums = 0  # forget the earlier outputs
        x = scheduler.step(eps, k, x, return_dict=False)[0]
        _tell(on_step, i, timesteps[i + 1] / LAST_TIMESTEP if i + 1 < steps else 0.0, x)
    return x


def euler(model: Model, x: Tensor, steps: int, *, on_step: OnStep | None = None, **cond: Any) -> Tensor:
    """Euler's method for rectified flow: x ← x − v/steps at u = 1, 1 − 1/steps, …"""
    for i, (u, after) in enumerate(pairwise([*flow_times(steps), 0.0])):
        x = x - _call_at_flow_time(model, x, u, **cond) / steps
        _tell(on_step, i, after, x)
    return x


def heun(model: Model, x: Tensor, steps: int, *, on_step: OnStep | None = None, **cond: Any) -> Tensor:
    """Heun's method for rectified flow, of second order: the mean velocity of a step's two ends; 2·steps − 1 calls.

    The last step is Euler's: a model has seen next to nothing of u = 0 where training draws logit-normal times, and one step
    of first order leaves the whole at second (as in arXiv 2206.00364, algorithm 1).
    """
    for i, (u, after) in enumerate(pairwise([*flow_times(steps), 0.0])):
        slope = _call_at_flow_time(model, x, u, **cond)
        if after > 0.0:
            ahead = x - (u - after) * slope
            slope = (slope + _call_at_flow_time(model, ahead, after, **cond)) / 2
        x = x - (u - after) * slope
        _tell(on_step, i, after, x)
    return x


DIFFUSION_SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpm++": dpm_solver}
FLOW_SAMPLERS = {"euler": euler, "heun": heun}
SAMPLERS = DIFFUSION_SAMPLERS | FLOW_SAMPLERS


def sampler_times(sampler: str, steps: int) -> list[float]:
    """Diffusion times u in [0, 1] of all calls that a sampler makes of the model, first call first.

    Raises:
        ValueError: no such sampler, or a number of steps that it does not take.
    """
    if sampler == "heun":
        first, *later = flow_times(steps)
        return [first, *(u for u in later for _ in range(2))]  # the end of one step, the beginning of the next
    if sampler in FLOW_SAMPLERS:
        return flow_times(steps)
    if sampler in DIFFUSION_SAMPLERS:
        return [k / LAST_TIMESTEP for k in reversed(spaced_timesteps(steps))]
    raise ValueError(f"no sampler {sampler!r}; the samplers are {', '.join(SAMPLERS)}")


def call_once(sampler: str, model: Model, x: Tensor, u: float, **cond: Any) -> Tensor:
    """The model's output at diffusion time u, called as this sampler calls it."""
    if sampler in FLOW_SAMPLERS:
        return _call_at_flow_time(model, x, u, **cond)
    return _call_at_timestep(model, x, round(LAST_TIMESTEP * u), **cond)


def _dpm_scheduler(timesteps: list[int]) -> Any:
    """The scheduler of diffusers for these timesteps, on the betas of our linear schedule; its tables stay on the host."""
    from diffusers import DPMSolverMultistepScheduler  # takes seconds to import

    scheduler: Any = DPMSolverMultistepScheduler(
        trained_betas=GaussianDiffusion().betas.numpy(),
        solver_order=2,
        algorithm_type="dpmsolver++",
        prediction_type="epsilon",
    )
    scheduler.set_timesteps(timesteps=timesteps)
    scheduler.set_begin_index(0)  # so that it counts steps, and does not look for each timestep
    return scheduler


def _call_at_timestep(model: Model, x: Tensor, timestep: int, **cond: Any) -> Tensor:
    """A diffusion model's output at one of the timesteps 0 … 999."""
    return call_at(model, x, _full(x, timestep), Told(timestep / LAST_TIMESTEP), **cond)


def _call_at_flow_time(model: Model, x: Tensor, u: float, **cond: Any) -> Tensor:
    """A flow model's output at time u."""
    return call_at(model, x, _full(x, MODEL_TIME_SCALE * u), Told(u), **cond)


def _tell(on_step: OnStep | None, step: int, u: float, x: Tensor) -> None:
    if on_step is not None:
        on_step(step, u, x)


def _full(x: Tensor, value: float) -> Tensor:
    """(B,) of one value, filled on the device of x."""
    return torch.full(x.shape[:1], value, device=x.device)
