"""Attention over (..., tokens, D), and the projections around it under the public checkpoints' names.

Dimensions: B clips, T frames, N tokens a frame, D channels, h heads of d = D/h channels. Backends take (B', M, h, d):
sequences, tokens, heads, channels of a head. Any strides will do, so spatial, temporal and windowed attention read the
projections in place.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import cuda as switches
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsevid.system.errors import ExpectedError

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class BackendError(ExpectedError):
    """An attention backend that cannot run here; the message says why."""


class Kernel(NamedTuple):
    """One of the kernels behind PyTorch's attention: its name there, and the switch that allows it."""

    backend: SDPBackend
    is_allowed: Callable[[], bool]
    allow: Callable[[bool], None]


KERNELS = {
    "flash": Kernel(SDPBackend.FLASH_ATTENTION, switches.flash_sdp_enabled, switches.enable_flash_sdp),
    "efficient": Kernel(SDPBackend.EFFICIENT_ATTENTION, switches.mem_efficient_sdp_enabled, switches.enable_mem_efficient_sdp),
    "cudnn": Kernel(SDPBackend.CUDNN_ATTENTION, switches.cudnn_sdp_enabled, switches.enable_cudnn_sdp),
    "math": Kernel(SDPBackend.MATH, switches.math_sdp_enabled, switches.enable_math_sdp),
}
# What `sdpa` chooses from on a GPU, best first, which is PyTorch's own order. It would prefer cuDNN's on Hopper, which makes a
# plan for each shape; a token schedule has some 22 shapes for each size of a batch.
PREFERRED = ("flash", "efficient", "math")
GPU_ONLY = ("efficient", "cudnn")
UNHEARD = -1e4  # on scores of a prompt's padding, as in diffusers: within float16, and e to it is 0 in every type
MOST_SEQUENCES = 65_535  # and heads, of a call: CUDA's limit to the second and third side of a kernel's grid
_NO_KERNEL = ("No available kernel", "No viable backend")  # PyTorch's words: the error has no type of its own


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's fused attention: (B', M, h, d) and twice (B', N, h, d) → (B', M, h, d).

    On a GPU by the first of its kernels flash, efficient and math that can.
    """
    with allowing(PREFERRED) if q.is_cuda else nullcontext():
        return in_parts(_scaled_dot_product, q, k, v)


def attend_by_kernel(name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention by one of its kernels alone. Shapes as `attend_sdpa`.

    Raises:
        BackendError: the kernel cannot do this here; the message names those that can.
    """
    try:
        with allowing((name,)):
            return in_parts(_scaled_dot_product, q, k, v)
    except RuntimeError as error:
        if torch.compiler.is_compiling() or not any(words in str(error) for words in _NO_KERNEL):
            raise
        able = [other for other in KERNELS if other != name and _can(other, q[:1], k[:1], v[:1])]
        if not able:  # these tensors go through no kernel, anywhere
            raise
        raise BackendError(
            f"attention backend {name}: PyTorch {torch.__version__} has no such kernel for {q.dtype} {tuple(q.shape)} on "
            f"{q.device}; what runs there: {', '.join(able)}"
        ) from error


def attend_math(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√d)·v in plain tensor products, the reference for the others. Shapes as `attend_sdpa`."""
    scores = (q * q.shape[-1] ** -0.5).transpose(1, 2) @ k.permute(0, 2, 3, 1)  # (B', h, M, N)
    scores = scores if bias is None else scores + bias
    return (scores.softmax(dim=-1) @ v.transpose(1, 2)).transpose(1, 2)


def attend_with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's attention with a bias (B', 1, 1, N) on the scores, by a kernel that takes one. Shapes as `attend_sdpa`."""
    with allowing(PREFERRED) if q.is_cuda else nullcontext():
        return _scaled_dot_product(q, k, v, bias)


def text_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask of tokens (..., L), not 0 where one is heard → what is added to scores, (..., 1, 1, L).

    A token that is not heard has a weight of exactly 0 beside one that is. Where none is, all are heard.
    """
    return (mask == 0).to(dtype)[..., None, None, :] * UNHEARD


def attend_xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Memory-efficient attention of xformers. Shapes as `attend_sdpa`."""
    from xformers.ops import memory_efficient_attention

    return in_parts(memory_efficient_attention, q, k, v)


BACKENDS: dict[str, Attend] = {
    "sdpa": attend_sdpa,
    **{name: partial(attend_by_kernel, name) for name in ("flash", "efficient", "cudnn")},
    "xformers": attend_xformers,
    "math": attend_math,
}


def choose_backend(name: str) -> Attend:
    """The attention function of a backend.

    Raises:
        ValueError: no such backend.
        BackendError: the backend cannot run here; the message says why.
    """
    if name not in BACKENDS:
        raise ValueError(f"no attention backend {name!r}; the backends are {', '.join(BACKENDS)}")
    if name in GPU_ONLY and not torch.cuda.is_available():
        raise BackendError(
            f"attention backend {name}: PyTorch's kernel needs a CUDA device and there is none; here run sdpa, flash, math"
        )
    if name == "xformers":
        _require_xformers()
    return BACKENDS[name]


@contextmanager
def allowing(names: Sequence[str]) -> Iterator[None]:
    """Inside, PyTorch's attention chooses among these of the kernels only, as far as they are allowed outside."""
    if torch.compiler.is_compiling():
        with sdpa_kernel([KERNELS[name].backend for name in names]):
            yield
        return
    # By switches: `sdpa_kernel` takes 40 μs, as long as a small layer's attention.
    off = [kernel for name, kernel in KERNELS.items() if name not in names and kernel.is_allowed()]
    for kernel in off:
        kernel.allow(False)
    try:
        yield
    finally:
        for kernel in off:
            kernel.allow(True)


def in_parts(attend: Attend, q: Tensor, k: Tensor, v: Tensor, most: int = MOST_SEQUENCES) -> Tensor:
    """Attention in as many calls as keep sequences, and heads, of each within `most`. Shapes as `attend_sdpa`."""
    for axis in (0, 2):
        if q.shape[axis] > most:
            qs, ks, vs = (each.chunk(-(-q.shape[axis] // most), axis) for each in (q, k, v))
            return torch.cat([in_parts(attend, *part, most) for part in zip(qs, ks, vs, strict=True)], axis)
    return attend(q, k, v)


def _scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias).transpose(1, 2)


def _can(name: str, q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether a kernel runs on such tensors."""
    try:
        with allowing((name,)), torch.no_grad():
            _scaled_dot_product(q, k, v)
    except RuntimeError:
        return False
    return True


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

    def forward(self, x: Tensor, apart: bool = False) -> tuple[Tensor, ...]:  # type: ignore[override]  # a Linear by weights
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


class TextAttention(nn.Module):
    """Attention of all tokens of a clip to its prompt: (B, T, N, D) → (B, T, N, D), whatever frame a token is of.

    Keys and values depend neither on time nor on tokens: they come computed, by `kv_linear` of the embedded prompt.
    """

    def __init__(self, hidden_size: int, num_heads: int, backend: str) -> None:
        super().__init__()
        self.heads, self.attend = num_heads, choose_backend(backend)
        self.attend_with_bias = attend_math if backend == "math" else attend_with_bias
        self.q_linear = nn.Linear(hidden_size, hidden_size)
        self.kv_linear = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, bias: Tensor | None, keys_values: Tensor) -> Tensor:
        """x (B, T, N, D), the prompt's bias (B, 1, 1, L), or None where all of it is heard, and (B, L, 2·D)."""
        q = self.q_linear(x.to(self.q_linear.weight.dtype)).flatten(1, 2)  # (B, T·N, D)
        # Under autocast prompts may have been prepared outside of it.
        q, k, v = (each.to(q.dtype).unflatten(-1, (self.heads, -1)) for each in (q, *keys_values.chunk(2, dim=-1)))
        heard = self.attend(q, k, v) if bias is None else self.attend_with_bias(q, k, v, bias.to(q.dtype))
        return self.proj(heard.reshape(x.shape))


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
