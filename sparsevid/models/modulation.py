"""adaLN: what the condition c makes of the shifts, scales and gates of layers: layer by layer, of all layers in one product, or
by one map that they share and a table of each (adaLN-single, PixArt-α).

Dimensions: B clips, D channels, m shifts, scales and gates: 6 of a layer, 2 of the head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Modulation(nn.Sequential):
    """SiLU, then a linear map: c (B, D) → m times (B, 1, 1, D), to be broadcast over frames and positions."""

    def __init__(self, hidden_size: int, count: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(hidden_size, count * hidden_size))
        self.count = count

    @property
    def linear(self) -> nn.Linear:
        """The map."""
        linear = self[1]
        assert isinstance(linear, nn.Linear)
        return linear

    def parts(self, c: Tensor) -> tuple[Tensor, ...]:
        """c (B, D), or what this gives of it, (B, m·D), where `FusedModulation` did for all layers → m times (B, 1, 1, D)."""
        product = self(c) if c.shape[-1] == self.linear.in_features else c
        return product[:, None, None].chunk(self.count, dim=-1)


def add_table(c: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    """What layers share, c (B, m·D), or (B, D) for all m alike, plus a layer's own table (m, D) → m times (B, 1, 1, D)."""
    parts = c.unflatten(-1, (-1, table.shape[1])) + table  # (B, m, D)
    return parts[:, None, None].unbind(-2)


class FusedModulation(nn.Module):
    """The modulation of several layers as one product, for inference: c (B, D) → a (B, m·D) for each.

    Weights are copied into one tensor, and become views of it: they can be changed in place, and take no memory twice.

    Args:
        modulations: in the order of the results; their parameters are replaced.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, modulations: Sequence[Modulation]) -> None:
        super().__init__()
        linears = [modulation.linear for modulation in modulations]
        self.sizes = [linear.out_features for linear in linears]
        for name in ("weight", "bias"):
            values = [getattr(linear, name) for linear in linears]
            whole = torch.cat([value.detach() for value in values])
            self.register_buffer(name, whole, persistent=False)
            for linear, value, part in zip(linears, values, whole.split(self.sizes), strict=True):
                setattr(linear, name, nn.Parameter(part, value.requires_grad))

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        return F.linear(F.silu(c), self.weight, self.bias).split(self.sizes, dim=-1)
