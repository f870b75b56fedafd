"""Attention over (..., tokens, D), and the projections around it under the public checkpoints' names.

Dimensions: B clips, T frames, N tokens a frame, D channels, h heads of d = D/h channels. Backends take (B', M, h, d):
sequences, tokens, heads, channels of a head. Any strides will do, so spatial, temporal and windowed attention read the
projections in place.
"""

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsevid.system.errors import ExpectedError

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class BackendError(ExpectedError):
    """An attention backend that cannot run here; the message says why."""


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's fused attention: (B', M, h, d) and twice (B', N, h, d) → (B', M, h, d)."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def attend_math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d)·v in plain tensor products, the reference for the others. Shapes as `attend_sdpa`."""
    scores = (q * q.shape[-1] ** -0.5).transpose(1, 2) @ k.permute(0, 2, 3, 1)  # (B', h, M, N)
    return (scores.softmax(dim=-1) @ v.transpose(1, 2)).transpose(1, 2)


def attend_xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Memory-efficient attention of xformers. Shapes as `attend_sdpa`."""
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(q, k, v)


BACKENDS: dict[str, Attend] = {"sdpa": attend_sdpa, "xformers": attend_xformers, "math": attend_math}


def choose_backend(name: str) -> Attend:
    """The attention function of a backend.

    Raises:
        ValueError: no such backend.
        BackendError: the backend cannot run here; the message says why.
    """
    if name not in BACKENDS:
        raise ValueError(f"no attention backend {name!r}; the backends are {', '.join(BACKENDS)}")
    if name == "xformers":
        _require_xformers()
    return BACKENDS[name]


def _require_xformers() -> None:
    if importlib.util.find_spec("xformers") is None:
        raise BackendError("attention backend xformers: not installed; pip install 'sparsevid[xformers]', or use sdpa")
    if not torch.cuda.is_available():
        raise BackendError("attention backend xformers: its kernels need a CUDA device and there is none; use sdpa")
    try:
        import xformers.ops  # noqa: F401 (the import loads the kernels)
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(
            f"attention backend xformers: it does not load with torch {torch.__version__} ({error}); install a build that "
            "matches, or use sdpa"
        ) from error


class FusedLinear(nn.Linear):
    """Several linear maps in one weight, as public checkpoints store q, k and v.

    Args:
        hidden_size: D, channels in and out of each map.
        maps: how many.
    """

    def __init__(self, hidden_size: int, maps: int) -> None:
        super().__init__(hidden_size, maps * hidden_size)
        self.maps = maps

    def forward(self, x: Tensor, apart: bool = False) -> tuple[Tensor, ...]:
        """(..., D) → `maps` times (..., D): views of one product, or with `apart` a contiguous product each."""
        if not apart:
            return super().forward(x).chunk(self.maps, dim=-1)
        weights, biases = self.weight.chunk(self.maps), self.bias.chunk(self.maps)
        return tuple(F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))


class SelfAttention(nn.Module):
    """Attention among the tokens of each frame, or of each position over frames: (B, T, N, D) → (B, T, N, D)."""

    def __init__(self, hidden_size: int, num_heads: int, temporal: bool, backend: str) -> None:
        super().__init__()
        self.heads, self.temporal, self.attend = num_heads, temporal, choose_backend(backend)
        self.qkv = FusedLinear(hidden_size, 3)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        if self.temporal:
            # With q, k and v apart, position and head are one axis with one stride: N·h "heads" over T tokens, no copy.
            q, k, v = (each.unflatten(-1, (self.heads, -1)).flatten(2, 3) for each in self.qkv(x, apart=True))
        else:
            q, k, v = (each.flatten(0, 1).unflatten(-1, (self.heads, -1)) for each in self.qkv(x))
        return self.proj(self.attend(q, k, v).reshape(x.shape))


class CrossAttention(nn.Module):
    """Attention of one set of tokens to another, window by window: (B, t, M, D) and (B, t, N, D) → (B, t, M, D)."""

    def __init__(self, hidden_size: int, num_heads: int, backend: str) -> None:
        super().__init__()
        self.heads, self.attend = num_heads, choose_backend(backend)
        self.q = nn.Linear(hidden_size, hidden_size)
        self.kv = FusedLinear(hidden_size, 2)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        parts = (self.q(x), *self.kv(source))
        q, k, v = (each.flatten(0, 1).unflatten(-1, (self.heads, -1)) for each in parts)
        return self.proj(self.attend(q, k, v).reshape(x.shape))


class MeanPooling(nn.Module):
    """What attention with equal weights gives, on the mean of the tokens: (..., D) → (..., D).

    V and proj are linear, so mean(V(x)) = V(mean(x)): the caller passes the mean.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.v = nn.Linear(hidden_size, hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, mean: Tensor) -> Tensor:
        return self.proj(self.v(mean))
