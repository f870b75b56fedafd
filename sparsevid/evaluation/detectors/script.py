"""What detectors that are published as TorchScript share: they are programs, which go through clips by rules of their own."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sparsevid.evaluation.detectors.base import Detector, Setting
from sparsevid.evaluation.detectors.weights import WeightFile, load_script, obtain

DEVICE_FAULTS = ("out of memory", "CUDA error")


class ScriptDetector(Detector):
    """A frozen TorchScript file; a class of one kind of file says in `extract` how it is called.

    Attributes:
        WEIGHTS: which file.
    """

    WEIGHTS: ClassVar[WeightFile]

    def __init__(self, script: torch.jit.ScriptModule, fingerprint: str) -> None:
        """Wrap a script.

        Args:
            script: the loaded file.
            fingerprint: SHA-256 of the file.

        Raises:
            ValueError: it has no weights, so that it is no network.
        """
        super().__init__()
        self.fingerprint = fingerprint
        if not list(script.parameters()):
            raise self.unlike("it has no weights")
        for weight in script.parameters():  # a script has no requires_grad_ of its own
            weight.requires_grad_(False)
        self.script = script
        self.eval()

    @classmethod
    def from_weights(cls, path: Path | None = None, trust: bool = False, **options: Setting) -> "ScriptDetector":
        """Build the detector; see `Detector`. A file with an unknown checksum is a program and needs `trust`."""
        cls.complete_options(options)
        path, fingerprint = obtain(cls.WEIGHTS, path, trust=trust)
        return cls(load_script(path, fingerprint), fingerprint)

    def run(self, clips: Tensor, **switches: bool) -> Tensor:
        """What the script gives for uint8 clips (B, 3, T, H, W): (B, dim).

        Raises:
            ValueError: it does not take them, or gives something else.
        """
        accepted = f"accepted: ({len(clips)}, {self.dim})"
        try:
            # As it was saved: the optimiser specialises on the first shapes it sees, so that features would depend on history.
            with torch.jit.optimized_execution(False):
                found = self.script(clips, **switches)
        except RuntimeError as error:
            if any(text in str(error) for text in DEVICE_FAULTS):  # TorchScript gives every error the same class
                raise
            raise self.unlike(f"it does not take uint8 clips {tuple(clips.shape)}: {error}; {accepted}") from error
        if not isinstance(found, Tensor) or found.shape != (len(clips), self.dim):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise self.unlike(f"it gives {what} for {len(clips)} clips; {accepted}")
        return found.float()

    def unlike(self, what: str) -> ValueError:
        """The error of a file that is another kind of program."""
        return ValueError(f"the TorchScript file with SHA-256 {self.fingerprint} is a detector of another kind: {what}")
