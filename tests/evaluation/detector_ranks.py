"""Features of one set of clips by several detectors and ranks, as a process of its own: started by `test_detector_ranks.py`.

    python detector_ranks.py FOLDER

Writes NAME.safetensors for each detector of `detectors`. As one rank of several, rank 0 first writes `alone-NAME.safetensors`.
"""

import importlib.util
import os
import sys
from pathlib import Path

import torch
from evaluation.feature_ranks import DrawnClips, SmallNetwork
from torch import Tensor

from sparsevid.evaluation.detectors import Detector, build_detector
from sparsevid.evaluation.detectors.stream import StreamDetector
from sparsevid.evaluation.detectors.videomae import VideoMAESpec
from sparsevid.evaluation.detectors.vjepa import Encoder, Pooler, VJEPADetector
from sparsevid.evaluation.features import compute_features
from sparsevid.system.distributed import check_ranks, init_process_group_if_launched, shutdown

BATCH, CLIPS = 2, DrawnClips(7, shape=(3, 16, 32, 40))  # four batches, the last one partial


class Frames(SmallNetwork):
    """The small network on single frames."""

    def extract(self, clips: Tensor) -> Tensor:
        return super().extract(clips.expand(-1, -1, 3, -1, -1))


class SmallStream(StreamDetector):
    """STREAM's view by the small network in the place of Inception."""

    name, dim, parts = "small-stream", 32, {"skewness": slice(0, 16), "mean": slice(16, 32)}


class SmallVJEPA(VJEPADetector):
    """V-JEPA and its pooler of a few random weights."""

    name, dim = "small-v-jepa", 32

    @classmethod
    def drawn(cls) -> "SmallVJEPA":
        spec = VideoMAESpec(size=32, patch=16, frames=16, width=32, depth=2, heads=2, mlp_width=128)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return cls(Encoder(spec), Pooler(spec), spec.size, "0" * 64)


def detectors() -> list[Detector]:
    """One of each kind that can be built here."""
    found = [SmallStream(Frames()), SmallVJEPA.drawn()]
    return found + ([build_detector("motion-lucas-kanade")] if importlib.util.find_spec("cv2") else [])


def main(folder: str) -> None:
    if os.environ.get("RANK") == "0":
        for detector in detectors():
            compute_features(CLIPS, detector, batch_size=BATCH, out=Path(folder) / f"alone-{detector.name}.safetensors")
    init_process_group_if_launched()
    check_ranks()
    for detector in detectors():
        compute_features(CLIPS, detector, batch_size=BATCH, out=Path(folder) / f"{detector.name}.safetensors")
    shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
