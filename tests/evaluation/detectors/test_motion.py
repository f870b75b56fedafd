"""Points followed through clips, and the detector that counts their motion."""

import pytest
import torch
import torch.nn.functional as F

from sparsevid.evaluation.detectors import build_detector
from sparsevid.evaluation.detectors.motion import follow, motion_histograms

cv2 = pytest.importorskip("cv2", reason="needs opencv (extra `motion`)")


def moving(right: int, down: int, seed: int = 0) -> torch.Tensor:
    """uint8 (3,16,96,96): a smooth pattern that moves by whole pixels a frame."""
    field = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(seed))
    field = F.interpolate(field, size=(192, 192), mode="bicubic").clamp(0, 1)[0]
    frames = [field.roll((down * t, right * t), dims=(1, 2))[:, 48:144, 48:144] for t in range(16)]
    return (255 * torch.stack(frames, dim=1)).to(torch.uint8)


def test_points_go_where_the_pattern_goes():
    start = torch.tensor([[40.0, 40.0], [52.0, 36.0]])
    tracks = follow(moving(1, 2), start)
    expected = start + torch.arange(16)[:, None, None] * torch.tensor([1.0, 2.0])
    assert (tracks - expected).abs().max() < 0.3


def test_features_are_histograms_of_the_tracks_and_tell_motions_apart():
    detector = build_detector("motion-lucas-kanade")
    clips = torch.stack([moving(1, 0), moving(1, 0, seed=1), moving(-1, 0), moving(0, 0)])
    found = detector(clips)
    assert found.shape == (4, detector.dim) == (4, 1024) and detector.preprocessing
    still, right, left = found[3], found[0], found[2]
    assert still.sum() < 0.1 * right.sum()
    assert (found[0] - found[1]).norm() < 0.5 * (right - left).norm()
    side = 8 + torch.linspace(0, 1, 20) * 80
    y, x = torch.meshgrid(side, side, indexing="ij")
    tracks = follow(clips[0], torch.stack([x, y], dim=-1).reshape(-1, 2))
    assert motion_histograms(tracks[None]).float()[0].equal(right)


def test_what_it_cannot_follow_is_refused(tmp_path):
    detector = build_detector("motion-lucas-kanade")
    with pytest.raises(ValueError, match="takes clips of 16 frames of more than 16 pixels a side, got 17 of 96×96"):
        detector(torch.zeros(1, 3, 17, 96, 96, dtype=torch.uint8))
    with pytest.raises(ValueError, match="has no weights"):
        build_detector("motion-lucas-kanade", path=tmp_path)
