"""Parity with the public implementations, on their own random weights."""

import pytest
import torch
from conftest import load_reference, relative_error
from einops import rearrange

from sparsevid.models.embeddings import sincos, spatial_table
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.spec import ModelSpec


def build_latte(name: str) -> tuple[DiffusionTransformer, dict, dict]:
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


@pytest.mark.parametrize("name", ["latte_uncond", "latte_class"])
def test_dense_layout_equals_public_latte(name):
    model, tensors, _ = build_latte(name)
    with torch.no_grad():
        out = model(rearrange(tensors["in.x"], "b t c h w -> b c t h w"), tensors["in.t"], tensors.get("in.y"))
    assert relative_error(rearrange(out, "b c t h w -> b t c h w"), tensors["out"]) <= 1e-5


def test_one_frame_equals_public_dit():
    model, tensors, _ = build_latte("dit")
    with torch.no_grad():
        out = model(tensors["in.x"][:, :, None], tensors["in.t"], tensors["in.y"])
    assert relative_error(out[:, :, 0], tensors["out"]) <= 1e-5


@pytest.mark.parametrize("name", ["latte_uncond", "dit"])
def test_position_tables_equal_the_stored_ones(name):
    model, _, tables = build_latte(name)
    grid, channels = model.spec.dense_grid(), model.spec.hidden_size
    spatial = torch.from_numpy(spatial_table(range(grid.h), range(grid.w), channels)).float()
    assert torch.equal(spatial, tables["pos_embed"][0])
    if "temp_embed" in tables:
        assert torch.equal(torch.from_numpy(sincos(range(grid.t), channels)).float(), tables["temp_embed"][0])
