"""PSNR and SSIM of clips against their definitions, and where clips are the same."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from sparsevid.evaluation.metrics.likeness import psnr, ssim


@pytest.fixture
def pair():
    """Noise on smooth clips, uint8 (3, 3, 2, 20, 28)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 2, 5, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(2, 20, 28), mode="trilinear") * 255
    noisy = smooth + 20 * torch.randn(smooth.shape, generator=generator)
    return smooth.to(torch.uint8), noisy.clamp(0, 255).to(torch.uint8)


def ssim_of_definition(x, y):
    """Wang and others 2004, equation 13, of one channel; where the window of 11×11 lies inside of the picture."""
    x, y = x.double().numpy(), y.double().numpy()

    def mean(values):
        return gaussian_filter(values, 1.5, radius=5, mode="constant")[5:-5, 5:-5]

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 2.55**2, 7.65**2
    return ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_both_are_means_over_frames_of_their_definitions(pair):
    frames = [(x[:, t], y[:, t]) for x, y in zip(*pair, strict=True) for t in range(2)]
    errors = [(x.double() - y.double()).square().mean().item() for x, y in frames]
    assert psnr(*pair) == pytest.approx(np.mean([10 * math.log10(255**2 / error) for error in errors]))
    expected = [ssim_of_definition(*planes) for frame in frames for planes in zip(*frame, strict=True)]
    assert ssim(*pair) == pytest.approx(np.mean(expected), abs=1e-5)
    assert 0.05 < ssim(*pair) < 0.95  # the noise is seen


def test_both_are_symmetric_and_fall_with_noise(pair):
    clips, noisy = pair
    assert psnr(noisy, clips) == psnr(clips, noisy) and ssim(noisy, clips) == pytest.approx(ssim(clips, noisy))
    half = ((clips.int() + noisy.int()) // 2).to(torch.uint8)
    assert psnr(half, clips) > psnr(noisy, clips) and ssim(half, clips) > ssim(noisy, clips)


def test_the_same_clips_are_infinitely_like_and_one_other_value_is_not(pair):
    clips, _ = pair
    assert psnr(clips, clips.clone()) == math.inf and ssim(clips, clips.clone()) == 1.0
    other = clips.clone()
    other[1, 0, 1, 3, 4] ^= 1  # by one level
    assert psnr(other, clips) == pytest.approx(10 * math.log10(255**2 * 3 * 20 * 28))  # of that frame, as of all others
    other[1, 0, 1, 3, 4] ^= 128
    assert 0.9 < ssim(other, clips) < 1.0


def test_one_same_frame_does_not_make_the_mean_infinite(pair):
    clips, noisy = pair
    noisy[0, :, 0] = clips[0, :, 0]
    assert psnr(*pair) < math.inf


def test_frames_smaller_than_the_window_and_of_one_value(pair):
    small, noisy = (each[..., :4, :7] for each in pair)
    assert 0 < ssim(small, noisy) < 1 and ssim(small, small) == 1.0
    black, white = (torch.full((1, 3, 2, 4, 4), value, dtype=torch.uint8) for value in (0, 255))
    assert ssim(black, white) == pytest.approx(2.55**2 / (255**2 + 2.55**2), rel=1e-4)
    assert psnr(black, white) == 0.0


@pytest.mark.parametrize("change", [lambda x: x.float(), lambda x: x[:1], lambda x: x[0]])
def test_other_clips_are_refused(pair, change):
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="others of their size"):
            measure(change(pair[0]), pair[1])
