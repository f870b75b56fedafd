"""Exponential moving average of the weights, in float32, over the fragments that the engine holds on this rank."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sparsevid.training.engine import Engine, Fragment, Reader


class _Underway(NamedTuple):
    """An update whose weights are on their way from the device: what says that they are there, and its decay."""

    arrived: torch.cuda.Event | None
    decay: float


class EMA:
    """The average of the engine's float32 master weights, in pieces as they are: sharded from ZeRO stage 1 on.

    Decay warms up as min(decay, (1 + n) / (10 + n)) over the updates n, so that short runs forget their start.

    An average on the CPU of weights on a GPU takes them through pinned memory, without waiting: it moves when the next update,
    or somebody who asks for it, finds them there.

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
        self.deferred = device == "cpu" and any(values.is_cuda for _, _, values in engine.fragments())
        self._fetched: list[Tensor] = []  # where it is deferred: the weights as they were at the last update
        self._underway: _Underway | None = None

    def update(self) -> None:
        """Move towards the current weights. All ranks call it together, after each good step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = [values for _, _, values in self.engine.fragments()]
        if self.deferred:
            self._fetch(current, decay)
        else:
            self._move([values.to(self._place(values), torch.float32) for values in current], decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Whole averaged weights on rank 0's CPU; empty on other ranks. All ranks call it together."""
        self._catch_up()
        return self.engine.gather(self.fragments)

    def load(self, read: Reader, updates: int) -> None:
        """Continue from an average and the number of updates that made it; `read` is asked for the kind `ema`."""
        self._underway = None
        for name, start, values in self.fragments:
            values.copy_(read("ema", name, start, values.numel()))
        self.updates = updates

    def _move(self, current: list[Tensor], decay: float) -> None:
        if current:
            get_ema_multi_avg_fn(decay)([values for _, _, values in self.fragments], current, None)

    def _fetch(self, current: list[Tensor], decay: float) -> None:
        """Begin to copy the weights; the stream that changes them next does so after the copy."""
        self._catch_up()
        if not self._fetched:
            self._fetched = [torch.empty(values.shape, pin_memory=values.is_cuda) for values in current]
        for target, values in zip(self._fetched, current, strict=True):
            target.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event() if any(values.is_cuda for values in current) else None
        if arrived is not None:
            arrived.record()
        self._underway = _Underway(arrived, decay)

    def _catch_up(self) -> None:
        """Do the update whose weights were on their way, if there is one."""
        if self._underway is not None:
            arrived, decay = self._underway
            if arrived is not None:
                arrived.synchronize()
            self._move(self._fetched, decay)
            self._underway = None

    def _place(self, values: Tensor) -> torch.device | str:
        return self.device or values.device
