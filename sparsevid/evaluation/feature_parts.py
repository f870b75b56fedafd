"""Finished batches of a feature file that is being written, kept in a folder beside it so that a killed run goes on.

Dimensions: B clips of a batch, D features, S = 32 bytes of a SHA-256.
"""

import re
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sparsevid.system.atomic import renamed
from sparsevid.system.locks import FolderLock, LockedError
from sparsevid.system.logging import get_logger

_NAME = re.compile(r"batch-([0-9]{6,})\.safetensors")
_KEY = "identity"
DIGEST = 32  # bytes of a SHA-256

logger = get_logger(__name__)


class Batch(NamedTuple):
    """A finished batch, on the CPU.

    Attributes:
        features: float32 (B, D).
        digests: uint8 (B, S), the SHA-256 of each clip's pixels.
    """

    features: Tensor
    digests: Tensor

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether it is of B clips and D features."""
        sizes = self.features.shape == shape and self.digests.shape == (shape[0], DIGEST)
        return sizes and self.features.dtype == torch.float32 and self.digests.dtype == torch.uint8


class FeatureParts:
    """The folder `.NAME.parts` beside the feature file NAME: one file for a batch, with the identity of the whole.

    Ranks write files of different batches. A batch's features are a function of what the identity stands for, so it does not
    matter which rank of how many has made them.

    Args:
        out: the feature file to come.
        identity: SHA-256 over clips, detector and batch size.
    """

    def __init__(self, out: Path, identity: str) -> None:
        self.folder = out.with_name(f".{out.name}.parts")
        self.identity = identity

    def load(self, shape: tuple[int, int], batches: int) -> dict[int, Batch]:
        """Finished batches by number; files of another identity, and damaged ones, are removed with a warning.

        Args:
            shape: (B, D).
            batches: their number.
        """
        found: dict[int, Batch] = {}
        foreign = 0
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else []:
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            identity, batch = _read(path)
            if identity == self.identity and batch is not None and batch.fits(shape) and int(match[1]) < batches:
                found[int(match[1])] = batch
            else:
                foreign += 1
                path.unlink()
        if foreign:
            logger.warning(
                "%s: %d batches are damaged, or of other clips, detector or batch size: computed anew", self.folder, foreign
            )
        if found:
            logger.info("%s: %d of %d batches are there", self.folder, len(found), batches)
        return found

    def save(self, number: int, batch: Batch) -> None:
        """Keep a finished batch. Written under a temporary name, then renamed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"batch-{number:06d}.safetensors"
        with renamed(path) as draft:
            draft.write_bytes(save({name: each.contiguous() for name, each in batch._asdict().items()}, {_KEY: self.identity}))

    def remove(self, locked: bool = False) -> None:
        """Delete the folder: the feature file is there.

        Args:
            locked: this process has the right to write there; if not, what another one is writing stays.
        """
        if self.folder.is_dir():
            with suppress(LockedError), nullcontext() if locked else FolderLock(self.folder, beside=True):
                shutil.rmtree(self.folder)


def _read(path: Path) -> tuple[str | None, Batch | None]:
    """Identity and content of a part; None for what cannot be read."""
    try:
        with safe_open(path, "pt") as handle:
            return (handle.metadata() or {}).get(_KEY), Batch(*map(handle.get_tensor, Batch._fields))
    except SafetensorError as error:  # truncated, or no such tensor
        logger.warning("%s cannot be read: %s", path, error)
        return None, None
