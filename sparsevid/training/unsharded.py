"""The optimizer's step at ZeRO stage 0, where every rank has all weights: float32 masters, clipping, steps that are skipped.

DeepSpeed's own for bfloat16 asks the device about every weight, and holds a float32 copy of all gradients at once.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

GROUP = 2**25  # elements whose gradients are float32 at one time: 128 MiB


class Unsharded:
    """Weights in the precision that a model computes in, and their float32 masters, which the optimizer moves.

    Args:
        weights: of a model by name, in float32; all ranks have the same.
        dtype: that the model is to compute in.

    Attributes:
        masters: by name; with float32 they are the model's own weights.
        grad_norm: of the last step's gradient before clipping; inf or nan if it was skipped.
    """

    def __init__(self, weights: dict[str, nn.Parameter], dtype: torch.dtype) -> None:
        self.weights, self.dtype = weights, dtype
        self.rounds = dtype != torch.float32
        self.masters = {name: nn.Parameter(value.detach()) for name, value in weights.items()} if self.rounds else weights
        self.grad_norm = math.nan

    def round(self) -> None:
        """Once the weights are where they are to stay: the masters are there too, and the model's are rounded copies."""
        if self.rounds:
            for weight, master in zip(self.weights.values(), self.masters.values(), strict=True):
                master.data, weight.data = weight.data, weight.data.to(self.dtype)

    def take_over(self, optimizer: torch.optim.Optimizer, clipping: float) -> None:
        """Let an optimizer over `masters` step by the gradients of the model's weights, clipped, or not at all if not finite.

        Gradients are the same on all ranks by then, so that all decide alike.
        """
        step = optimizer.step

        def guarded() -> None:
            gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
            norm = total_norm(gradients)
            self.grad_norm = norm.item()  # the only time that a step waits for the device
            overflow = not math.isfinite(self.grad_norm)
            setattr(optimizer, "overflow", overflow)  # noqa: B010 (where DeepSpeed looks for it, and PyTorch has no such name)
            if overflow:
                return
            for names in self._groups():
                masters = [self.masters[name] for name in names]
                if self.rounds:
                    for name, master in zip(names, masters, strict=True):
                        gradient = self.weights[name].grad
                        master.grad = None if gradient is None else gradient.float()
                if clipping:
                    torch.nn.utils.clip_grads_with_norm_(masters, clipping, norm)
                step()
                self._give_back(names)

        optimizer.step = guarded  # type: ignore[method-assign, assignment]  # DeepSpeed calls the step of this one alone

    def _groups(self) -> Iterator[list[str]]:
        """Names of weights that have a gradient, by `GROUP` elements; all at once where nothing is converted."""
        names: list[str] = []
        count = 0
        for name, weight in self.weights.items():
            if weight.grad is None:
                continue
            if self.rounds and names and count + weight.numel() > GROUP:
                yield names
                names, count = [], 0
            names.append(name)
            count += weight.numel()
        if names:
            yield names

    def _give_back(self, names: list[str]) -> None:
        """Round what was stepped into the model's weights, and let the float32 gradients go."""
        for name in names if self.rounds else ():
            self.masters[name].grad = None
            self.weights[name].data.copy_(self.masters[name].data)


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, in float32, on their device."""
    if gradients[0].dtype == torch.float32:
        return torch.nn.utils.get_total_norm(gradients)
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each, dtype=torch.float32) for each in gradients]))
