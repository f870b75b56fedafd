"""A GPU that is not there: PyTorch's fake tensors on `cuda`, and a count of what makes the host and the device meet.

    with fake_gpu() as traffic:
        with torch.device("cuda"):
            model = DiffusionTransformer(spec)  # of any size: fake tensors have shapes, strides and devices, and no memory
        x = torch.randn(shape, device="cuda")
        step(model, x)  # tables may come to the device at first
        traffic.clear()
        step(model, x)
        assert traffic.events == []  # a failure shows each meeting with the line of the package that caused it

`events` has, in order, an `Event` for each of
    "to device"  a copy from the host to the device, also one hidden in an index that lies on the host
    "to host"    a copy back
    "read"       `.item()`, `.tolist()`, `bool(tensor)`, `torch.equal`, and what has as many elements as values say (`nonzero`,
                 a mask as an index, …), of a tensor on the device
and `waits` those of them at which the host waits for the device: all but copies with `non_blocking=True` out of, or into,
memory that was pinned (`pin_memory()` works here). `copies` are those that are no reads. A read gives `answer`, 1 or True
unless told otherwise, since a fake tensor has no values, also of a tensor on the host, which is not noted; what has as many
elements as values say raises after it was noted. `.numpy()` raises. Not seen: `torch.cuda.synchronize`, events and streams,
which a machine without a GPU refuses by itself, and other threads.

Tables that the package keeps (`lru_cache`) are forgotten on entry and on exit: they would be fake, or belong elsewhere.
"""

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
READS = {ATEN._local_scalar_dense.default, ATEN.equal.default}
SIZED_BY_VALUES = {
    ATEN.nonzero.default, ATEN.masked_select.default, ATEN._unique2.default, ATEN.unique_dim.default,
    ATEN.unique_consecutive.default, ATEN.bincount.default, ATEN.repeat_interleave.Tensor,
}  # fmt: skip
INDEXED = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default}
COPIES = {ATEN._to_copy.default, ATEN.copy_.default, ATEN.copy.default}


class Event(NamedTuple):
    """One meeting: its kind, PyTorch's operation, the tensor's shape, whether the host waits, and the line that caused it."""

    kind: str
    operation: str
    shape: tuple[int, ...]
    waits: bool
    line: str


class Traffic(TorchDispatchMode):
    """Notes what crosses between the host and the device inside; see the module."""

    def __init__(self, answer: float = 1) -> None:
        super().__init__()
        self.answer, self.events = answer, []
        self._pinned: dict[int, Any] = {}  # storages by address; kept, so that no other gets the address

    @property
    def waits(self) -> list[Event]:
        """The events at which the host waits for the device."""
        return [event for event in self.events if event.waits]

    @property
    def copies(self) -> list[Event]:
        """The events that are copies."""
        return [event for event in self.events if event.kind != "read"]

    def clear(self) -> None:
        """Begin anew."""
        self.events.clear()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is ATEN.is_pinned.default:
            return self._is_pinned(args[0])
        if func is ATEN._pin_memory.default:
            return self._pin(args[0].clone())
        if func in READS:
            return self._read(func, args)
        if func in SIZED_BY_VALUES and on_gpu(args[0]):
            self._note("read", func, args[0])
        if func in INDEXED and on_gpu(args[0]):
            self._note_indices(func, args[1])
        if func in COPIES:
            self._note_copy(func, args, kwargs)
        if kwargs.get("pin_memory"):
            return self._pin(func(*args, **{**kwargs, "pin_memory": False}))
        return func(*args, **kwargs)

    def _read(self, func, args: tuple) -> bool | int | float:
        if on_gpu(args[0]):
            self._note("read", func, args[0])
        else:
            try:
                return func(*args)  # what was made of numbers still has them
            except DataDependentOutputException:
                pass
        return bool(self.answer) if func is ATEN.equal.default else scalar(self.answer, args[0])

    def _note(self, kind: str, func, tensor: Tensor, waits: bool = True) -> None:
        self.events.append(Event(kind, str(func), tuple(tensor.shape), waits, package_line()))

    def _note_indices(self, func, indices: Sequence[Tensor | None]) -> None:
        for index in indices:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                self._note("read", func, index)
            elif index is not None and not on_gpu(index):
                self._note("to device", func, index)

    def _note_copy(self, func, args: tuple, kwargs: dict) -> None:
        """A copy between the two; in `copy_(target, source)` the first is written."""
        if func is ATEN._to_copy.default:
            source, to_gpu, target = args[0], torch.device(kwargs.get("device") or args[0].device).type == "cuda", None
        else:
            target, source = args[:2]
            to_gpu = on_gpu(target)
        if to_gpu == on_gpu(source):
            return
        host = source if to_gpu else target
        non_blocking = bool(kwargs.get("non_blocking") or (target is not None and args[2:] and args[2]))
        # Without a target, PyTorch itself pins the memory that a copy to the host with `non_blocking` goes into.
        pinned = self._is_pinned(host) if host is not None else True
        self._note("to device" if to_gpu else "to host", func, source, waits=not (non_blocking and pinned))

    def _pin(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._pinned[storage._cdata] = storage
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._pinned


@contextmanager
def fake_gpu(answer: float = 1) -> Iterator[Traffic]:
    """Inside, `cuda` exists, every new tensor is fake, and what crosses between host and device is noted; see the module.

    Args:
        answer: what reading a value on the device gives.
    """
    forget_tables()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Traffic(answer) as traffic:
            yield traffic
    finally:
        forget_tables()


def forget_tables() -> None:
    """Empty the caches of the package's modules that are loaded."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "sparsevid":
            for value in list(vars(module).values()):
                if callable(clear := getattr(value, "cache_clear", None)):
                    clear()


def on_gpu(tensor: Any) -> bool:
    """Whether this is a tensor on the device."""
    return isinstance(tensor, Tensor) and tensor.device.type == "cuda"


def scalar(value: float, like: Tensor) -> bool | int | float:
    """A number of the type of the tensor's elements."""
    if like.dtype == torch.bool:
        return bool(value)
    return float(value) if like.dtype.is_floating_point else int(value)


def package_line() -> str:
    """The innermost line of the package, or of whoever calls PyTorch from outside of it, that is being run."""
    frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename and frame.filename != __file__]
    inside = [frame for frame in frames if "/sparsevid/" in frame.filename] or frames
    return f"{inside[-1].filename}:{inside[-1].lineno}: {inside[-1].line}"
