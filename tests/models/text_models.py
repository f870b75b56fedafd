"""Small models of text, and prompts for them."""

from dataclasses import replace

import torch
from torch import Tensor

from sparsevid.sparsity.spec import ModelSpec

CHANNELS, TOKENS = 10, 7
SPARSE = ModelSpec(
    "1P 2(1M2S1R1D) 1D",
    24,
    2,
    (4, 8, 8),
    sparse_grid=(2, 2, 2),
    text_channels=CHANNELS,
    text_tokens=TOKENS,
    shared_modulation=True,
    position_base=4,
)
IMAGE = replace(SPARSE, input_size=(1, 8, 8), sparse_grid=(1, 2, 3), micro_conditions=True, position_scale=2.0)
SPECS = {
    "sparse video": SPARSE,
    "sparse tokens listen": replace(SPARSE, merge_text="sparse", residual_upsampling=True),
    "dense video": SPARSE.dense(),
    "sparse image": IMAGE,
    "dense image": IMAGE.dense(),
    "own modulation": replace(IMAGE, shared_modulation=False),
}
T = torch.tensor([3, 700])
LENGTHS = (3, 6)  # tokens of the prompts
MASK = torch.stack([torch.arange(TOKENS) < length for length in LENGTHS])


def latents(spec: ModelSpec, stills: int = 0) -> Tensor:
    frames, *sides = spec.input_size
    return torch.randn(2, spec.in_channels, frames + stills, *sides, generator=torch.Generator().manual_seed(1))


def prompts(*shape: int, seed: int = 2) -> Tensor:
    """Features (2, …, L, C)."""
    return torch.randn(2, *shape, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(seed))
