"""Gaussian diffusion with a linear schedule, learned-range variance and the hybrid loss (Nichol & Dhariwal, arXiv 2102.09672).

Latents are (B, C, ...); timesteps are (B,) indices, 0 = least noise. Tables are float64, results have the latents' dtype.
"""

import math
from collections.abc import Sequence
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sparsevid.sparsity.schedule import LAST_TIMESTEP

TIMESTEPS = LAST_TIMESTEP + 1
BETA_START, BETA_END = 1e-4, 0.02


class Table(IntEnum):
    """Coefficients by timestep, as rows of one table: a device receives all of them at once."""

    SIGNAL = 0  # √ᾱ
    NOISE = 1  # √(1 − ᾱ)
    INVERSE_SIGNAL = 2  # 1/√ᾱ
    NOISE_TO_SIGNAL = 3  # √(1/ᾱ − 1)
    MEAN_ON_X0 = 4  # of q(x_{t−1} | x_t, x₀)
    MEAN_ON_X = 5
    LOG_VARIANCE_LOW = 6  # of the reverse step: its bounds
    LOG_VARIANCE_HIGH = 7


class Posterior(NamedTuple):
    """p(x_{t−1} | x_t): all (B, C, ...)."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor
    pred_x0: Tensor


class HybridLoss(NamedTuple):
    """Per-sample losses (B,): `loss` = `mse` + `vb`, the mean squared error of the noise and the variational bound in bits."""

    loss: Tensor
    mse: Tensor
    vb: Tensor


def linear_alphas_cumprod() -> Tensor:
    """ᾱ_t of the linear schedule: (1000,) float64."""
    return torch.cumprod(1.0 - torch.linspace(BETA_START, BETA_END, TIMESTEPS, dtype=torch.float64), 0)


class GaussianDiffusion:
    """The forward process and its reverse, on all 1000 timesteps or on a subset of them.

    Args:
        timesteps: rising subset of 0 … 999 to walk on; its own betas follow from ᾱ at those steps. None: all of them.
    """

    def __init__(self, timesteps: Sequence[int] | None = None) -> None:
        timesteps = list(range(TIMESTEPS) if timesteps is None else timesteps)
        if not timesteps or any(after <= before for before, after in pairwise(timesteps)):
            raise ValueError(f"timesteps rise strictly, got {timesteps}")
        if timesteps[0] < 0 or timesteps[-1] >= TIMESTEPS:
            raise ValueError(f"timesteps lie in 0 … {TIMESTEPS - 1}, got {timesteps}")
        self.timesteps = torch.tensor(timesteps)
        self.alphas_cumprod = linear_alphas_cumprod()[self.timesteps]
        self.alphas_cumprod_prev = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])
        self.betas = 1.0 - self.alphas_cumprod / self.alphas_cumprod_prev
        self.posterior_variance = self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)
        # The posterior variance is 0 at the first step; its logarithm takes the second step's value instead.
        first = self.posterior_variance[1:2] if len(self.timesteps) > 1 else self.betas[:1]
        self.posterior_log_variance = torch.log(torch.cat([first, self.posterior_variance[1:]]))
        self._tables = {torch.device("cpu"): self._make_tables()}  # all of them by device: one copy to each

    def __len__(self) -> int:
        return len(self.timesteps)

    def _make_tables(self) -> Tensor:
        """The rows that `Table` names: (tables, timesteps)."""
        alphas, previous, remaining = self.alphas_cumprod, self.alphas_cumprod_prev, 1.0 - self.alphas_cumprod
        tables = {
            Table.SIGNAL: alphas.sqrt(),
            Table.NOISE: remaining.sqrt(),
            Table.INVERSE_SIGNAL: alphas.rsqrt(),
            Table.NOISE_TO_SIGNAL: (1 / alphas - 1).sqrt(),
            Table.MEAN_ON_X0: self.betas * previous.sqrt() / remaining,
            Table.MEAN_ON_X: (1.0 - previous) * (1.0 - self.betas).sqrt() / remaining,
            Table.LOG_VARIANCE_LOW: self.posterior_log_variance,
            Table.LOG_VARIANCE_HIGH: self.betas.log(),
        }
        return torch.stack([tables[table] for table in Table])

    def at(self, table: Table, t: Tensor, like: Tensor) -> Tensor:
        """Entries `t` (B,) of a table, shaped (B, 1, …) for arithmetic with `like`."""
        if like.device not in self._tables:
            with torch.inference_mode(False):  # training goes on with what validation copied
                self._tables[like.device] = self._tables[torch.device("cpu")].to(like.device)
        return self._tables[like.device][table][t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = √ᾱ_t·x₀ + √(1−ᾱ_t)·noise."""
        return self.at(Table.SIGNAL, t, x0) * x0 + self.at(Table.NOISE, t, x0) * noise

    def pred_x0(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x₀ from x_t and the predicted noise."""
        return self.at(Table.INVERSE_SIGNAL, t, x) * x - self.at(Table.NOISE_TO_SIGNAL, t, x) * eps

    def pred_eps(self, x: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """The noise from x_t and the predicted x₀."""
        return (self.at(Table.INVERSE_SIGNAL, t, x) * x - x0) / self.at(Table.NOISE_TO_SIGNAL, t, x)

    def q_posterior_mean(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t−1} | x_t, x₀)."""
        return self.at(Table.MEAN_ON_X0, t, x) * x0 + self.at(Table.MEAN_ON_X, t, x) * x

    def p_mean_variance(self, output: Tensor, x: Tensor, t: Tensor, clip_denoised: bool = False) -> Posterior:
        """The model's reverse step.

        Args:
            output: (B, 2C, ...), predicted noise and where the log variance lies between its bounds, −1 … 1.
            x: x_t, (B, C, ...).
            t: (B,) indices into this process's timesteps.
            clip_denoised: clamp the predicted x₀ to [−1, 1], for pixels.

        Raises:
            ValueError: the output does not have twice the channels of x.
        """
        if output.shape[1] != 2 * x.shape[1]:
            raise ValueError(f"learned variance needs {2 * x.shape[1]} output channels, got {output.shape[1]}")
        eps, fraction = output.chunk(2, dim=1)
        low, high = self.at(Table.LOG_VARIANCE_LOW, t, x), self.at(Table.LOG_VARIANCE_HIGH, t, x)
        log_variance = torch.lerp(low, high, (fraction + 1) / 2)
        x0 = self.pred_x0(x, t, eps)
        x0 = x0.clamp(-1, 1) if clip_denoised else x0
        return Posterior(self.q_posterior_mean(x0, x, t), log_variance.exp(), log_variance, x0)

    def loss(self, output: Tensor, x0: Tensor, x: Tensor, t: Tensor, noise: Tensor) -> HybridLoss:
        """The hybrid loss: mean squared error of the noise, plus the bound with gradients to the variance alone.

        Args:
            output: (B, 2C, ...), the model at x = x_t.
            x0, x, noise: (B, C, ...).
            t: (B,) timesteps.
        """
        eps, fraction = output.chunk(2, dim=1)
        mse = (noise - eps).square().flatten(1).mean(1)
        vb = self.variational_bound(torch.cat([eps.detach(), fraction], dim=1), x0, x, t)
        return HybridLoss(mse + vb, mse, vb)

    def variational_bound(self, output: Tensor, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """One term of the variational bound in bits a value, (B,): a KL divergence, or at t = 0 the decoder's likelihood."""
        true_mean = self.q_posterior_mean(x0, x, t)
        true_log_variance = self.at(Table.LOG_VARIANCE_LOW, t, x)
        model = self.p_mean_variance(output, x, t)
        kl = _normal_kl(true_mean, true_log_variance, model.mean, model.log_variance)
        likelihood = _discretised_log_likelihood(x0, model.mean, 0.5 * model.log_variance)
        bits = torch.stack([kl, -likelihood]).flatten(2).mean(2) / math.log(2.0)  # (2, B)
        return torch.where(t == 0, bits[1], bits[0])


def _normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL divergence of two diagonal normals, elementwise, in nats."""
    ratio = (log_variance1 - log_variance2).exp()
    distance = (mean1 - mean2).square() * (-log_variance2).exp()
    return 0.5 * (log_variance2 - log_variance1 + ratio + distance - 1.0)


def _normal_cdf(z: Tensor) -> Tensor:
    """The normal distribution function in the tanh form that the published bounds were computed with."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))


def _discretised_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log probability of 8-bit values in [−1, 1] under a normal that is integrated over each value's bin, elementwise."""
    centred, inverse = x - mean, (-log_std).exp()
    upper, lower = _normal_cdf(inverse * (centred + 1 / 255)), _normal_cdf(inverse * (centred - 1 / 255))
    inside = (upper - lower).clamp(min=1e-12).log()
    below, above = upper.clamp(min=1e-12).log(), (1.0 - lower).clamp(min=1e-12).log()
    return torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))
