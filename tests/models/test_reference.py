"""Parity with the public implementations, on their own random weights."""

import pytest
import torch
from einops import rearrange
from parity import load_public_model, relative_error

from sparsevid.models.embeddings import sincos, spatial_table


@pytest.mark.parametrize("name", ["latte_uncond", "latte_class"])
def test_dense_layout_equals_public_latte(name):
    model, tensors, _ = load_public_model(name)
    with torch.no_grad():
        out = model(rearrange(tensors["in.x"], "b t c h w -> b c t h w"), tensors["in.t"], tensors.get("in.y"))
    assert relative_error(rearrange(out, "b c t h w -> b t c h w"), tensors["out"]) <= 1e-5


def test_one_frame_equals_public_dit():
    model, tensors, _ = load_public_model("dit")
    with torch.no_grad():
        out = model(tensors["in.x"][:, :, None], tensors["in.t"], tensors["in.y"])
    assert relative_error(out[:, :, 0], tensors["out"]) <= 1e-5


@pytest.mark.parametrize("name", ["latte_uncond", "dit"])
def test_position_tables_equal_the_stored_ones(name):
    model, _, tables = load_public_model(name)
    grid, channels = model.spec.dense_grid(), model.spec.hidden_size
    spatial = torch.from_numpy(spatial_table(range(grid.h), range(grid.w), channels)).float()
    assert torch.equal(spatial, tables["pos_embed"][0])
    if "temp_embed" in tables:
        assert torch.equal(torch.from_numpy(sincos(range(grid.t), channels)).float(), tables["temp_embed"][0])
