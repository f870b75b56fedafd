"""Folders of clips of one noise: PSNR and SSIM, whatever the format, and what cannot be compared."""

import math

import pytest
import torch

from sparsevid.evaluation.likeness import folder_likeness
from sparsevid.evaluation.metrics.likeness import psnr, ssim
from sparsevid.videos.write import write_clip


def clips(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 4, 16, 18), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def write(folder, given, format="ffv1"):
    folder.mkdir()
    for number, clip in enumerate(given):
        write_clip(folder / f"{number:06d}", clip, 8.0, format)
    return folder


def test_pairs_are_found_by_name_and_one_that_is_the_same_counts_as_such(tmp_path):
    given = clips()
    changed = given.clone()
    changed[1:, :, :, 4:9] = 255 - changed[1:, :, :, 4:9]
    one, other = write(tmp_path / "a", changed), write(tmp_path / "b", given, "npz")
    found = folder_likeness(one, other)
    assert (found.clips, found.same) == (3, 1)
    assert found.psnr == pytest.approx(psnr(changed[1:], given[1:]), rel=1e-5)
    assert found.ssim == pytest.approx(ssim(changed, given), rel=1e-5)
    assert folder_likeness(one, other, 1).psnr == math.inf


def test_values_are_those_of_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.image", reason="needs torchmetrics")
    given = clips()
    changed = (given.float() * 0.8 + 10).to(torch.uint8)
    frames = [each.transpose(1, 2).flatten(0, 1).float() for each in (changed, given)]
    theirs = functional.structural_similarity_index_measure(*frames, data_range=255.0)
    assert ssim(changed, given) == pytest.approx(theirs.item(), rel=1e-4)
    theirs = functional.peak_signal_noise_ratio(*frames, data_range=255.0, dim=(1, 2, 3), reduction="elementwise_mean")
    assert psnr(changed, given) == pytest.approx(theirs.item(), rel=1e-5)


def test_what_has_no_namesake_or_another_size_is_named(tmp_path):
    one = write(tmp_path / "a", clips(3))
    with pytest.raises(ValueError, match=r"has no clip of the name '000002'"):
        folder_likeness(one, write(tmp_path / "b", clips(2)))
    with pytest.raises(ValueError, match=r"clip '000000' is \(T, H, W\) \(4, 16, 18\) and \(4, 16, 10\)"):
        folder_likeness(one, write(tmp_path / "c", clips(3)[..., :10]))
