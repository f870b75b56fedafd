"""I3D as the TorchScript file that StyleGAN-V published: the detector that a published FVD means.

Dimensions: B clips, T frames, H×W pixels.
"""

from pathlib import Path

import torch
from torch import Tensor

from sparsevid.evaluation.detectors.base import Detector, Setting
from sparsevid.evaluation.detectors.weights import WeightFile, load_script, obtain

WEIGHTS = WeightFile(
    file="i3d_torchscript.pt",
    url=(
        "https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/1c2d61711c52571ad617a1063e6fa691b212e184/i3d_torchscript.pt"
    ),
    sha256=("bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",),
    hint=(
        "It is i3d_torchscript.pt of StyleGAN-V (github.com/universome/fvd-comparison links to "
        "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1), 51,235,320 bytes."
    ),
    code=True,
)
# StyleGAN-V and Latte call the script with these: x/255·2-1, 224×224, logits before softmax.
SWITCHES = {"rescale": True, "resize": True, "return_features": True}


class I3DTorchScriptDetector(Detector):
    """The logits of a TorchScript file with the public call `forward(x, rescale, resize, return_features)`."""

    name = "i3d-torchscript"
    metric = "FVD"
    preprocessing = "in the script: x/255*2-1; stretched to 224x224, bilinear"
    dim = 400
    min_frames = 9

    def __init__(self, script: torch.jit.ScriptModule, fingerprint: str) -> None:
        """Wrap a script.

        Args:
            script: the loaded file.
            fingerprint: SHA-256 of the file.

        Raises:
            ValueError: its call is another.
        """
        super().__init__()
        arguments = [argument.name for argument in script.forward.schema.arguments]
        another_kind = f"the TorchScript file with SHA-256 {fingerprint} is a detector of another kind"
        if arguments[2:] != list(SWITCHES):
            raise ValueError(
                f"{another_kind}: its call is forward({', '.join(arguments)}); "
                f"accepted: forward(self, x, {', '.join(SWITCHES)})"
            )
        if not list(script.parameters()):
            raise ValueError(f"{another_kind}: it has no weights")
        for weight in script.parameters():
            weight.requires_grad_(False)
        self.script = script
        self.fingerprint = fingerprint
        self.eval()

    @classmethod
    def from_weights(cls, path: Path | None = None, trust: bool = False, **options: Setting) -> "I3DTorchScriptDetector":
        """Build the detector; see `Detector`. A file with an unknown checksum is a program and needs `trust`."""
        cls.complete_options(options)
        path, fingerprint = obtain(WEIGHTS, path, trust=trust)
        return cls(load_script(path, fingerprint), fingerprint)

    def extract(self, clips: Tensor) -> Tensor:
        """Logits (B, 400) of clips (B, 3, T, H, W), which go into the script as uint8, as its public callers do it.

        Raises:
            ValueError: the script gives something else.
        """
        # As it was saved: the optimiser specialises on the first shapes it sees, so that features would depend on history.
        with torch.jit.optimized_execution(False):
            features = self.script(clips, **SWITCHES)
        if not isinstance(features, Tensor) or features.shape != (len(clips), self.dim):
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"the TorchScript file with SHA-256 {self.fingerprint} is a detector of another kind: it gives {found} for "
                f"{len(clips)} clips; accepted: ({len(clips)}, {self.dim})"
            )
        return features.float()
