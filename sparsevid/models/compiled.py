"""A model whose layers are compiled, each by itself.

Layers of one kind share their graphs. A whole model has one graph for each grid, which takes half a minute to trace.
"""

import copy

import torch
import torch._dynamo
from torch import nn

from sparsevid.models.transformer import DiffusionTransformer

BACKEND = "inductor"
MOST_GRAPHS = 256  # of all layers: some ten, and six more for each stage of a schedule


def compile_layers(model: DiffusionTransformer, backend: str | None = None) -> None:
    """Let each layer be compiled, in place, when it is first called with a shape. Names of weights stay.

    Args:
        model: whose layers are compiled; in training before DeepSpeed takes it.
        backend: of `torch.compile`; default: its own, Inductor.
    """
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, MOST_GRAPHS)
    for layer in model.blocks:
        layer.compile(dynamic=False, backend=backend or BACKEND)


def with_compiled_layers(model: DiffusionTransformer, backend: str | None = None) -> DiffusionTransformer:
    """Another model of the same weights, whose layers are compiled; `model` stays as it is.

    Args:
        model: whose weights are shared: a change of one is a change of the other.
        backend: as above.
    """
    compiled = copy.copy(model)
    compiled._modules = {**model._modules, "blocks": nn.ModuleList(copy.copy(layer) for layer in model.blocks)}
    compile_layers(compiled, backend)
    return compiled
