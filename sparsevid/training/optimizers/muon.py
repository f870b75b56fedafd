"""Muon (Jordan et al., 2024) for the matrices of the layers, AdamW for all else: one optimizer with one rate and one decay.

Muon moves a matrix along its momentum with all singular values set to about 1, which five Newton-Schulz steps do by products.
The move is scaled to the root mean square of AdamW's (arXiv 2502.16982, equation 4), so that rate and decay fit both kinds.

PyTorch's own (from 2.9 on, in torch.optim) iterates in bfloat16, which is slow on processors without instructions for it,
and takes matrices alone.

Dimensions: a weight has m maps of r×c, one above the other; in a batch are n matrices of a×b, a ≤ b.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

MOMENTUM = 0.95
STEPS = 5  # of Newton-Schulz
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steep at 0; singular values end between 0.7 and 1.2
SMALLEST = 1e-7  # norm that a momentum is divided by, so that zero stays zero
SCALE = 0.2  # of AdamW's moves: root mean square over rate
MAPS = {"qkv": 3, "kv": 2}  # of layers that have several maps in one weight; Muon works better on each by itself
BATCH = 2**22  # elements that are iterated together: few kernels on a GPU, little memory
KEPT = {True: ("exp_avg",), False: ("step", "exp_avg", "exp_avg_sq")}  # of a matrix; of all else


def maps_of(name: str, weight: Tensor) -> int:
    """The number of maps in a weight that Muon is for; 0: it is for AdamW.

    Muon's are the matrices of layers: those that tokens pass, and those of modulation, by which alone times and classes reach
    them. Embeddings, first and last projection, and tables of modulation are not.
    """
    if not name.startswith("blocks.") or weight.ndim != 2 or name.endswith(".scale_shift_table"):
        return 0
    if ".adaLN_modulation." in name:  # shift, scale and gate, for attention and MLP
        return weight.shape[0] // weight.shape[1]
    return MAPS.get(name.split(".")[-2].removesuffix("_linear"), 1)  # kv_linear: of attention to text


class Muon(torch.optim.Optimizer):
    """Muon for matrices of layers, by their names, and AdamW for all else. A weight without a gradient is passed over.

    Every group says in `keeps` what there is in the state of each of its weights.

    Args:
        weights: whole ones, in float32, by their names in a model.
        lr: of both kinds.
        weight_decay: of both kinds, decoupled from the gradient.
        betas: of AdamW.
        eps: of AdamW.
        dtype: of the iterations; default: bfloat16 on a GPU, else float32.
    """

    def __init__(
        self,
        weights: dict[str, nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.dtype = dtype
        groups: dict[int, dict] = {}
        for name, weight in weights.items():
            maps = maps_of(name, weight)
            groups.setdefault(maps, {"params": [], "maps": maps, "keeps": KEPT[maps > 0]})["params"].append(weight)
        super().__init__(list(groups.values()), {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if not group["maps"]:
                self._adamw(group, [weight for weight in group["params"] if weight.grad is not None])
        for batch in self._batches():
            self._muon(batch)
        return loss

    def _batches(self) -> Iterator[list[tuple[dict, Tensor]]]:
        """Groups and weights whose maps have one shape, or that shape transposed, up to `BATCH` elements."""
        shapes: dict[tuple[int, ...], list[tuple[dict, Tensor]]] = {}
        for group in self.param_groups:
            for weight in group["params"] if group["maps"] else ():
                if weight.grad is not None:
                    rows, columns = weight.shape[0] // group["maps"], weight.shape[1]
                    shapes.setdefault((min(rows, columns), max(rows, columns)), []).append((group, weight))
        for alike in shapes.values():
            batch: list[tuple[dict, Tensor]] = []
            count = 0
            for group, weight in alike:
                if batch and count + weight.numel() > BATCH:
                    yield batch
                    batch, count = [], 0
                batch.append((group, weight))
                count += weight.numel()
            yield batch

    def _muon(self, batch: list[tuple[dict, Tensor]]) -> None:
        """Move matrices along their momentum, looked ahead (Nesterov's) and made orthogonal."""
        stacks = []
        for group, weight in batch:
            state = self.state[weight]
            if not state:
                state["exp_avg"] = torch.zeros_like(weight)
            gradient = _gradient(weight)
            ahead = gradient.lerp(state["exp_avg"].lerp_(gradient, 1 - MOMENTUM), MOMENTUM)
            stacks.append(lying(ahead.unflatten(0, (group["maps"], -1))))  # (m, a, b)
        dtype = self.dtype or (torch.bfloat16 if stacks[0].is_cuda else torch.float32)
        made = orthogonal(torch.cat(stacks).to(dtype)).split([len(stack) for stack in stacks])
        for (group, weight), stack in zip(batch, made, strict=True):
            upright = weight.shape[0] // group["maps"] > weight.shape[1]
            move = (stack.mT if upright else stack).reshape(weight.shape)
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(move, alpha=-group["lr"] * SCALE * math.sqrt(stack.shape[-1]))

    def _adamw(self, group: dict, weights: list[Tensor]) -> None:
        for weight in weights:
            if not self.state[weight]:
                zeros = {kind: torch.zeros_like(weight) for kind in ("exp_avg", "exp_avg_sq")}
                self.state[weight] = {"step": torch.zeros((), device=weight.device), **zeros}
        states = [self.state[weight] for weight in weights]
        gradients = [_gradient(weight) for weight in weights]
        first, second, steps = ([state[kind] for state in states] for kind in ("exp_avg", "exp_avg_sq", "step"))
        adamw(
            weights, gradients, first, second, [], steps, fused=True, amsgrad=False, maximize=False, eps=group["eps"],
            beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"],
        )  # fmt: skip


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None  # the others are left out
    return weight.grad


def lying(x: Tensor) -> Tensor:
    """Matrices (m, r, c), transposed if they are higher than wide."""
    return x.mT if x.shape[-2] > x.shape[-1] else x


def orthogonal(x: Tensor) -> Tensor:
    """Matrices (n, a, b) with the same singular vectors and singular values near 1; those that are 0 stay so.

    Newton-Schulz with a quintic polynomial: x ← A·x + B·(x·xᵀ)·x + C·(x·xᵀ)²·x. Values far below the norm end below 1.
    """
    a, b, c = COEFFICIENTS
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=SMALLEST)
    for _ in range(STEPS):
        gram = x @ x.mT  # (n, a, a)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
