"""STREAM's view of clips by a detector of frames."""

import pytest
import torch
from evaluation.feature_ranks import SmallNetwork

from sparsevid.evaluation.detectors.base import Detector
from sparsevid.evaluation.detectors.stream import StreamDetector, spectrum_statistics


class Frames(SmallNetwork):
    """The mean colour of a frame, and of its squares."""

    dim = 6

    def extract(self, clips: torch.Tensor) -> torch.Tensor:
        values = clips.float().mean(dim=(2, 3, 4))
        return torch.cat([values, values**2], dim=1)


def test_each_frame_goes_through_the_detector_of_images():
    clips = torch.randint(0, 256, (3, 3, 8, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    detector = StreamDetector(Frames())
    features = torch.stack([Frames()(clips[:, :, [t]]) for t in range(8)], dim=1)
    assert isinstance(detector, Detector) and detector.fingerprint == Frames.fingerprint
    torch.testing.assert_close(detector(clips), torch.cat(spectrum_statistics(features), dim=1).float())


def test_a_vector_is_skewness_and_mean_of_each_feature():
    outputs = StreamDetector.outputs()
    assert (outputs["skewness"], outputs["mean"], StreamDetector.dim) == (slice(0, 2048), slice(2048, 4096), 4096)
    with pytest.raises(ValueError, match="needs at least 4 frames"):
        StreamDetector(Frames())(torch.zeros(1, 3, 3, 5, 6, dtype=torch.uint8))
