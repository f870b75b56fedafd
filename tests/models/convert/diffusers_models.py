"""diffusers' transformers, small and with random weights, and what they give."""

from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel, LatteTransformer3DModel, PixArtTransformer2DModel
from models.text_models import CHANNELS, MASK, TOKENS
from torch import Tensor, nn

from sparsevid.models.convert.diffusers_folder import from_diffusers
from sparsevid.models.transformer import DiffusionTransformer

SMALL = {"num_attention_heads": 2, "attention_head_dim": 12}
T = torch.tensor([3, 700])


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval()


def pixart(sample_size: int = 32, **options) -> nn.Module:
    options = {"num_layers": 3, "cross_attention_dim": 24, "caption_channels": CHANNELS} | SMALL | options
    return drawn(PixArtTransformer2DModel(sample_size=sample_size, **options))


def latte(sample_size: int = 16, **options) -> nn.Module:
    options = {
        "in_channels": 4, "out_channels": 8, "num_layers": 2, "cross_attention_dim": 24, "attention_bias": True,
        "patch_size": 2, "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False, "norm_eps": 1e-6, "caption_channels": CHANNELS, "video_length": 4,
    } | SMALL | options  # fmt: skip
    return drawn(LatteTransformer3DModel(sample_size=sample_size, **options))


def dit(sample_size: int = 16, **options) -> nn.Module:
    """With the same embedders in every block, as all public ones have."""
    options = {"out_channels": 8, "num_layers": 3, "num_embeds_ada_norm": 5} | SMALL | options
    model = drawn(DiTTransformer2DModel(sample_size=sample_size, **options))
    embedders = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(embedders)
    return model


def ours(theirs: nn.Module, folder: Path, **options) -> DiffusionTransformer:
    """The model that its folder becomes."""
    theirs.save_pretrained(folder)
    converted = from_diffusers(folder, **options)
    model = DiffusionTransformer(converted.spec).eval()
    model.load_state_dict(converted.weights)
    return model


def features(seed: int = 2) -> Tensor:
    return torch.randn(2, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(seed))


def noise(*shape: int) -> Tensor:
    return torch.randn(2, 4, *shape, generator=torch.Generator().manual_seed(1))


def run_pixart(model: nn.Module, x: Tensor, text: Tensor, mask: Tensor | None, sizes: Tensor | None = None) -> Tensor:
    """x (B, C, H, W); sizes (B, 3) as ours takes them, those of the latents' sides by default."""
    height, width = (8.0 * side for side in x.shape[2:])
    sizes = torch.tensor([[height, width, height / width]]).expand(len(x), -1) if sizes is None else sizes
    added = {"resolution": sizes[:, :2], "aspect_ratio": sizes[:, 2:]}
    times = T[:1].expand(len(x)) if len(x) != 2 else T
    options = {"added_cond_kwargs": added, "encoder_attention_mask": mask}
    return model(x, encoder_hidden_states=text, timestep=times, **options).sample


def run_latte(model: nn.Module, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
    """x (B, C, T, H, W). The class takes a mask as what is added to scores, for each frame."""
    bias = None if mask is None else ((1 - mask.float()) * -1e4)[:, None].repeat_interleave(x.shape[2], 0)
    return model(x, timestep=T, encoder_hidden_states=text, encoder_attention_mask=bias).sample


MASKS = {"lengths apart": MASK, "no mask": None}
