"""A small autoencoder for latents that others keep."""

import pytest
import torch
from diffusers import AutoencoderKL

from sparsevid.autoencoder.kl import KLAutoencoder


@pytest.fixture(scope="session")
def autoencoder() -> KLAutoencoder:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return KLAutoencoder(AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks), "none")
