"""Features of clips with known values by one or several ranks, as a process of its own: started by `test_features.py`.

    python feature_ranks.py OUT COUNT BATCH [DIE_AFTER]

With DIE_AFTER a process kills itself, as SIGKILL does, when it has finished so many batches. As one rank of several, rank 0
first writes `alone-OUT` by itself.
"""

import hashlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsevid.evaluation.detectors import Detector
from sparsevid.evaluation.feature_parts import Batch, FeatureParts
from sparsevid.evaluation.features import compute_features
from sparsevid.system.distributed import check_ranks, init_process_group_if_launched, shutdown


class DrawnClips:
    """Clips i of random pixels, drawn from i alone."""

    def __init__(self, count: int, seed: int = 0, shape: tuple[int, ...] = (3, 4, 12, 10)) -> None:
        self.count, self.seed, self.shape = count, seed, shape
        self.ids = tuple(f"clip {i}.mp4@0" for i in range(count))
        self.origin = {"root": "drawn"}
        self.fingerprint = hashlib.sha256(f"{count} {seed} {shape}".encode()).hexdigest()

    def __len__(self) -> int:
        return self.count

    def read(self, first: int, last: int) -> Iterator[tuple[str, Tensor]]:
        for i in range(first, last):
            generator = torch.Generator().manual_seed(1000 * self.seed + i)
            yield self.ids[i], torch.randint(0, 256, self.shape, dtype=torch.uint8, generator=generator)


class SmallNetwork(Detector):
    """A detector with convolutions, whose sums depend on how they are grouped."""

    name, metric, preprocessing, dim, min_frames, fingerprint = "small", "FD-Small", "none", 16, 1, "0" * 64

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv3d(3, 24, 3, padding=1), nn.GELU(), nn.Conv3d(24, 16, 3, stride=2))

    @classmethod
    def from_weights(cls, path: Path | None, trust: bool, **options: str | float) -> "SmallNetwork":
        cls.complete_options(options)
        return cls()

    def extract(self, clips: Tensor) -> Tensor:
        return self.layers(clips.float() / 255).mean(dim=(2, 3, 4))


class Mortal(FeatureParts):
    """Ends its process, as a kill does, after some batches."""

    left = 0

    def save(self, number: int, batch: Batch) -> None:
        super().save(number, batch)
        Mortal.left -= 1
        if Mortal.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main(out: str, count: str, batch: str, die_after: str = "") -> None:
    if die_after:
        from sparsevid.evaluation import features

        Mortal.left, features.FeatureParts = int(die_after), Mortal
    clips, path = DrawnClips(int(count)), Path(out)
    if os.environ.get("RANK") == "0":
        compute_features(clips, SmallNetwork(), batch_size=int(batch), out=path.with_name(f"alone-{path.name}"))
    init_process_group_if_launched()
    check_ranks()
    compute_features(clips, SmallNetwork(), batch_size=int(batch), out=path)
    shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
