"""A process of its own, for its peak counts: archives of small images, written, read and scored.

    python archive_memory.py FOLDER COUNT SIDE…

For each SIDE of images, in this order, a line of JSON: bytes above what was there before, bytes of the archive, and the record
of its score by a protocol that intends 50,000 images.
"""

import gc
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from evaluation.feature_ranks import SmallNetwork
from torch import Tensor, nn

from sparsevid.evaluation.clips.archives import write_reference
from sparsevid.evaluation.detectors import DETECTORS
from sparsevid.evaluation.evaluate import measure
from sparsevid.evaluation.metrics.distances import Moments
from sparsevid.evaluation.protocols import load_protocol, with_fields
from sparsevid.system.resident import resident_bytes
from sparsevid.videos.write import write_image_archive

# Blocks from 64 KiB on go back to the system when they are freed: what is resident is then what is held.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
PARTS = {"features": slice(0, 6), "spatial": slice(6, 10)}


class Pooled(SmallNetwork):
    """Pool and spatial features of images of any size, out of a few weights."""

    name, metric, dim, parts = "pooled", "FID", 10, PARTS

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.settings = {}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(3 * 4 * 4, 10), nn.GELU(), nn.Linear(10, 10))

    def extract(self, clips: Tensor) -> Tensor:
        return self.layers(F.adaptive_avg_pool2d(clips.squeeze(2).float() / 255, 4).flatten(1))


def images(count: int, side: int) -> Iterator[Tensor]:
    """Drawn images uint8 (3,1,H,W), one at a time."""
    draws = np.random.default_rng(side)
    for _ in range(count):
        yield torch.from_numpy(draws.integers(0, 256, (3, 1, side, side), dtype=np.uint8))


def score(folder: Path, count: int, side: int) -> tuple[int, dict]:
    """Bytes of the archive, and the record of its score against statistics of 50 images."""
    archive, reference = folder / f"{count}-{side}.npz", folder / f"reference-{side}.npz"
    write_image_archive(archive, images(count, side), count)
    seen = Pooled()(torch.stack([*images(50, side)]))
    write_reference(reference, images(50, side), 50, {name: Moments.of(seen[:, each]) for name, each in PARTS.items()})
    rules = with_fields(load_protocol("adm/fid-50k"), ["detector=pooled", "metrics=[frechet,spatial_frechet]"])
    record = measure(reference, archive, protocol=rules, batch_size=16).record
    size = archive.stat().st_size
    return size, record.as_dict()


def check(archive: Path, count: int, side: int) -> None:
    """The archive is what ADM's evaluator takes: one array, of the images in their order."""
    with np.load(archive, allow_pickle=False) as file:
        found = file["arr_0"]
    assert found.shape == (count, side, side, 3)
    assert all(
        np.array_equal(each, image[:, 0].permute(1, 2, 0)) for each, image in zip(found, images(count, side), strict=True)
    )


def main(folder: str, count: str, *sides: str) -> None:
    DETECTORS[Pooled.name] = (__name__, "Pooled")
    score(Path(folder), 64, 8)  # what all share is there from now on
    for side in sides:
        gc.collect()
        before = resident_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        size, record = score(Path(folder), int(count), int(side))
        print(json.dumps([resident_bytes("VmHWM") - before, size, record]), flush=True)
        archive = Path(folder) / f"{count}-{side}.npz"
        check(archive, int(count), int(side))
        archive.unlink()


if __name__ == "__main__":
    assert os.environ.items() >= GIVES_BACK.items()
    torch.set_num_threads(1)
    main(*sys.argv[1:])
