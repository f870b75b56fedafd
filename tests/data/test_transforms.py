"""Resizing covers, keeps the aspect, and does not darken."""

import pytest
import torch

from sparsevid.data.transforms import area_average, flip, resize_crop


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (272, 640), (31, 997), (997, 31), (5, 7)])
@pytest.mark.parametrize("size", [(48, 48), (16, 40), (40, 16), (1, 1)])
def test_exact_size_for_any_aspect(shape, size):
    frames = resize_crop(torch.randint(256, (2, 3, *shape), dtype=torch.uint8), size)
    assert frames.shape == (2, 3, *size) and frames.dtype == torch.uint8


def test_the_right_size_is_left_alone():
    frames = torch.randint(256, (4, 3, 20, 30), dtype=torch.uint8)
    assert torch.equal(resize_crop(frames, (20, 30)), frames)


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_a_constant_stays(value):
    frames = torch.full((1, 3, 37, 53), value, dtype=torch.uint8)
    assert (resize_crop(frames, (16, 16)) == value).all()


def test_values_are_rounded():
    """Against antialiased resizing in float64: at most half a level away; truncation would be up to a whole one."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8, generator=generator)
    exact = torch.nn.functional.interpolate(frames.double(), (32, 32), mode="bilinear", antialias=True)
    error = resize_crop(frames, (32, 32)).double() - exact
    assert error.abs().max() <= 0.5 + 1e-3
    assert error.mean().abs() < 0.02


def test_the_centre_is_kept():
    frames = torch.zeros(1, 3, 20, 60, dtype=torch.uint8)
    frames[..., 20:40] = 200
    assert (resize_crop(frames, (20, 20)) == 200).all()


def test_frames_do_not_mix():
    frames = torch.randint(256, (5, 3, 33, 44), dtype=torch.uint8)
    alone = torch.cat([resize_crop(frame[None], (16, 16)) for frame in frames])
    assert torch.equal(resize_crop(frames, (16, 16)), alone)


def test_flip_is_its_own_inverse():
    frames = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    assert torch.equal(flip(flip(frames)), frames)
    assert torch.equal(flip(frames)[..., 0], frames[..., -1])


@pytest.mark.parametrize(
    ("frames", "size"),
    [(torch.zeros(1, 3, 8, 8), (4, 4)), (torch.zeros(3, 8, 8, dtype=torch.uint8), (4, 4)),
     (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (0, 4))],
)  # fmt: skip
def test_wrong_input(frames, size):
    with pytest.raises(ValueError, match=r"uint8 \(T,C,H,W\)|two positive numbers"):
        resize_crop(frames, size)


@pytest.mark.parametrize("size", [(7, 5), (64, 64), (32, 48), (96, 80), (210, 160), (1, 1)])
def test_an_area_average_is_the_rounded_mean_of_what_a_pixel_covers(size):
    """Against each pixel repeated to a size that both divide."""
    frames = torch.randint(256, (2, 42, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fine = frames.double().repeat_interleave(size[0], 1).repeat_interleave(size[1], 2)
    exact = fine.unflatten(2, (size[1], 32)).unflatten(1, (size[0], 42)).mean(dim=(2, 4))
    averaged = area_average(frames, size)
    assert averaged.dtype == torch.uint8 and averaged.shape == (2, *size)
    assert (averaged.double() - exact).abs().max() <= 0.5 + 1e-9


def test_an_area_average_of_the_same_size_changes_nothing():
    frames = torch.randint(256, (2, 3, 11, 13), dtype=torch.uint8)
    assert torch.equal(area_average(frames, (11, 13)), frames)
