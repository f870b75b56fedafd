"""Latents of images as fast-DiT keeps them: a folder of features and one of labels, read as they are.

<folder>/
    imagenet256_features/0.npy …    (1,C,h,w) or (C,h,w), float: a latent out of the posterior of a `kl` autoencoder, scaled
    imagenet256_labels/0.npy …      (1,) or (): its class

Any name may stand before `_features` and `_labels`. Latents are drawn and, half of them, mirrored once: one epoch is like
another. They are given as moments of a posterior without spread, so that all that reads a latent cache reads them too.

Dimensions: C channels, h×w of a latent.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsevid.data.latents.stored import StoredLatents, load_array
from sparsevid.data.tree.manifest import Manifest, cache_folder
from sparsevid.data.tree.rules import TreeRules
from sparsevid.system.atomic import renamed
from sparsevid.system.logging import get_logger, progress
from sparsevid.system.threads import thread_pool

FEATURES, LABELS = "_features", "_labels"
NO_SPREAD = -30.0  # log-variance, the least that diffusers' posteriors have
READERS = 8  # threads that read labels

logger = get_logger(__name__)


@dataclass(frozen=True)
class FeatureFolder(StoredLatents):
    """A folder of latents with one of labels beside it.

    Attributes:
        features: the folder of the latents.
        labels: the folder of the labels.
        shape: (C,h,w) of a latent.
    """

    features: Path
    labels: Path
    shape: tuple[int, int, int]

    @classmethod
    def find(cls, folder: str | Path) -> "FeatureFolder | None":
        """The latents in a folder; None where it holds no folder of features and labels.

        Raises:
            ValueError: several of them, features without labels, or files in another layout.
        """
        folder = Path(folder)
        found = sorted(path for path in folder.glob(f"*{FEATURES}") if path.is_dir()) if folder.is_dir() else []
        if not found:
            return None
        if len(found) > 1:
            raise ValueError(f"{folder} holds several folders of latents: {', '.join(path.name for path in found)}; give one")
        labels = found[0].with_name(f"{found[0].name.removesuffix(FEATURES)}{LABELS}")
        first = next(found[0].glob("*.npy"), None)
        if not labels.is_dir() or first is None:
            lacking = f"{labels.name} is missing" if first else f"{found[0].name} holds no .npy"
            raise ValueError(f"{folder}: {lacking}; accepted: NAME{FEATURES}/0.npy … with NAME{LABELS}/0.npy …")
        channels, height, width = _latent(first).shape
        return cls(found[0], labels, (channels, height, width))

    @property
    def folder(self) -> Path:  # type: ignore[override]  # nobody sets either
        """The folder of both."""
        return self.features.parent

    def manifest(self, factor: int, classes: int, rules: TreeRules, root: Callable[[], Path]) -> Manifest:
        """The latents in the order of their numbers. Labels are read once, and kept; the card's rules say nothing.

        Raises:
            ValueError: names that are no numbers, or other ones of labels than of latents.
        """
        sizes = {entry.name: entry.stat().st_size for entry in self.features.iterdir() if entry.suffix == ".npy"}
        strange = [name for name in sizes if not name.removesuffix(".npy").isdecimal()]
        if strange:
            raise ValueError(f"{self.features / strange[0]}: latents are named by numbers, such as 0.npy")
        names = sorted(sizes, key=lambda name: int(name.removesuffix(".npy")))
        labels = self._all_labels(names)
        paths = ((f"{self.features.name}/{name}", sizes[name]) for name in names)
        videos = self.as_videos(paths, factor, labels.tolist(), [None] * len(names))
        count = max(classes, 1 + int(labels.max()))
        return Manifest(self.features.parent, videos, tuple(map(str, range(count))), {}, {}, {})

    def moments_of(self, path: str, scale: float) -> Tensor:
        """See `StoredLatents`; the posterior is one without spread."""
        latent = _latent(self.folder / path)
        return torch.cat([latent / scale, torch.full_like(latent, NO_SPREAD)])

    def _all_labels(self, names: Sequence[str]) -> np.ndarray:
        """(N,) int64, out of as many files, or of what was kept of them."""
        state = [(path.resolve(), path.stat().st_mtime_ns) for path in (self.labels, self.features)]
        key = hashlib.sha256(f"{state} {len(names)}".encode()).hexdigest()
        kept = cache_folder() / f"labels-{key}.npy"
        if kept.is_file():
            return np.load(kept, allow_pickle=False)
        with thread_pool(READERS) as pool:
            found = progress(pool.map(self._label, names, chunksize=1024), total=len(names), desc="labels", delay=2)
            labels = np.fromiter(found, np.int64, len(names))
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with renamed(kept) as draft, draft.open("wb") as file:
                np.save(file, labels)
        except OSError as error:
            logger.warning("%s: labels cannot be kept for the next time: %s", kept, error)
        return labels

    def _label(self, name: str) -> int:
        try:
            values = np.load(self.labels / name, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.labels / name} is no label of {self.features / name}: {error}") from error
        if values.size != 1 or values.dtype.kind not in "iu" or values.item() < 0:
            raise ValueError(f"{self.labels / name} is {values.dtype} {values.shape}; accepted: one whole number from 0")
        return values.item()


def _latent(path: Path) -> Tensor:
    """A latent (C,h,w), float32.

    Raises:
        ValueError: the file holds something else.
    """
    return torch.from_numpy(load_array(path, "latent", "(1,C,h,w) or (C,h,w)", 3))
