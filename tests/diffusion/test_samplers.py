"""Samplers on distributions whose exact velocity and noise are known in closed form."""

import math

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from sparsevid.diffusion import SAMPLER_NAMES
from sparsevid.diffusion.gaussian import GaussianDiffusion, linear_alphas_cumprod
from sparsevid.diffusion.samplers import (
    DIFFUSION_SAMPLERS,
    FLOW_SAMPLERS,
    SAMPLERS,
    ddim,
    dpm_solver,
    sampler_times,
    spaced_timesteps,
)

MEAN, STD = 0.7, 0.4
ALPHAS_CUMPROD = linear_alphas_cumprod()
START = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]  # noise, (B, 1)
GAUSSIAN = ((1.0, MEAN, STD),)
MIXTURES = {
    "gaussian": GAUSSIAN,
    "unequal": ((0.3, -1.0, 0.2), (0.7, 0.8, 0.4)),
    "wide": ((0.5, -1.0, 0.8), (0.5, 1.0, 0.8)),
}


def gaussian_velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[ε − x₀ | x_u] of data N(MEAN, STD²)."""
    u = (t.double() / 999).view(-1, 1)
    variance = (1 - u) ** 2 * STD**2 + u**2
    return -MEAN + (u - (1 - u) * STD**2) / variance * (x - (1 - u) * MEAN)


def mixture_noise(components):
    """E[ε | x_t] of data that is a mixture of normals, rows (weight, mean, std); the second channel is a variance to ignore."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        alpha = ALPHAS_CUMPROD[t].view(-1, 1)
        log_weights, noises = [], []
        for weight, mean, std in components:
            variance = alpha * std**2 + 1 - alpha
            apart = x - alpha.sqrt() * mean
            log_weights.append(math.log(weight) - 0.5 * variance.log() - 0.5 * apart.square() / variance)
            noises.append((1 - alpha).sqrt() / variance * apart)
        noise = (torch.softmax(torch.stack(log_weights), 0) * torch.stack(noises)).sum(0)
        return torch.cat([noise, torch.full_like(noise, 9.0)], dim=1)

    return model


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence_of_flow_samplers(name, order):
    """The flow of a Gaussian takes noise ε to MEAN + STD·ε."""
    exact, steps = MEAN + STD * START, [16, 32, 64, 128]
    errors = [(FLOW_SAMPLERS[name](gaussian_velocity, START, n) - exact).abs().max().item() for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.1


def test_heun_is_nearer_than_euler_for_the_same_number_of_calls():
    exact = MEAN + STD * START
    for steps in (5, 10, 20):
        errors = {
            name: (SAMPLERS[name](gaussian_velocity, START, n) - exact).abs().max().item()
            for name, n in (("euler", 2 * steps - 1), ("heun", steps))
        }
        assert errors["heun"] < errors["euler"]


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_a_thousand_steps_recover_the_moments_of_a_gaussian(name):
    """What takes noise to data is affine here, so its values at 0 and 1 are the mean, and the mean plus the deviation."""
    ends = SAMPLERS[name](mixture_noise(GAUSSIAN), torch.tensor([[0.0], [1.0], [-1.0]], dtype=torch.float64), 1000).squeeze()
    mean, std = ends[0].item(), (ends[1] - ends[0]).item()
    assert abs(mean - MEAN) < 3e-3 and abs(std - STD) < 3e-3
    assert ends[2].item() == pytest.approx(mean - std, abs=1e-5)


def test_ancestral_steps_recover_the_moments_of_a_gaussian():
    """DDIM with the variance of ancestral sampling (eta 1), on many samples."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, dtype=torch.float64, generator=generator)
    fresh = lambda: torch.randn(x.shape, dtype=x.dtype, generator=generator)  # noqa: E731
    out = ddim(mixture_noise(GAUSSIAN), x, 250, eta=1.0, noise=fresh)
    assert abs(out.mean().item() - MEAN) < 0.03 and abs(out.std().item() - STD) < 0.03


def test_ddim_without_eta_is_deterministic_and_draws_nothing():
    def refuse() -> Tensor:
        raise AssertionError("noise was drawn")

    model = mixture_noise(MIXTURES["unequal"])
    for name in ("ddim", "dpm++"):
        first, again = (SAMPLERS[name](model, START, 10, noise=refuse) for _ in range(2))
        assert torch.equal(first, again) and torch.equal(first, SAMPLERS[name](model, START, 10))
    noisy = [ddim(model, START, 10, eta=1.0, noise=lambda: torch.randn_like(START)) for _ in range(2)]
    assert not torch.equal(*noisy)


@pytest.mark.parametrize("components", MIXTURES.values(), ids=MIXTURES)
def test_dpm_solver_is_nearer_than_ddim_for_the_same_steps(components):
    model = mixture_noise(components)
    exact = ddim(model, START, 1000)
    for steps in (5, 10, 20, 50):
        errors = {name: (SAMPLERS[name](model, START, steps) - exact).abs().mean().item() for name in ("ddim", "dpm++")}
        assert errors["dpm++"] < errors["ddim"]


@pytest.mark.parametrize("steps", [1, 2, 3, 14, 20])
def test_dpm_solver_is_the_scheduler_of_diffusers(steps):
    """Down to timestep 0 with a last step of first order, which diffusers calls `euler_at_final`; then the predicted x₀."""
    model, diffusion = mixture_noise(MIXTURES["unequal"]), GaussianDiffusion()
    *above, last = spaced_timesteps(steps)[::-1]
    x = START
    if above:
        scheduler = DPMSolverMultistepScheduler(
            trained_betas=diffusion.betas.numpy(), final_sigmas_type="sigma_min", euler_at_final=True
        )
        scheduler.set_timesteps(timesteps=above)
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t.expand(len(x)))[:, :1], t, x).prev_sample
    t = torch.full((len(x),), last)
    x = diffusion.pred_x0(x, t, model(x, t)[:, :1])
    torch.testing.assert_close(dpm_solver(model, START, steps), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 5, 50])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_calls_the_model_at_the_times_it_says(name, steps):
    called = []

    def model(x: Tensor, t: Tensor, marker: str) -> Tensor:
        assert t.shape == x.shape[:1] and marker == "kept"
        called.append(t[0].item())
        return x.new_zeros(len(x), 2 if name in DIFFUSION_SAMPLERS else 1)

    ticks = []
    options = {"noise": lambda: torch.zeros_like(START)} if name in DIFFUSION_SAMPLERS else {}
    out = SAMPLERS[name](model, START, steps, on_step=lambda *told: ticks.append(told), marker="kept", **options)
    assert out.shape == START.shape and out.isfinite().all()
    numbers, times, latents = zip(*ticks, strict=True)
    assert numbers == tuple(range(steps)) and latents[-1] is out and times[-1] == 0.0
    assert list(times[:-1]) == pytest.approx(sorted(set(sampler_times(name, steps)), reverse=True)[1:], abs=1e-7)
    assert [t / 999 for t in called] == pytest.approx(sampler_times(name, steps), abs=1e-7)
    if name in DIFFUSION_SAMPLERS:
        assert called == spaced_timesteps(steps)[::-1]
    assert len(called) == (2 * steps - 1 if name == "heun" else steps)


def test_commands_offer_every_sampler():
    assert tuple(SAMPLERS) == SAMPLER_NAMES


def test_what_no_sampler_takes_is_named():
    with pytest.raises(ValueError, match=r"no sampler 'dpm'; the samplers are ddpm, ddim, dpm\+\+, euler, heun"):
        sampler_times("dpm", 10)
    for name in FLOW_SAMPLERS:
        with pytest.raises(ValueError, match="at least 1 step, got 0"):
            sampler_times(name, 0)
        with pytest.raises(ValueError, match="at least 1 step, got 0"):
            SAMPLERS[name](gaussian_velocity, START, 0)
    for name in DIFFUSION_SAMPLERS:
        with pytest.raises(ValueError, match="1 to 1000 steps, got 0"):
            SAMPLERS[name](mixture_noise(GAUSSIAN), START, 0, noise=lambda: START)
