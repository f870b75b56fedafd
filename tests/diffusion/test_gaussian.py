"""Gaussian diffusion against facebookresearch/DiT's, on its stored inputs and outputs."""

import pytest
import torch
from parity import load_reference, relative_error

from sparsevid.diffusion.gaussian import GaussianDiffusion
from sparsevid.diffusion.samplers import ddim, ddpm, spaced_timesteps

REFERENCE, _ = load_reference("diffusion")
STEPS = sorted({int(key[4:].partition(".")[0]) for key in REFERENCE if key.startswith(("ddim", "ddpm"))})


@pytest.fixture(scope="module")
def reference():
    return REFERENCE


@pytest.fixture(scope="module")
def network(reference):
    """The closed-form network of the reference: cos(A·x + t/1000)."""

    def model(x, t):
        return torch.cos(torch.einsum("oc,bc...->bo...", reference["net.A"], x) + (t / 1000).view(-1, *[1] * (x.ndim - 1)))

    return model


def test_schedule_and_forward_process(reference):
    diffusion = GaussianDiffusion()
    assert relative_error(diffusion.alphas_cumprod, reference["alphas_cumprod"]) <= 1e-12
    noisy = diffusion.q_sample(reference["x0"], reference["t"], reference["noise"])
    assert relative_error(noisy, reference["q_sample"]) <= 1e-5


def test_reverse_step(reference, network):
    x, t = reference["noise"], reference["t"]
    step = GaussianDiffusion().p_mean_variance(network(x, t), x, t)
    for name, value in {
        "mean": step.mean,
        "variance": step.variance,
        "log_variance": step.log_variance,
        "pred_xstart": step.pred_x0,
    }.items():
        assert relative_error(value, reference[f"pmv.{name}"]) <= 1e-5, name


def test_hybrid_loss(reference, network):
    x, t = reference["q_sample"], reference["t"]
    loss = GaussianDiffusion().loss(network(x, t), reference["x0"], x, t, reference["noise"])
    assert relative_error(loss.mse, reference["loss.mse"]) <= 1e-5
    assert relative_error(loss.vb, reference["loss.vb"]) <= 1e-5
    assert relative_error(loss.loss, reference["loss.loss"]) <= 1e-5


@pytest.mark.parametrize("steps", STEPS)
def test_ddim(reference, network, steps):
    assert spaced_timesteps(steps) == reference[f"ddim{steps}.timesteps"].tolist()
    out = ddim(network, reference["noise"], steps)
    assert relative_error(out, reference[f"ddim{steps}.out"]) <= 1e-5


@pytest.mark.parametrize("steps", STEPS)
def test_ddpm(reference, network, steps):
    noises = iter(reference[f"ddpm{steps}.noise"])
    out = ddpm(network, reference["noise"], steps, noise=lambda: next(noises))
    assert relative_error(out, reference[f"ddpm{steps}.out"]) <= 1e-5


def test_bound_sends_no_gradient_to_the_noise_prediction(reference, network):
    x, t = reference["q_sample"], reference["t"]
    output = network(x, t).requires_grad_()
    GaussianDiffusion().loss(output, reference["x0"], x, t, reference["noise"]).vb.sum().backward()
    eps_gradient, variance_gradient = output.grad.chunk(2, dim=1)
    assert eps_gradient.abs().max() == 0 < variance_gradient.abs().max()


def test_impossible_steps_are_named():
    with pytest.raises(ValueError, match="1 to 1000 steps, got 1001"):
        spaced_timesteps(1001)
    with pytest.raises(ValueError, match="8 output channels, got 4"):
        x = torch.zeros(1, 4, 2, 2)
        GaussianDiffusion().p_mean_variance(x, x, torch.zeros(1, dtype=torch.long))
