"""Each kernel of attention on the model's own shapes and strides: first call, median, backward, and what the default picks."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from sparsevid.benchmark.gpu.machine import candidates, first_line, inputs, middle_stage, open_device, seconds_of
from sparsevid.benchmark.gpu.parts import SKIPPED, Row, Settings
from sparsevid.models.attention import BACKENDS, BackendError, CrossAttention, SelfAttention, TextAttention, choose_backend
from sparsevid.models.transformer import DiffusionTransformer

LAYOUT = "1P 1(1M2S1R1D) 1D"  # a layer of each kind that attends, over space and over time
BATCH, TINY_BATCH, REPEATS = 4, 1, 5
LAYERS = {"P": "pooling", "M": "merge", "S": "sparse", "R": "recover", "D": "dense"}
OPERATION = "aten::_scaled_dot_product_"  # how PyTorch names its kernels' operations


class Shape(NamedTuple):
    """One way in which attention is called: shapes and strides of q, k and v."""

    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]

    def tensors(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """Random q, k and v that lie so in memory, and take gradients."""
        found = []
        for shape, stride in zip(self.shapes, self.strides, strict=True):
            size = 1 + sum((count - 1) * step for count, step in zip(shape, stride, strict=True))
            found.append(torch.randn(size, device=device).to(dtype).as_strided(shape, stride).requires_grad_())
        return found


def rows(settings: Settings) -> Iterator[Row]:
    """Times of every kernel on every shape of the middle stage, smallest shapes first."""
    device = open_device(settings)
    found = shapes(settings, device)
    for shape, case in sorted(found.items(), key=lambda item: sum(map(math.prod, item[0].shapes))):
        q, k, v = (str(each).replace(" ", "") for each in shape.shapes)
        text = f"q {q}, k {k}, strides {'; '.join(','.join(map(str, each)) for each in shape.strides)}"
        yield Row(case, "shape", text, note=f"v {v}" if v != k else "")
        tensors = shape.tensors(device, torch.bfloat16)
        yield Row(case, "default picks", picked(tensors))
        for name in BACKENDS:
            if not settings.fits(2.0):
                yield Row(case, SKIPPED, note=f"{name}: no time left")
                continue
            try:
                yield from times(case, name, choose_backend(name), tensors)
            except (BackendError, torch.OutOfMemoryError) as error:
                yield Row(case, SKIPPED, note=f"{name}: {first_line(error)}")
            except RuntimeError as error:  # a kernel that takes the shape, and fails
                yield Row(case, name, "raised", ok=False, note=first_line(error))


def shapes(settings: Settings, device: torch.device) -> dict[Shape, str]:
    """How attention is called in a forward of the sparse model, and by which layers."""
    sparse = candidates(settings)[1]
    spec = replace(sparse.spec, layout=LAYOUT)
    with torch.device(device):
        model = DiffusionTransformer(spec).to(torch.bfloat16).eval()
    found: dict[Shape, str] = {}
    for index, (kind, block) in enumerate(zip(model.kinds, model.blocks, strict=True)):
        axis = " over time" if kind in "SD" and spec.layer_is_temporal(index) else ""
        for module in block.modules():
            if isinstance(module, SelfAttention | CrossAttention | TextAttention):
                _record(module, f"{LAYERS[kind]}{axis}", found)
    x, t, labels = inputs(spec, TINY_BATCH if settings.tiny else BATCH, device, torch.bfloat16)
    with torch.no_grad():
        model(x, t, labels, grid=middle_stage(sparse).grid)
    return found


def _record(module: SelfAttention | CrossAttention | TextAttention, name: str, found: dict[Shape, str]) -> None:
    attend = module.attend

    def recorded(*tensors: Tensor) -> Tensor:
        shape = Shape(tuple(tuple(each.shape) for each in tensors), tuple(each.stride() for each in tensors))
        found.setdefault(shape, name)
        return attend(*tensors)

    module.attend = recorded


def times(case: str, name: str, attend: Callable[..., Tensor], tensors: list[Tensor]) -> Iterator[Row]:
    """First call, forward and forward with backward, in ms."""

    def forward() -> Tensor:
        with torch.no_grad():
            return attend(*tensors)

    def both() -> None:
        torch.autograd.grad(attend(*tensors).sum(), tensors)

    yield Row(case, f"{name}, first call", 1e3 * seconds_of(forward, 1), "ms")
    yield Row(case, f"{name}, forward", 1e3 * seconds_of(forward, REPEATS), "ms")
    both()
    yield Row(case, f"{name}, forward and backward", 1e3 * seconds_of(both, REPEATS), "ms")


def picked(tensors: list[Tensor]) -> str:
    """The kernel of PyTorch's that the default backend runs."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        BACKENDS["sdpa"](*tensors)
    names = [event.name for event in profiled.events() if event.name.startswith(OPERATION)]
    return names[0].removeprefix(OPERATION) if names else "unknown"
