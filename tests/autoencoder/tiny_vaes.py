"""Small autoencoders of diffusers with random weights, by kind."""

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, AutoencoderKLWan


def tiny_vae(kind: str) -> torch.nn.Module:
    """Of factor 2, `wan` of 8 in space and 4 in time; tiles of `kl` are 16 pixels wide."""
    torch.manual_seed(0)
    if kind == "kl":
        blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
        return AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16, **blocks)
    if kind == "temporal":
        options = {"down_block_types": ("DownEncoderBlock2D",) * 2, "block_out_channels": (32, 32), "latent_channels": 4}
        return AutoencoderKLTemporalDecoder(**options)
    # Kaiming's start of its convolutions makes no unit latents, nor do these; means and deviations are told apart.
    scale = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.0, 2.0, 1.5]}
    return AutoencoderKLWan(base_dim=8, z_dim=4, num_res_blocks=1, **scale)
