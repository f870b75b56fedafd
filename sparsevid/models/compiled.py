"""A model whose layers are compiled, each by itself.

Layers of one kind share their graphs. A whole model has one graph for each grid, which takes half a minute to trace.
"""

import copy

import torch
import torch._dynamo
from torch import nn

from sparsevid.models.transformer import DiffusionTransformer

MOST_GRAPHS = 256  # of all layers: some ten, and six more for each stage of a schedule


def with_compiled_layers(model: DiffusionTransformer, backend: str = "inductor") -> DiffusionTransformer:
    """The model with the same weights, its layers compiled when they are first called with a shape. `model` stays as it is.

    Args:
        model: whose weights are shared: a change of one is a change of the other.
        backend: of `torch.compile`.
    """
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, MOST_GRAPHS)
    compiled = copy.copy(model)
    layers = [copy.copy(layer) for layer in model.blocks]
    for layer in layers:
        layer.compile(fullgraph=True, dynamic=False, backend=backend)
    compiled._modules = {**model._modules, "blocks": nn.ModuleList(layers)}
    return compiled
