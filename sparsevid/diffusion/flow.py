"""Rectified flow (arXiv 2209.03003): straight lines from data (u = 0) to noise (u = 1).

x_u = (1 − u)·x₀ + u·ε, velocity ε − x₀. A model receives 999·u, the scale of discrete timesteps.
"""

from torch import Tensor

from sparsevid.sparsity.schedule import LAST_TIMESTEP

MODEL_TIME_SCALE = float(LAST_TIMESTEP)


def interpolate(x0: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    """x_u, (B, C, ...), for times u (B,) in [0, 1]."""
    u = u.to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))
    return (1.0 - u) * x0 + u * noise


def velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """dx/du along the line: ε − x₀."""
    return noise - x0


def velocity_loss(output: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted velocity, per sample: (B,)."""
    return (output - velocity(x0, noise)).square().flatten(1).mean(1)
