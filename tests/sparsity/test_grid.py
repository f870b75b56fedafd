"""Pooling, upsampling and cells of token grids."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from sparsevid.sparsity.grid import Grid, cell_centres, check_sparse_grid
from sparsevid.sparsity.tokens import pool, upsample, windows

GRIDS = [
    (Grid(8, 6, 6), Grid(4, 4, 4)),
    (Grid(4, 16, 16), Grid(1, 7, 7)),
    (Grid(6, 5, 9), Grid(3, 2, 4)),
    (Grid(1, 16, 16), Grid(1, 1, 1)),
    (Grid(4, 3, 3), Grid(4, 3, 3)),
]


@pytest.mark.parametrize(("dense", "sparse"), GRIDS)
def test_pool_is_adaptive_average_pooling(dense, sparse):
    tokens = torch.randn(2, dense.t, dense.h * dense.w, 8)
    volume = rearrange(tokens, "b t (h w) d -> b d t h w", h=dense.h)
    expected = rearrange(F.adaptive_avg_pool3d(volume, sparse), "b d t h w -> b t (h w) d")
    torch.testing.assert_close(pool(tokens, dense, sparse), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("dense", "sparse"), GRIDS)
def test_pool_then_upsample_keeps_a_constant(dense, sparse):
    tokens = torch.full((2, dense.t, dense.h * dense.w, 4), 1.75)
    up = upsample(pool(tokens, dense, sparse), sparse, dense)
    assert up.shape == (2, sparse.t, dense.h * dense.w, 4)
    assert torch.equal(up, torch.full_like(up, 1.75))


def test_upsampling_takes_the_integer_cell():
    for size in range(1, 129):
        for cells in range(1, size + 1, 7):
            index = upsample(torch.arange(cells).view(1, 1, cells, 1), Grid(1, cells, 1), Grid(1, size, 1)).flatten()
            assert index.tolist() == [j * cells // size for j in range(size)]


@pytest.mark.parametrize(("size", "cells"), [(16, 4), (16, 6), (7, 3), (5, 5), (9, 1)])
def test_cell_centres_are_mean_coordinates_of_the_pooling_bins(size, cells):
    expected = F.adaptive_avg_pool1d(torch.arange(size, dtype=torch.float64)[None, None], cells)[0, 0]
    torch.testing.assert_close(torch.tensor(cell_centres(size, cells), dtype=torch.float64), expected)


def test_windows_are_consecutive_frames_without_a_copy():
    tokens = torch.randn(2, 8, 6, 4)
    view = windows(tokens, 4)
    assert view.shape == (2, 4, 12, 4) and view.data_ptr() == tokens.data_ptr()
    assert torch.equal(view[:, 1], tokens[:, 2:4].flatten(1, 2))


def test_grids_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"t = 3 does not divide the 8 frames.*\[1, 2, 4, 8\]"):
        check_sparse_grid(Grid(3, 2, 2), Grid(8, 6, 6))
    with pytest.raises(ValueError, match="h = 7 is not between 1 and 6"):
        check_sparse_grid(Grid(2, 7, 2), Grid(8, 6, 6))
