"""A model whose layers are compiled, each by itself, while it trains.

Layers of one kind share their graphs. The model as a whole would have one for each grid, which take half a minute to trace.
"""

import torch
import torch._dynamo

from sparsevid.models.transformer import DiffusionTransformer

BACKEND = "inductor"
MOST_GRAPHS = 256  # of all layers: some ten, and six more for each stage of a schedule


def compile_layers(model: DiffusionTransformer, backend: str | None = None) -> None:
    """Let each layer be compiled, in place, when it is first called with a shape. Names of weights stay.

    Args:
        model: before DeepSpeed takes it.
        backend: of `torch.compile`; default: its own, Inductor.
    """
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, MOST_GRAPHS)
    for layer in model.blocks:
        layer.compile(dynamic=False, backend=backend or BACKEND)
