"""Latents of images as PixArt keeps them: a folder of posteriors, one file for each image, read as they are.

<folder>/NAME.npy    (2,C,h,w), float: mean and standard deviation of the posterior of a `kl` autoencoder, not scaled

The images need not be there. Which of them are in a split, the card's lists say, found by their names.

Dimensions: C channels, h×w of a latent.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsevid.data.latents.stored import StoredLatents, load_array
from sparsevid.data.tree.manifest import Manifest
from sparsevid.data.tree.rules import TreeRules, apply_rules
from sparsevid.videos.kinds import natural_key

NO_DEVIATION = 1e-12  # below which a deviation counts as this: its logarithm is asked for


@dataclass(frozen=True)
class MomentFolder(StoredLatents):
    """A folder of posteriors.

    Attributes:
        folder: it.
        shape: (C,h,w) of a latent.
    """

    folder: Path
    shape: tuple[int, int, int]

    @classmethod
    def find(cls, folder: str | Path) -> "MomentFolder | None":
        """The posteriors in a folder; None where it holds no NAME.npy.

        Raises:
            ValueError: the first is no posterior.
        """
        folder = Path(folder)
        first = next(folder.glob("*.npy"), None) if folder.is_dir() else None
        if first is None:
            return None
        _, channels, height, width = _posterior(first).shape
        return cls(folder, (channels, height, width))

    def manifest(self, factor: int, classes: int, rules: TreeRules, root: Callable[[], Path]) -> Manifest:
        """See `StoredLatents`."""
        sizes = {entry.name: entry.stat().st_size for entry in self.folder.iterdir() if entry.suffix == ".npy"}
        paths = sorted(sizes, key=natural_key)
        sorting = apply_rules(root(), paths, rules)
        usable = [path for path in paths if path in sorting.labels]
        splits = [sorting.splits.get(path) for path in usable]
        if not usable:
            raise ValueError(f"{self.folder}: none of {len(paths)} latents has a class (label_rule={rules.label_rule})")
        videos = self.as_videos(((path, sizes[path]) for path in usable), factor, map(sorting.labels.get, usable), splits)
        counts = Counter(split for split in splits if split is not None)
        return Manifest(root(), videos, sorting.classes, {}, dict(sorting.notes), dict(sorted(counts.items())))

    def moments_of(self, path: str, scale: float) -> Tensor:
        """See `StoredLatents`; moments are kept as they are."""
        mean, deviation = _posterior(self.folder / path)
        return torch.cat([mean, 2 * deviation.clamp_min(NO_DEVIATION).log()])


def _posterior(path: Path) -> Tensor:
    """Mean and standard deviation (2,C,h,w), float32.

    Raises:
        ValueError: the file holds something else.
    """
    values = load_array(path, "posterior", "(2,C,h,w), mean and standard deviation", 4)
    if len(values) != 2 or not np.isfinite(values).all() or values[1].min() < 0:
        raise ValueError(
            f"{path} is {values.shape}; accepted: finite floats (2,C,h,w), of which the second, deviations, are not negative"
        )
    return torch.from_numpy(values)
