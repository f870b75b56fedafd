"""I3D as the TorchScript file that StyleGAN-V published: the detector that a published FVD means.

Dimensions: B clips, T frames, H×W pixels.
"""

from typing import Any

import torch
from torch import Tensor

from sparsevid.evaluation.detectors.script import ScriptDetector
from sparsevid.evaluation.detectors.weights import WeightFile

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


class I3DTorchScriptDetector(ScriptDetector):
    """The logits of a TorchScript file with the public call `forward(x, rescale, resize, return_features)`."""

    name = "i3d-torchscript"
    metric = "FVD"
    preprocessing = "in the script: x/255*2-1; stretched to 224x224, bilinear"
    dim = 400
    min_frames = 9
    WEIGHTS = WEIGHTS

    def __init__(self, script: torch.jit.ScriptModule, fingerprint: str) -> None:
        """Wrap a script; see `ScriptDetector`.

        Raises:
            ValueError: its call is another, or it has no weights.
        """
        super().__init__(script, fingerprint)
        forward: Any = script.forward  # of a script, which alone has a schema
        arguments = [argument.name for argument in forward.schema.arguments]
        if arguments[2:] != list(SWITCHES):
            raise self.unlike(f"its call is forward({', '.join(arguments)}); accepted: forward(self, x, {', '.join(SWITCHES)})")

    def extract(self, clips: Tensor) -> Tensor:
        """Logits (B, 400) of clips (B, 3, T, H, W), which go into the script as uint8, as its public callers do it.

        Raises:
            ValueError: the script gives something else.
        """
        return self.run(clips, **SWITCHES)
