"""A model's forward as CUDA graphs: recorded once for each kind of call, and replayed without launching kernel by kernel.

Needs no compiler, and changes no bit: a replay runs the kernels that the forward launched, in their order.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sparsevid.system.logging import get_logger

MOST_GRAPHS = 256  # of a model; the one that was not used for the longest time goes first
logger = get_logger(__name__)


class Captured(NamedTuple):
    """What a capture gives: the output, which `replay` writes anew from what the inputs hold then, and the memory's pool."""

    output: Any
    replay: Callable[[], None]
    pool: Any


Capture = Callable[[Callable[[], Any], torch.device, Any], Captured]  # of a function, its device, and a pool or None


def capture_cuda_graph(function: Callable[[], Any], device: torch.device, pool: Any = None) -> Captured:
    """Record what a function does on a GPU, after one call on a stream beside, where libraries find what they need.

    Args:
        function: reads and writes the same memory at every call.
        device: of that memory.
        pool: of an earlier capture, whose memory this one shares: they are replayed one after the other.

    Raises:
        RuntimeError: something in the function cannot be recorded, such as waiting for the device.
    """
    current, side = torch.cuda.current_stream(device), _side_stream(device)
    with torch.cuda.device(device), torch.cuda.stream(current):  # which is the current one again after an error, too
        side.wait_stream(current)
        with torch.cuda.stream(side):
            function()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads decode and pin memory meanwhile, which only this thread must not do.
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            output = function()
    return Captured(output, graph.replay, graph.pool())


class GraphedModel:
    """Calls a model by graphs, one for each kind of call: for each set of shapes, types and arguments that are no tensors.

    The first call of a kind is an ordinary one, so that what happens once costs nothing; the second records the graph, which
    takes the time of two more; then it is replayed, over steps, batches and samplers. Outputs are copies, which no later call
    writes to. Graphs are dropped if a weight comes to lie elsewhere; one that changes in place is seen. Where gradients are
    wanted, and after a forward that cannot be recorded, which is logged, the model is called as it is. Hooks run while
    recording only. One thread, on one stream, calls at a time.

    Args:
        model: whose weights these are.
        network: what is called: the model in another form, such as with compiled layers. Default: the model.
        capture: records a function and replays it.
    """

    def __init__(self, model: nn.Module, network: nn.Module | None = None, capture: Capture = capture_cuda_graph) -> None:
        self.model, self.network = model, model if network is None else network
        self._capture: Capture | None = capture
        self._graphs: dict[tuple, _Graph | None] = {}  # in the order of their last use; None after the first call
        self._modules: list[nn.Module] = []
        self._weights: list = []

    def __len__(self) -> int:
        """Graphs that are there."""
        return sum(graph is not None for graph in self._graphs.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._capture is None or torch.is_grad_enabled():
            return self.network(*args, **kwargs)
        leaves, structure = pytree.tree_flatten((args, kwargs))
        kind = (repr(structure), torch.is_inference_mode_enabled(), *map(_kind, leaves))
        self._drop_if_weights_moved()
        known = kind in self._graphs
        graph = self._graphs.pop(kind, None)
        if known and graph is None:
            graph = self._record(self._capture, leaves, structure)
        if self._capture is not None:
            self._graphs[kind] = graph
            if len(self._graphs) > MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
        return self.network(*args, **kwargs) if graph is None else graph(leaves)

    def _drop_if_weights_moved(self) -> None:
        weights = _places(self._modules)
        if not weights or weights != self._weights:
            self._graphs.clear()
            self._modules = list(self.model.modules())
            self._weights = _places(self._modules)

    def _record(self, capture: Capture, leaves: Sequence, structure: pytree.TreeSpec) -> "_Graph | None":
        """The graph of a kind of call; None, and no further one, if it cannot be recorded."""
        pool = next((graph.pool for graph in self._graphs.values() if graph is not None), None)
        try:
            return _Graph(self, capture, leaves, structure, pool)
        except RuntimeError as error:
            logger.warning("the forward cannot be recorded as a CUDA graph; its kernels are launched one by one: %s", error)
            self._capture = None
            self._graphs.clear()
            return None


class _Graph:
    """One kind of call: inputs of its own, what it reads besides, and the output."""

    def __init__(self, owner: GraphedModel, capture: Capture, leaves: Sequence, structure: pytree.TreeSpec, pool: Any) -> None:
        self.inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(self.inputs, structure)
        with _Reads() as reads:
            owner.model(*args, **kwargs)
        # Tables are kept by caches that may drop them, and a graph knows addresses only. Weights are watched instead.
        weights = {each._cdata for each in _storages([*owner.model.parameters(), *owner.model.buffers()])}
        self.tables = [storage for address, storage in reads.storages.items() if address not in weights]
        device = next(leaf.device for leaf in leaves if isinstance(leaf, Tensor))
        self.output, self.replay, self.pool = capture(lambda: owner.network(*args, **kwargs), device, pool)

    def __call__(self, leaves: Sequence) -> Any:
        for own, given in zip(self.inputs, leaves, strict=True):
            if isinstance(own, Tensor):
                own.copy_(given)
        self.replay()
        return pytree.tree_map_only(Tensor, Tensor.clone, self.output)


class _Reads(TorchDispatchMode):
    """Holds the memory of every tensor that is read inside and was not made there, by address."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, torch.UntypedStorage] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for read in _storages((args, kwargs)):
            if read._cdata not in self._made:
                self.storages[read._cdata] = read
        output = func(*args, **(kwargs or {}))
        self._made.update(made._cdata for made in _storages(output) if made._cdata not in self.storages)
        return output


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _places(modules: Sequence[nn.Module]) -> list:
    """The modules inside of each, and where its weights and buffers lie: a quarter of the time of `parameters()`."""
    places: list = []
    for module in modules:
        places.extend(module._modules.values())
        for tensors in (module._parameters, module._buffers):
            places.extend(tensor.data_ptr() for tensor in tensors.values() if tensor is not None)
    return places


def _kind(leaf: Any) -> Any:
    """What of an argument decides which kernels run."""
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.shape, leaf.stride(), leaf.dtype, leaf.device


@lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: libraries keep a workspace for each stream."""
    return torch.cuda.Stream(device)
