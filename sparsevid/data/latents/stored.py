"""Latents that others keep on disk, one file for each image, read as they are in place of a cache.

`features` are fast-DiT's folders, `moments` PixArt's.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder
from sparsevid.data.tree.manifest import Manifest, Video
from sparsevid.data.tree.rules import TreeRules


class StoredLatents(ABC):
    """Such a folder.

    Attributes:
        folder: it, as the user named it.
        shape: (C,h,w) of a latent.
    """

    folder: Path
    shape: tuple[int, int, int]

    @abstractmethod
    def manifest(self, factor: int, classes: int, rules: TreeRules, root: Callable[[], Path]) -> Manifest:
        """The latents as videos of one frame.

        Args:
            factor: pixels of a latent's side.
            classes: number of classes, if more than the labels say.
            rules: of the card, for latents that have no labels of their own.
            root: gives the folder with the card's lists; it may raise FileNotFoundError.

        Raises:
            FileNotFoundError, ValueError: the folder is not as it should be.
        """

    @abstractmethod
    def moments_of(self, path: str, scale: float) -> Tensor:
        """Moments (2C,h,w), float32, of a latent.

        Args:
            path: of one of the manifest's videos.
            scale: the autoencoder's scaling factor.

        Raises:
            ValueError: the file holds something else.
        """

    def frames(self, scale: float) -> "StoredFrames":
        """The latents as a source of frames, `scale` as above."""
        return StoredFrames(self, scale)

    def check(self, autoencoder: Autoencoder, size: tuple[int, int], flip: bool) -> None:
        """Make sure that a run can use these latents.

        Raises:
            ValueError: another kind of autoencoder or size, or clips are to be mirrored.
        """
        wanted = (autoencoder.channels, size[0] // autoencoder.factor, size[1] // autoencoder.factor)
        if autoencoder.kind != "kl":
            raise ValueError(f"{self.folder} holds latents of an autoencoder kl, and the run's is {autoencoder.kind}")
        if self.shape != wanted:
            raise ValueError(
                f"{self.folder} holds latents {self.shape}, and the run's are {wanted}: {size[0]}×{size[1]} pixels"
            )
        if flip:
            raise ValueError(
                f"{self.folder} holds each latent once, mirrored or not, as it was made: no clip can be mirrored any more; "
                "accepted: data.flip=false"
            )

    def as_videos(
        self, paths: Iterable[tuple[str, int]], factor: int, labels: Iterable[int | None], splits: Iterable[str | None]
    ) -> tuple[Video, ...]:
        """Latents, each with path and bytes, as videos of one frame."""
        height, width = (factor * side for side in self.shape[1:])
        return tuple(
            Video(path, size, 1, 1.0, width, height, 0.0, label=label, split=split)
            for (path, size), label, split in zip(paths, labels, splits, strict=True)
        )


class StoredFrames:
    """Moments of stored latents: a source of frames of which each video has one.

    Args:
        stored: where from.
        scale: the autoencoder's scaling factor.
    """

    moments = True

    def __init__(self, stored: StoredLatents, scale: float) -> None:
        self.stored, self.scale = stored, scale

    def read(self, video: Video, indices: Sequence[int], mirrored: bool) -> Tensor:
        """Moments (T,2C,h,w), float32, of a latent's one frame.

        Raises:
            ValueError: mirrored ones, which there are none of, or a file in another layout.
            IndexError: no such frame.
        """
        if mirrored:
            raise ValueError(f"{self.stored.folder} holds no mirrored latents")
        if any(indices):
            raise IndexError(f"{video.path}: frame {max(indices)} asked for, there is one")
        moments = self.stored.moments_of(video.path, self.scale)
        channels, *sides = moments.shape
        if (shape := (channels // 2, *sides)) != self.stored.shape:
            raise ValueError(f"{video.path} is {shape}, others are {self.stored.shape}")
        return moments.expand(len(indices), *moments.shape).clone()


def load_array(path: Path, what: str, accepted: str, *ranks: int) -> np.ndarray:
    """Floats of a .npy file, of one of these numbers of axes; a first axis of length 1 beyond the most is left out.

    Raises:
        ValueError: the file holds something else than `what`.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no {what}: {error}") from error
    if values.ndim == max(ranks) + 1 and len(values) == 1:
        values = values[0]
    if values.ndim not in ranks or values.dtype.kind != "f":
        raise ValueError(f"{path} is {values.dtype} {values.shape}; accepted: floats {accepted}")
    return values.astype(np.float32)
