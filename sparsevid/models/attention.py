"""Attention over (..., tokens, D), and the projections around it under the public checkpoints' names.

Dimensions: B clips, T frames, N tokens a frame, D channels, h heads of D/h channels.
"""

from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's fused attention: (B, h, M, D/h), (B, h, N, D/h) twice → (B, h, M, D/h)."""
    return F.scaled_dot_product_attention(q, k, v)


def attend_math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ/√(D/h))·v in plain tensor products, the reference for the others. Shapes as `attend_sdpa`."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.softmax(dim=-1) @ v


BACKENDS: dict[str, Attend] = {"sdpa": attend_sdpa, "math": attend_math}


def choose_backend(name: str) -> Attend:
    """The attention function of a backend.

    Raises:
        ValueError: no such backend.
    """
    if name not in BACKENDS:
        raise ValueError(f"no attention backend {name!r}; the backends are {', '.join(BACKENDS)}")
    return BACKENDS[name]


class SelfAttention(nn.Module):
    """Attention among the tokens of each sequence: (B, S, N, D) → (B, S, N, D), S sequences a clip."""

    def __init__(self, hidden_size: int, num_heads: int, backend: str) -> None:
        super().__init__()
        self.heads, self.attend = num_heads, choose_backend(backend)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        q, k, v = rearrange(self.qkv(x), "b s n (three h d) -> three (b s) h n d", three=3, h=self.heads).unbind(0)
        return self.proj(rearrange(self.attend(q, k, v), "(b s) h n d -> b s n (h d)", b=batch))


class CrossAttention(nn.Module):
    """Attention of one set of tokens to another, window by window: (B, t, M, D) and (B, t, N, D) → (B, t, M, D)."""

    def __init__(self, hidden_size: int, num_heads: int, backend: str) -> None:
        super().__init__()
        self.heads, self.attend = num_heads, choose_backend(backend)
        self.q = nn.Linear(hidden_size, hidden_size)
        self.kv = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        batch = x.shape[0]
        q = rearrange(self.q(x), "b t m (h d) -> (b t) h m d", h=self.heads)
        k, v = rearrange(self.kv(source), "b t n (two h d) -> two (b t) h n d", two=2, h=self.heads).unbind(0)
        return self.proj(rearrange(self.attend(q, k, v), "(b t) h m d -> b t m (h d)", b=batch))


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
