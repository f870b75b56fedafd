"""Inception-2015 as a detector of frames: what FID, KID and the Inception score are defined by.

The network is torch-fidelity's, because it reproduces the original TensorFlow graph where others don't: its resizing (bilinear
as in TensorFlow 1, without half-pixel centres or antialiasing), its pooling and its 1008 classes. The library by itself
would download the weight file and unpickle it; here it is checked and read as data.

Dimensions: B images, C = 3 channels, H×W pixels.
"""

import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from sparsevid.evaluation.detectors.base import NetworkDetector, Setting
from sparsevid.evaluation.detectors.weights import WeightFile, obtain, read_state_dict

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

WEIGHTS = WeightFile(
    file="weights-inception-2015-12-05-6726825d.pth",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    sha256=("6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",),
    hint="It is torch-fidelity's conversion of TensorFlow's inception-2015-12-05, published with its release v0.2.0.",
)


class InceptionDetector(NetworkDetector):
    """The 2048 numbers after Inception's last average pooling, for FID and KID.

    A vector belongs to one image, so a clip must have one frame: which frames of a video are images is the protocol's choice.
    """

    name = "inception-2015"
    metric = "FID"
    preprocessing = "resized to 299x299, bilinear as in TensorFlow 1; (x-128)/128"
    dim = 2048
    min_frames = 1
    layer = "2048"  # torch-fidelity's name of the output; of several, separated by a space

    @classmethod
    def from_weights(cls, path: Path | None = None, trust: bool = False, **options: Setting) -> "InceptionDetector":
        """Build the detector; see `Detector`.

        Raises:
            ModuleNotFoundError: torch-fidelity is not installed.
        """
        cls.complete_options(options)
        if importlib.util.find_spec("torch_fidelity") is None:
            raise ModuleNotFoundError(f'detector {cls.name!r} needs the package torch-fidelity: pip install "sparsevid[fid]"')
        path, fingerprint = obtain(WEIGHTS, path, trust=trust)
        state = read_state_dict(path)
        try:
            network = build_extractor(state, *cls.layer.split())
        except RuntimeError as error:
            raise ValueError(f"{path} holds no weights of Inception-2015: {_abbreviate(error)}") from error
        return cls(network, fingerprint)

    def extract(self, clips: Tensor) -> Tensor:
        """Vectors (B, dim) of clips (B, 3, 1, H, W).

        Raises:
            ValueError: the clips have more than one frame.
        """
        if clips.shape[2] != 1:
            raise ValueError(
                f"detector {self.name!r} gives one vector an image, got clips of {clips.shape[2]} frames; "
                "take a protocol with frames = 1, in which each image is a clip of its own"
            )
        return torch.cat(self.network(rearrange(clips, "b c 1 h w -> b c h w")), dim=1)


class InceptionLogitsDetector(InceptionDetector):
    """The 1008 logits without their bias, for the Inception score, whose first implementation left it out."""

    name = "inception-2015-logits"
    metric = "IS"
    kind = "logits"
    dim = 1008
    layer = "logits_unbiased"


class InceptionADMDetector(InceptionDetector):
    """All that ADM's evaluator takes of an image, out of one pass: pool features, spatial features, logits without bias.

    Spatial features, of sFID (Nash et al. 2021), are the first 7 channels of the 1×1 branch of the fourth block at 17×17
    (`mixed_6/conv:0` in the graph of 2015), a row of channels for each position, as the reference files have them.
    """

    name = "inception-2015-adm"
    dim = 2048 + 7 * 17 * 17 + 1008
    parts: ClassVar[Mapping[str, slice]] = {
        "features": slice(0, 2048), "spatial": slice(2048, 4071), "logits": slice(4071, 5079)
    }  # fmt: skip
    layer = "2048 logits_unbiased"

    def extract(self, clips: Tensor) -> Tensor:
        found: list[Tensor] = []
        branch = self.network.get_submodule("Mixed_6d.branch1x1")
        hook = branch.register_forward_hook(lambda module, inputs, output: found.append(output[:, :7]))
        try:
            vectors = super().extract(clips)  # (B, 2048 + 1008)
        finally:
            hook.remove()
        spatial = rearrange(found[0], "b c h w -> b (h w c)")
        return torch.cat([vectors[:, :2048], spatial, vectors[:, 2048:]], dim=1)


def build_extractor(state: Mapping[str, Tensor], *layers: str) -> "FeatureExtractorInceptionV3":
    """torch-fidelity's network with the given weights.

    Args:
        state: its state dict.
        layers: the outputs that it gives, by torch-fidelity's names.

    Raises:
        RuntimeError: the state dict has other keys or shapes.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The constructor unpickles what it is given; what was just written here is safe to unpickle.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    buffer.seek(0)
    with torch.random.fork_rng(devices=[]):  # it draws weights before it loads these
        return FeatureExtractorInceptionV3("inception-2015", list(layers), feature_extractor_weights_path=buffer)


def _abbreviate(error: RuntimeError) -> str:
    """What torch says of keys that don't fit, without the list of hundreds of them."""
    lines = [line.strip() for line in str(error).splitlines()]
    return "; ".join(line if len(line) < 200 else f"{line[:200]} …" for line in lines[:3])
