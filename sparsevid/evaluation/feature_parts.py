"""Finished batches of a feature file that is being written, kept in a folder beside it so that a killed run goes on.

Dimensions: B clips of a batch, D features.
"""

import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sparsevid.atomic import renamed
from sparsevid.logging import get_logger

_NAME = re.compile(r"batch-([0-9]{6,})\.safetensors")
_KEY = "identity"

logger = get_logger(__name__)


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

    def load(self, shape: tuple[int, int], batches: int) -> dict[int, Tensor]:
        """Finished batches by number; files of another identity, and damaged ones, are removed with a warning.

        Args:
            shape: (B, D).
            batches: their number.
        """
        found: dict[int, Tensor] = {}
        foreign = 0
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else []:
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            identity, features = _read(path)
            fits = features is not None and features.shape == shape and features.dtype == torch.float32
            if identity == self.identity and fits and int(match[1]) < batches:
                found[int(match[1])] = features
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

    def save(self, batch: int, features: Tensor) -> None:
        """Keep a finished batch: float32 (B, D) on the CPU. Written under a temporary name, then renamed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"batch-{batch:06d}.safetensors"
        with renamed(path) as draft:
            draft.write_bytes(save({"features": features.contiguous()}, {_KEY: self.identity}))

    def remove(self) -> None:
        """Delete the folder: the feature file is there."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)


def _read(path: Path) -> tuple[str | None, Tensor | None]:
    """Identity and features of a part; None for what cannot be read."""
    try:
        with safe_open(path, "pt") as handle:
            return (handle.metadata() or {}).get(_KEY), handle.get_tensor("features")
    except SafetensorError as error:  # truncated, or no such tensor
        logger.warning("%s cannot be read: %s", path, error)
        return None, None
