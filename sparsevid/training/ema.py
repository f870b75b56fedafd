"""Exponential moving average of the weights, in float32, over what the engine holds on this rank."""

import torch
from torch import Tensor

from sparsevid.training.engine import Engine


class EMA:
    """The average of the engine's float32 master weights, sharded as they are.

    Decay warms up as min(decay, (1 + n) / (10 + n)) over the updates n, so that short runs forget their start.

    Args:
        engine: whose weights are averaged; they are the average's first value.
        decay: in [0, 1).
    """

    def __init__(self, engine: Engine, decay: float) -> None:
        self.engine, self.decay, self.updates = engine, decay, 0
        self.parts: dict[str, Tensor] = {name: part.float().clone() for name, part in engine.local_masters()}

    def update(self) -> None:
        """Move towards the current weights. All ranks call it together, after each good step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = {name: part.float() for name, part in self.engine.local_masters()}
        torch._foreach_lerp_(list(self.parts.values()), [current[name] for name in self.parts], 1.0 - decay)
        self.updates += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Whole averaged weights on the CPU. All ranks call it together."""
        return self.engine.gather(self.parts)

    def load_state_dict(self, weights: dict[str, Tensor], updates: int) -> None:
        """Continue from whole averaged weights and the number of updates that made them."""
        for name, part in self.parts.items():
            part.copy_(self.engine.shard(name, weights[name]).view_as(part))
        self.updates = updates
