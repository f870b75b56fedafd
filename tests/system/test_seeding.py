"""Keyed generators are functions of their key."""

import torch

from sparsevid.system.seeding import keyed_generator


def test_streams_are_equal_for_equal_keys_and_differ_otherwise():
    keys = [(1,), (1, 0), (0, 1), (1, 0, 0), (10,), (1, 1), (0, 1, 1)]
    first = [torch.rand(4, generator=keyed_generator(*key)) for key in keys]
    again = [torch.rand(4, generator=keyed_generator(*key)) for key in keys]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(draw.tolist()) for draw in first}) == len(keys)
