"""What residual upsampling is for: a converted dense model keeps more of what its layers learnt."""

import pytest
import torch
from torch import Tensor

from sparsevid.autoencoder.linear import LinearAutoencoder
from sparsevid.data.clips import ClipDataset, fixed_clips
from sparsevid.data.sources import MemoryFrames
from sparsevid.data.tree.cards import load_card, resolve_root
from sparsevid.data.tree.clip_rule import ClipRule
from sparsevid.data.tree.manifest import build_manifest
from sparsevid.diffusion.flow import MODEL_TIME_SCALE, interpolate, velocity_loss
from sparsevid.models.convert.dense_to_sparse import dense_to_sparse
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.spec import ModelSpec

DENSE = ModelSpec("12D", 64, 4, (4, 6, 6), in_channels=16, patch_size=1, learn_sigma=False)
SPARSE = {"layout": "1P 2(1M2S1R1D) 1D", "sparse_grid": (2, 4, 4)}


def real_latents(tmp_path, clips: int) -> Tensor:
    """Latents of real clips: (clips, 16, 4, 6, 6)."""
    for name in ("carphone_pristine.mp4", "carphone_distorted.mp4"):
        (tmp_path / name).symlink_to(resolve_root(load_card("demo")) / name)
    manifest = build_manifest(tmp_path)
    dataset = ClipDataset(manifest, ClipRule(4, 4), MemoryFrames(manifest, (48, 48)))
    clips = torch.stack([dataset[key]["clip"] for key in fixed_clips(dataset, clips, dataset.seed)])
    return LinearAutoencoder.fit(clips).encode(clips)


def loss(model: DiffusionTransformer, x0: Tensor, generator: torch.Generator) -> Tensor:
    u = torch.rand(len(x0), generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    return velocity_loss(model(interpolate(x0, u, noise), MODEL_TIME_SCALE * u), x0, noise).mean()


def check_conversion(tmp_path, clips: int, steps: int) -> None:
    """Train a dense model for some steps on all clips but eight, and compare the losses of what it is converted to on those."""
    torch.manual_seed(0)
    generator, latents = torch.Generator().manual_seed(0), real_latents(tmp_path, clips)
    dense = DiffusionTransformer(DENSE)
    optimizer = torch.optim.AdamW(dense.parameters(), lr=2e-3)
    for _step in range(steps):
        optimizer.zero_grad()
        loss(dense, latents[torch.randperm(clips - 8, generator=generator)[:8]], generator).backward()
        optimizer.step()
    held_out = {}
    for residual in (False, True):
        spec = ModelSpec(**{**DENSE.to_dict(), **SPARSE, "residual_upsampling": residual})
        model = DiffusionTransformer(spec).eval()
        model.load_state_dict(dense_to_sparse(dense.state_dict(), DENSE, spec)[0])
        with torch.no_grad():
            held_out[residual] = loss(model, latents[-8:].repeat(4, 1, 1, 1, 1), torch.Generator().manual_seed(1)).item()
    with torch.no_grad():
        reached = loss(dense, latents[-8:].repeat(4, 1, 1, 1, 1), torch.Generator().manual_seed(1)).item()
    print(f"held-out loss: dense {reached:.3f}, W1 = 0 {held_out[False]:.3f}, residual {held_out[True]:.3f}")
    assert reached < held_out[True] < held_out[False]


def test_residual_conversion_starts_nearer_to_the_dense_model(tmp_path):
    check_conversion(tmp_path, clips=24, steps=30)


@pytest.mark.slow
def test_residual_conversion_after_more_training(tmp_path):
    check_conversion(tmp_path, clips=64, steps=120)
