"""I3D (Carreira and Zisserman, arXiv 1705.07750), trained on Kinetics-400, from a state dict.

Names of modules, and so of weights, are those of the PyTorch port that VideoGPT and content-debiased FVD use.

Dimensions: B clips, C channels, T frames, H×W pixels, K = 400 classes.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sparsevid.evaluation.detectors.base import NetworkDetector, Setting
from sparsevid.evaluation.detectors.weights import WeightFile, obtain, read_state_dict
from sparsevid.models.convert.conversion import check_weights

SIDE = 224  # pixels
CLASSES = 400
WEIGHTS = WeightFile(
    file="i3d_pretrained_400.pt",
    url=(
        "https://huggingface.co/spaces/LanguageBind/Open-Sora-Plan-v1.0.0/resolve/"
        "810fa8c4bdb3a4c8eec9bd57375c29bde6fb46de/opensora/eval/fvd/videogpt/i3d_pretrained_400.pt"
    ),
    # As the Git LFS pointer in a public copy of that repository states it.
    sha256=("55095f049e706479d48e221adcdb145b2b9dc930ba28b081ed72367ffaa32343",),
    hint=(
        "It is i3d_pretrained_400.pt of VideoGPT in the copy that Open-Sora-Plan v1.0.0 keeps; the one of TATS "
        "(github.com/songweige/TATS, tats/fvd) can be given by its path."
    ),
)

Triple = tuple[int, int, int]  # along T, H, W
# Widths of the branches b0, b1a, b1b, b2a, b2b, b3b.
BLOCKS: dict[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# Kernel and stride of the max pool that follows a layer.
POOLS: dict[str, tuple[Triple, Triple]] = {
    "Conv3d_1a_7x7": ((1, 3, 3), (1, 2, 2)),
    "Conv3d_2c_3x3": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3c": ((3, 3, 3), (2, 2, 2)),
    "Mixed_4f": ((2, 2, 2), (2, 2, 2)),
}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis: as little as gives ⌈size / stride⌉ outputs, the odd one at the end.

    Returns:
        Padding in front and behind.
    """
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Pad the last three axes (T, H, W) of (B, C, T, H, W) with zeros as SAME asks for."""
    axes = zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True)  # F.pad begins with the last
    return F.pad(x, [side for size, k, s in axes for side in same_padding(size, k, s)])


def max_pool_same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Max pool with SAME padding by zeros, which is the reference's; its inputs are not negative."""
    return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)


class Unit(nn.Module):
    """Convolution with SAME padding, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, eps: float, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(pad_same(x, self.kernel, self.stride))))


class InceptionBlock(nn.Module):
    """Four branches side by side: 1³; 1³ and 3³; 1³ and 3³; max pool and 1³."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int], eps: float) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = Unit(inputs, b0, 1, eps)
        self.b1a = Unit(inputs, b1a, 1, eps)
        self.b1b = Unit(b1a, b1b, 3, eps)
        self.b2a = Unit(inputs, b2a, 1, eps)
        self.b2b = Unit(b2a, b2b, 3, eps)
        self.b3b = Unit(inputs, b3b, 1, eps)

    def forward(self, x: Tensor) -> Tensor:
        pooled = max_pool_same(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class Logits(nn.Module):
    """The classifier: a 1³ convolution with bias."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(x)


class I3D(nn.Module):
    """The network: clips (B, 3, T, 224, 224) of values in [-1, 1], T ≥ 9, to logits (B, 400), averaged over time.

    Args:
        eps: of the batch norms.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.logits = Logits(1024)  # first, as in the published state dict
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, eps, stride=2)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1, eps)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3, eps)
        width = 192
        for name, widths in BLOCKS.items():
            self.add_module(name, InceptionBlock(width, widths, eps))
            b0, _, b1b, _, b2b, b3b = widths
            width = b0 + b1b + b2b + b3b

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.named_children():
            if layer is not self.logits:
                x = layer(x)
                if name in POOLS:
                    x = max_pool_same(x, *POOLS[name])
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)  # (B, 1024, ⌈T/8⌉ - 1, 1, 1)
        return rearrange(self.logits(x), "b k t 1 1 -> b k t").mean(dim=2)


def load_network(state: Mapping[str, Tensor], eps: float) -> I3D:
    """Build the network from its 344 tensors, or 287 without `num_batches_tracked`, which counts in training only.

    Args:
        state: tensors by name.
        eps: of the batch norms.

    Raises:
        ValueError: names are missing or unknown, or a tensor has another shape; the message names the first of them.
    """
    network = I3D(eps)
    own = network.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    weights = {name: tensor for name, tensor in state.items() if name not in counters}
    check_weights(weights, {name: tuple(tensor.shape) for name, tensor in own.items() if name not in counters})
    network.load_state_dict({**own, **weights})
    return network


def preprocess_cd_fvd(clips: Tensor) -> Tensor:
    """uint8 (B, 3, T, H, W) to float32 (B, 3, T, 224, 224) in [-1, 1]: stretched, bilinear, without antialiasing."""
    frames = rearrange(clips, "b c t h w -> (b t) c h w").float()
    frames = F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    frames = 2.0 * frames / 255.0 - 1
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(clips)).contiguous()


def preprocess_videogpt(clips: Tensor) -> Tensor:
    """uint8 (B, 3, T, H, W) to float32 (B, 3, T, 224, 224) in [-1, 1]: the short side resized to 224, bilinear, without
    antialiasing, and the centre cropped."""
    frames = rearrange(clips, "b c t h w -> (b t) c h w").float() / 255.0
    height, width = frames.shape[-2:]
    # Rounding in this product can give 225 where both sides are equal. The reference has it, and so its features.
    scale = SIDE / min(height, width)
    size = (SIDE, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), SIDE)
    frames = F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    frames = (frames[..., top : top + SIDE, left : left + SIDE] - 0.5) * 2
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(clips)).contiguous()


PREPROCESSINGS = {
    "cd-fvd": (preprocess_cd_fvd, "stretched to 224x224, bilinear, not antialiased; 2x/255-1"),
    "videogpt": (preprocess_videogpt, "short side to 224, bilinear, not antialiased; centre crop 224x224; (x/255-0.5)*2"),
}


class I3DDetector(NetworkDetector):
    """I3D's logits, from a state dict.

    Its distance is the FVD of content-debiased FVD (`eps=1e-5`, `preprocessing=cd-fvd`) or VideoGPT (`preprocessing=videogpt`).
    The original in TensorFlow and the port it comes from have `eps=1e-3`.
    """

    name = "i3d"
    metric = "FVD (I3D, state dict)"
    preprocessing = PREPROCESSINGS["cd-fvd"][1]
    dim = CLASSES
    min_frames = 9
    OPTIONS: ClassVar[Mapping[str, Setting]] = {"eps": 1e-5, "preprocessing": "cd-fvd"}
    ACCEPTED: ClassVar[Mapping[str, tuple[Setting, ...]]] = {"eps": (1e-5, 1e-3), "preprocessing": tuple(PREPROCESSINGS)}

    def __init__(self, network: I3D, fingerprint: str, settings: dict[str, Setting]) -> None:
        """Wrap a network.

        Args:
            network: with its weights.
            fingerprint: SHA-256 of the file they come from.
            settings: all of `OPTIONS`.
        """
        super().__init__(network, fingerprint)
        self.settings = settings
        self.preprocess, self.preprocessing = PREPROCESSINGS[str(settings["preprocessing"])]

    @classmethod
    def from_weights(cls, path: Path | None = None, trust: bool = False, **options: Setting) -> "I3DDetector":
        """Build the detector from a state dict of 344 keys, or 287 without `num_batches_tracked`; see `Detector`."""
        settings = cls.complete_options(options)
        path, fingerprint = obtain(WEIGHTS, path, trust=trust)
        try:
            network = load_network(read_state_dict(path), float(settings["eps"]))
        except ValueError as error:
            raise ValueError(f"detector {cls.name!r}: {path} holds no weights of I3D: {error}") from error
        return cls(network, fingerprint, settings)

    def extract(self, clips: Tensor) -> Tensor:
        """Logits (B, 400) of clips (B, 3, T, H, W)."""
        return self.network(self.preprocess(clips))
