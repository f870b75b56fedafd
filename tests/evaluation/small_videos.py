"""Detectors of a few weights and videos of a few pixels, for tests of whole scores."""

from pathlib import Path

import numpy as np
from evaluation.feature_ranks import SmallNetwork

NAME = "sparsevid/fd-transnetv2-v2"
COUNT = 24


class Logits(SmallNetwork):
    """The same network, taken for a classifier."""

    name, kind = "logits", "logits"


class Optional(SmallNetwork):
    """The same network with an option that changes nothing."""

    name = "optional"
    OPTIONS = {"eps": 1e-5}  # noqa: RUF012 (declared as ClassVar in the base class)
    ACCEPTED = {"eps": (1e-5, 1e-3)}  # noqa: RUF012

    @classmethod
    def from_weights(cls, path, trust, **options):
        detector = cls()
        detector.settings = cls.complete_options(options)
        return detector


def write_clips(folder: Path, count: int, seed: int, shade: int = 0, frames: int = 9) -> Path:
    """Arrays of random pixels, brighter by `shade`."""
    folder.mkdir(parents=True)
    draws = np.random.default_rng(seed)
    for i in range(count):
        base = draws.integers(0, 120, (1, 1, 1, 3)) + shade
        np.save(folder / f"{i:03d}.npy", (base + draws.integers(0, 60, (frames, 14, 16, 3))).astype(np.uint8))
    return folder
