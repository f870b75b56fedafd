"""Distances beside FVD: each against the package that published it, where that is installed, and by what holds for it."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from sparsevid.evaluation.detectors.motion import motion_histograms
from sparsevid.evaluation.detectors.stream import spectrum_statistics
from sparsevid.evaluation.metrics.distances import frechet_distance, frechet_with_ridge
from sparsevid.evaluation.metrics.kernel import jedi
from sparsevid.evaluation.metrics.manifold import precision_recall
from sparsevid.evaluation.metrics.stream import temporal_likeness
from sparsevid.evaluation.metrics.table import FVMD_RIDGE


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


REAL, FAKE = draw(60, 12), 1.3 * draw(50, 12, seed=1) + 0.4


def test_jedi_is_the_discrepancy_of_its_kernel():
    """Written out by pairs, those of a clip with itself among them."""
    kernel = lambda a, b: ((a @ b.T) / 12).square().mean()  # noqa: E731
    expected = 100 * (kernel(REAL, REAL) + kernel(FAKE, FAKE) - 2 * kernel(REAL, FAKE))
    assert jedi(REAL, FAKE) == pytest.approx(expected.item(), rel=1e-12)
    assert jedi(REAL, REAL) == 0 and jedi(REAL, FAKE) == pytest.approx(jedi(FAKE, REAL))
    assert jedi(REAL, -REAL) == 0, "a kernel of even degree does not see signs"


def test_jedi_is_that_of_videojedi():
    reason = "needs videojedi and scikit-learn"
    pytest.importorskip("sklearn.metrics", reason=reason)
    videojedi = pytest.importorskip("videojedi", reason=reason)
    metric = videojedi.JEDiMetric.__new__(videojedi.JEDiMetric)  # its constructor wants the network's files
    metric.train_features, metric.test_features = REAL.numpy(), FAKE.numpy()
    assert jedi(REAL, FAKE) == pytest.approx(metric.compute_metric(), rel=1e-9)


def test_a_power_law_is_found_again():
    """A sum of cosines of amplitude kᴮ: the fitted law is that, and its skewness the ratio of its moments."""
    frames, exponent = 16, -1.5
    k, t = torch.arange(1, 9, dtype=torch.float64), torch.arange(frames, dtype=torch.float64)
    waves = torch.cos(2 * torch.pi * k[:, None] * t / frames) * k[:, None] ** exponent
    waves[-1] /= 2  # the highest frequency is its own mirror image
    skewness, mean = spectrum_statistics(3 + 1000 * waves.sum(dim=0)[None, :, None])
    law = k**exponent
    expected = (law * k**3).sum() / ((law * k**2).sum() / law.sum()).sqrt()
    assert skewness.item() == pytest.approx(expected.item(), rel=1e-6)
    assert mean.item() == pytest.approx(2 * 3 * frames / 9, rel=1e-9)


def test_motion_that_is_alike_scores_one_and_that_of_shuffled_features_less():
    real = draw(400, 6) * torch.arange(1, 7) * 5
    assert temporal_likeness(real, real) == pytest.approx(1)
    assert (
        temporal_likeness(real, real.flip(1))
        < 0.9
        < temporal_likeness(real, draw(400, 6, seed=2) * torch.arange(1, 7) * 5) + 0.1
    )


def test_stream_is_that_of_v_stream():
    reason = "needs v-stream, prdc and scikit-learn"
    pytest.importorskip("prdc", reason=reason)
    package = pytest.importorskip("stream", reason=reason)
    theirs = package.STREAM(num_frame=16, model=None, num_embed=12)
    clips = [(scale * draw(40, 16, 12, seed=seed)).cumsum(dim=1).float() for seed, scale in ((3, 1.0), (4, 1.5))]
    found = [spectrum_statistics(each) for each in clips]
    expected = [[torch.stack(part) for part in zip(*map(theirs._calculate_skewness, each), strict=True)] for each in clips]
    for ours, other in zip(found, expected, strict=True):
        for a, b in zip(ours, other, strict=True):
            torch.testing.assert_close(a.double(), b.double(), rtol=2e-4, atol=1e-5)
    (real_skewness, real_mean), (fake_skewness, fake_mean) = expected
    likeness = theirs.stream_T(fake_skewness.float(), real_skewness.float())
    assert temporal_likeness(real_skewness, fake_skewness) == pytest.approx(float(likeness), rel=1e-5)
    spatial = theirs.stream_S(real_mean, fake_mean)  # as its authors call it: the set whose balls tell fidelity first
    ours = precision_recall(real_mean, fake_mean, neighbours=5)
    assert (ours.precision, ours.recall) == pytest.approx((spatial["stream_F"], spatial["stream_D"]))


def test_points_that_move_alike_count_in_one_direction():
    """To the right by 3 pixels a frame: ⌈log₂ 4⌉ / 8 for each of 100 vectors of a cube, but the first frame's."""
    tracks = torch.zeros(1, 16, 100, 2)
    tracks[..., 0] = 3 * torch.arange(16)[:, None]
    found = motion_histograms(tracks).view(2, 4, 2, 2, 8)
    velocity, acceleration = found
    assert velocity[1:].sum(dim=(1, 2, 3)).tolist() == [4 * 100 * 2 / 8] * 3
    assert (velocity[1:].flatten(0, 2) > 0).sum(dim=1).tolist() == [1] * 12 and velocity[0].sum() == 3 * 100 * 2 / 8
    assert acceleration.sum() == 0
    with pytest.raises(ValueError, match="tracks are"):
        motion_histograms(tracks[:, :, :99])


def test_histograms_and_distance_are_those_of_fvmd():
    reason = "needs fvmd and loguru"
    histograms = pytest.importorskip("fvmd.extract_motion_features", reason=reason)
    distance = pytest.importorskip("fvmd.frechet_distance", reason=reason)
    sides = []
    for seed, pace in ((5, 2.0), (6, 4.0)):
        tracks = (pace * draw(12, 16, 400, 2, seed=seed)).cumsum(dim=1).float()
        moved = torch.diff(tracks, dim=1)
        velocity = torch.cat([torch.zeros(12, 1, 400, 2), moved], dim=1)
        acceleration = torch.cat([torch.zeros(12, 2, 400, 2), torch.diff(moved, dim=1)], dim=1)
        theirs = [histograms.calc_hist(each.numpy()).reshape(12, -1) for each in (velocity, acceleration)]
        sides.append(torch.cat([torch.from_numpy(each) for each in theirs], dim=1))
        torch.testing.assert_close(motion_histograms(tracks), sides[-1], rtol=1e-6, atol=1e-6)
    few = [each[:, :60] for each in sides]  # their root of a 1024×1024 matrix takes minutes
    theirs = distance.calculate_fd_given_vectors(*(each.numpy() for each in few))
    assert frechet_with_ridge(*few, FVMD_RIDGE) == pytest.approx(float(theirs), rel=1e-4)
    itself = distance.calculate_fd_given_vectors(few[0].numpy(), few[0].numpy())
    assert frechet_with_ridge(few[0], few[0], FVMD_RIDGE) == pytest.approx(float(itself), rel=1e-2)


def test_without_a_ridge_it_is_the_frechet_distance():
    assert frechet_with_ridge(REAL, FAKE, 0.0) == pytest.approx(frechet_distance(REAL, FAKE), rel=1e-8)
    assert frechet_with_ridge(REAL[:4], FAKE[:3], 0.0) == pytest.approx(frechet_distance(REAL[:4], FAKE[:3]), rel=1e-6)


@pytest.mark.parametrize("clips", [(3, 5), (6, 5), (6, 6), (60, 50)], ids=["few", "one fewer", "as many", "many"])
def test_the_ridge_is_that_of_all_dimensions_however_few_clips_there_are(clips):
    """Against the matrices written out, and between a set and itself."""
    real, fake = REAL[: clips[0]], FAKE[: clips[1]]
    a, b = (np.cov(each.numpy(), rowvar=False) for each in (real, fake))
    ridge = 0.01 * np.eye(12)
    root = np.trace(sqrtm((a + ridge) @ (b + ridge)).real)
    expected = (real.mean(0) - fake.mean(0)).square().sum().item() + np.trace(a) + np.trace(b) - 2 * root
    assert frechet_with_ridge(real, fake, 0.01) == pytest.approx(expected, rel=1e-7)
    assert frechet_with_ridge(real, real, 0.01) == pytest.approx(-2 * 0.01 * 12, rel=1e-9)
