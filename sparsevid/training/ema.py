"""Exponential moving average of the weights, in float32, over the fragments that the engine holds on this rank."""

import torch
from torch import Tensor

from sparsevid.training.engine import Engine, Fragment, Reader


class EMA:
    """The average of the engine's float32 master weights, in pieces as they are: sharded from ZeRO stage 1 on.

    Decay warms up as min(decay, (1 + n) / (10 + n)) over the updates n, so that short runs forget their start.

    Args:
        engine: whose weights are averaged; they are the average's first value.
        decay: in [0, 1).
        device: where the average is kept; None: with the weights.
    """

    def __init__(self, engine: Engine, decay: float, device: str | None = None) -> None:
        self.engine, self.decay, self.device, self.updates = engine, decay, device, 0
        self.fragments = [
            Fragment(name, start, values.to(self._place(values), torch.float32, copy=True))
            for name, start, values in engine.fragments()
        ]

    def update(self) -> None:
        """Move towards the current weights. All ranks call it together, after each good step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = [values.to(self._place(values), torch.float32) for _, _, values in self.engine.fragments()]
        torch._foreach_lerp_([values for _, _, values in self.fragments], current, 1.0 - decay)
        self.updates += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Whole averaged weights on rank 0's CPU; empty on other ranks. All ranks call it together."""
        return self.engine.gather(self.fragments)

    def load(self, read: Reader, updates: int) -> None:
        """Continue from an average and the number of updates that made it; `read` is asked for the kind `ema`."""
        for name, start, values in self.fragments:
            values.copy_(read("ema", name, start, values.numel()))
        self.updates = updates

    def _place(self, values: Tensor) -> torch.device | str:
        return self.device or values.device
