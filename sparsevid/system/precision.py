"""What `float32` means: exact by default, TF32 by a named option, for convolutions and matrix products alike.

PyTorch's own default differs: TF32 (a mantissa of 10 bits, about 3 digits) in convolutions, exact in matrix products. On a CPU
both are exact, and nothing here changes that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def set_float32(tf32: bool = False, backends: Any = torch.backends) -> None:
    """Say what float32 means on GPUs from now on, in this process. Called where a run, a pipeline or a measurement begins.

    Args:
        tf32: convolutions and matrix products of float32 tensors may round their inputs to TF32.
        backends: PyTorch's settings.
    """
    # PyTorch has flags of two kinds since 2.9, and refuses to read the older ones, as its compiler does, where they disagree.
    for owner, name, value in (*_flags(backends, tf32), *_precisions(backends, tf32)):
        setattr(owner, name, value)


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 inside: its 10-bit mantissa moves features by 1e-3, and convolutions use it by default."""
    switches = _precisions(torch.backends) or _flags(torch.backends)
    before = [getattr(owner, name) for owner, name, _ in switches]
    try:
        for owner, name, exact in switches:
            setattr(owner, name, exact)
        yield
    finally:
        for (owner, name, _), value in zip(switches, before, strict=True):
            setattr(owner, name, value)


def _flags(backends: Any, tf32: bool = False) -> tuple[tuple[Any, str, bool], ...]:
    """The flags, one a library, that every version to now has."""
    return (backends.cudnn, "allow_tf32", tf32), (backends.cuda.matmul, "allow_tf32", tf32)


def _precisions(backends: Any, tf32: bool = False) -> tuple[tuple[Any, str, str], ...]:
    """The switches, one an operation, that decide since PyTorch 2.9; none before."""
    if not hasattr(backends.cudnn, "conv"):
        return ()
    value = "tf32" if tf32 else "ieee"
    return (backends.cudnn.conv, "fp32_precision", value), (backends.cuda.matmul, "fp32_precision", value)
