"""Properties of the distortions: identity at strength 0, growth, and what each of them leaves alone."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from sparsevid.evaluation.distortions import BLUR_SHARE, DISTORTIONS, NOISE_LEVELS, STRENGTHS


def draw_clip(frames: int = 10, size: tuple[int, int] = (32, 40)) -> Tensor:
    """A clip in which all frames differ."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, frames, *size), dtype=torch.uint8, generator=generator)


def distort(name: str, clip: Tensor, strength: float, seed: int = 0) -> Tensor:
    return DISTORTIONS[name](clip, strength, torch.Generator().manual_seed(seed))


def changed_frames(clip: Tensor, other: Tensor) -> list[int]:
    return (clip != other).flatten(2).any(dim=2).any(dim=0).nonzero().flatten().tolist()


@pytest.mark.parametrize("size", [(32, 40), (5, 3)])
def test_rows_and_columns_blurred_one_after_the_other_are_blurred_by_a_kernel_of_both(size):
    clip = draw_clip(4, size)
    sigma = BLUR_SHARE * min(size)
    radius = min(math.ceil(3 * sigma), min(size) - 1)
    expected = gaussian_blur(clip.transpose(0, 1).double(), [2 * radius + 1] * 2, [sigma] * 2).transpose(0, 1)
    assert (distort("blur", clip, 1.0) - expected).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize(("frames", "size"), [(10, (32, 40)), (2, (5, 3)), (7, (1, 1))])
def test_strength_0_is_the_identity_and_no_strength_touches_its_input(name, frames, size):
    clip = draw_clip(frames, size)
    before = clip.clone()
    assert torch.equal(distort(name, clip, 0.0), clip)
    for strength in STRENGTHS:
        found = distort(name, clip, strength)
        assert found.dtype == torch.uint8
        assert found.shape == clip.shape
        found.zero_()
        assert torch.equal(clip, before)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_the_generator_alone_rules_what_is_random(name):
    clip = draw_clip()
    for strength in STRENGTHS:
        torch.manual_seed(strength)
        assert torch.equal(distort(name, clip, strength), distort(name, clip, strength))


@pytest.mark.parametrize("name", ["noise", "frame shuffling"])
def test_other_seeds_give_other_clips(name):
    clip = draw_clip()
    assert not torch.equal(distort(name, clip, 1.0, seed=0), distort(name, clip, 1.0, seed=1))


@pytest.mark.parametrize("name", ["blur", "noise", "frame shuffling", "freezing"])
def test_more_strength_is_more_damage(name):
    clip = draw_clip(frames=20)
    damage = [(distort(name, clip, s).float() - clip.float()).abs().mean().item() for s in (0.0, *STRENGTHS)]
    assert all(a < b for a, b in pairwise(damage)), damage


def test_blur_keeps_flat_frames_and_their_mean_and_mixes_no_frames():
    flat = torch.full((3, 4, 16, 16), 77, dtype=torch.uint8)
    assert torch.equal(distort("blur", flat, 1.0), flat)
    clip = draw_clip(4)
    blurred = distort("blur", clip, 0.6)
    assert blurred.float().mean() == pytest.approx(clip.float().mean().item(), abs=1.5)
    assert blurred.float().std() < 0.3 * clip.float().std()
    alone = torch.cat([distort("blur", clip[:, [i]], 0.6) for i in range(4)], dim=1)
    assert torch.equal(alone, blurred)


def test_noise_has_the_stated_deviation_where_nothing_is_clamped():
    grey = torch.full((3, 8, 64, 64), 128, dtype=torch.uint8)
    noisy = distort("noise", grey, 0.5).float()
    assert noisy.mean() == pytest.approx(128, abs=0.5)
    assert noisy.std() == pytest.approx(0.5 * NOISE_LEVELS, rel=0.02)


def test_noise_rounds_and_does_not_wrap():
    dark, bright = (torch.full((3, 4, 32, 32), level, dtype=torch.uint8) for level in (0, 255))
    assert distort("noise", dark, 0.2).float().mean() < 20
    assert distort("noise", bright, 0.2).float().mean() > 235


@pytest.mark.parametrize(("strength", "moved"), [(0.05, 2), (0.2, 2), (0.4, 4), (0.6, 6), (1.0, 10)])
def test_shuffling_moves_that_share_of_frames_and_loses_none(strength, moved):
    clip = draw_clip(10)
    shuffled = distort("frame shuffling", clip, strength)
    assert len(changed_frames(clip, shuffled)) == moved
    places = [next(i for i in range(10) if torch.equal(clip[:, i], shuffled[:, j])) for j in range(10)]
    assert sorted(places) == list(range(10))


def test_more_shuffling_moves_the_same_frames_and_further_ones():
    clip = draw_clip(20)
    moved = [set(changed_frames(clip, distort("frame shuffling", clip, s))) for s in STRENGTHS]
    assert all(a < b for a, b in pairwise(moved))


@pytest.mark.parametrize(("strength", "live"), [(0.2, 9), (0.6, 5), (1.0, 1)])
def test_freezing_repeats_the_last_live_frame(strength, live):
    clip = draw_clip(11)
    frozen = distort("freezing", clip, strength)
    assert torch.equal(frozen[:, :live], clip[:, :live])
    assert all(torch.equal(frozen[:, i], clip[:, live - 1]) for i in range(live, 11))


def test_time_reversal_turns_whole_clips_and_a_share_of_them():
    clip = draw_clip()
    assert torch.equal(distort("time reversal", clip, 1.0), clip.flip(1))

    def turned(strength: float) -> set[int]:
        return {seed for seed in range(200) if not torch.equal(distort("time reversal", clip, strength, seed), clip)}

    found = [turned(strength) for strength in STRENGTHS]
    assert all(a < b for a, b in pairwise(found))
    assert [len(seeds) for seeds in found] == pytest.approx([200 * strength for strength in STRENGTHS], abs=30)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_bad_input_is_refused(name):
    clip = draw_clip()
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength is 0 to 1, got"):
            distort(name, clip, strength)
    for wrong in (clip.float(), clip[:1], clip[:, 0], clip[:, :0]):
        with pytest.raises(ValueError, match=r"uint8 \(3,T,H,W\), got"):
            distort(name, wrong, 0.5)


@pytest.mark.parametrize("name", ["frame shuffling", "freezing"])
def test_a_single_frame_has_no_time_to_damage(name):
    with pytest.raises(ValueError, match="2 frames or more, got 1"):
        distort(name, draw_clip(1), 0.5)
