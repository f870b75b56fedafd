"""What tests of models share: reference files, models built from them or at random, errors over the largest magnitude."""

import os
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sparsevid.benchmark.gpu import parity
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.spec import ModelSpec

REFERENCE = Path(os.environ.get("SPARSEVID_REFERENCE", Path(__file__).parent / "reference"))
load_reference = partial(parity.load_reference, REFERENCE)  # of a file's name: its tensors and configuration


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Maximal error over maximal magnitude."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def load_public_model(name: str) -> tuple[DiffusionTransformer, dict, dict]:
    """A model of ours with the weights of a reference file, the file's tensors, and its stored position tables."""
    tensors, config = load_reference(name)
    spec = ModelSpec(
        layout=f"{config['depth']}D",
        hidden_size=config["hidden_size"],
        num_heads=config["num_heads"],
        input_size=(config.get("num_frames", 1), config["input_size"], config["input_size"]),
        in_channels=config["in_channels"],
        patch_size=config["patch_size"],
        num_classes=config["num_classes"] if config.get("extras") != 1 else 0,
        learn_sigma=config["learn_sigma"],
    )
    model = DiffusionTransformer(spec).eval()
    weights = {key[3:]: value for key, value in tensors.items() if key.startswith("sd.")}
    tables = {key: weights.pop(key) for key in ("pos_embed", "temp_embed") if key in weights}
    model.load_state_dict(weights, strict=True)
    return model, tensors, tables


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter, zeros too, a random value."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return module.eval()


def disturbed(spec: ModelSpec, seed: int = 0, size: float = 0.1) -> DiffusionTransformer:
    """A model beside its initialisation, whose zeros would hide differences."""
    torch.manual_seed(seed)
    model = DiffusionTransformer(spec).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return model
