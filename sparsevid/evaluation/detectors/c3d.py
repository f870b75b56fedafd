"""C3D (Tran et al., arXiv 1412.0767) fine-tuned on UCF101 as a detector: its logits give the Inception score of videos.

The weights are published in two forms. TGANv2's (pfnet-research/tgan2) is data: the arrays of the network that
`tgan2/models/c3d/c3d_ucf101.py` describes, and the mean clip that is taken off. StyleGAN-V's is a program, a TorchScript
translation of the same, which resizes and takes off the mean by itself and gives probabilities.

Dimensions: B clips, C = 3 channels, T = 16 frames, H×W pixels, 101 classes.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sparsevid.evaluation.detectors.base import NetworkDetector, Setting
from sparsevid.evaluation.detectors.script import ScriptDetector
from sparsevid.evaluation.detectors.weights import WeightFile, obtain
from sparsevid.models.convert.conversion import check_weights
from sparsevid.system.logging import get_logger

logger = get_logger(__name__)

WEIGHTS = WeightFile(
    file="conv3d_deepnetA_ucf.npz",
    url="https://github.com/rezoo/tgan2/releases/download/v1.0/conv3d_deepnetA_ucf.npz",
    sha256=(),
    hint="It is C3D fine-tuned on UCF101 as arrays of Chainer, linked from the README of github.com/pfnet-research/tgan2.",
)
MEAN = WeightFile(
    file="mean2.npz",
    url="https://github.com/rezoo/tgan2/releases/download/v1.0/mean2.npz",
    sha256=(),
    hint="It is the mean clip of conv3d_deepnetA_ucf.npz, linked from the README of github.com/pfnet-research/tgan2.",
)
SCRIPT = WeightFile(
    file="c3d_ucf101.pt",
    url="https://www.dropbox.com/s/jxpu7avzdc9n97q/c3d_ucf101.pt?dl=1",
    sha256=(),
    hint="It is c3d_ucf101.pt, which StyleGAN-V's video_inception_score.py (github.com/universome/stylegan-v) downloads.",
    code=True,
)

FRAMES = 16
SIZE = 112  # pixels of a side, in the network
MEAN_SHAPE = (3, FRAMES, 128, 171)  # blue, green, red
MARGIN = 8  # where TGANv2 cuts the mean clip to 112×112, in rows and in columns
CLASSES = 101
# convolution -> its channels, in units of the first one's
CONVOLUTIONS = {"1a": 1, "2a": 2, "3a": 4, "3b": 4, "4a": 8, "4b": 8, "5a": 8, "5b": 8}
POOLED = ("1a", "2a", "3b", "4b", "5b")  # convolutions that a max pool follows


class C3D(nn.Module):
    """Eight 3³ convolutions with five max pools, then three fully connected layers; in evaluation, so without dropout.

    Args:
        mean: float32 (3, 16, 112, 112), BGR, taken off a clip.
        width: channels of the first convolution.
        hidden: channels of the fully connected layers.
    """

    mean: Tensor

    def __init__(self, mean: Tensor, width: int = 64, hidden: int = 4096) -> None:
        super().__init__()
        channels = 3
        for name, factor in CONVOLUTIONS.items():
            self.add_module(f"conv{name}", nn.Conv3d(channels, factor * width, kernel_size=3, padding=1))
            channels = factor * width
        self.fc6 = nn.Linear(channels * 4 * 4, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, CLASSES)
        self.register_buffer("mean", mean, persistent=False)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (B, 101) of uint8 clips (B, 3, 16, H, W)."""
        x = preprocess(clips, self.mean)  # (B, 3, 16, 112, 112)
        for name in CONVOLUTIONS:
            x = F.relu(self.get_submodule(f"conv{name}")(x))
            if name in POOLED:
                # Chainer pools what is left at the border too: 7×7 becomes 4×4. The first pool keeps all frames.
                x = F.max_pool3d(x, kernel_size=(1, 2, 2) if name == "1a" else 2, ceil_mode=True)
        x = rearrange(x, "b c 1 h w -> b (c h w)")
        x = F.relu(self.fc7(F.relu(self.fc6(x))))
        return self.fc8(x)


def preprocess(clips: Tensor, mean: Tensor) -> Tensor:
    """Swap channels, stretch to 112×112, bilinear with aligned corners (as Chainer does), and take off the mean.

    Args:
        clips: uint8 (B, 3, T, H, W), RGB.
        mean: float32 (3, T, 112, 112), BGR, in units of 0..255.

    Returns:
        float32 (B, 3, T, 112, 112), BGR.
    """
    # TGANv2 scales pixels to (x-128)/128, multiplies by 128 after swapping, resizes, and adds 128 less the mean.
    frames = rearrange(clips.flip(1), "b c t h w -> (b t) c h w").float() - 128
    frames = F.interpolate(frames, size=(SIZE, SIZE), mode="bilinear", align_corners=True)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(clips)) + (128 - mean)


class C3DDetector(NetworkDetector):
    """The logits of TGANv2's C3D, by a network of our own: nothing in the files is run.

    Its weight file comes with a second one, `mean2.npz`, which must lie in the same folder. `fingerprint` is that of both:
    the SHA-256 of their checksums in hexadecimal, weights first.
    """

    name = "c3d-ucf101"
    metric = "video IS"
    preprocessing = "BGR; stretched to 112x112, bilinear, corners aligned; minus the mean clip"
    dim = CLASSES
    min_frames = FRAMES
    kind = "logits"

    @classmethod
    def from_weights(cls, path: Path | None = None, trust: bool = False, **options: Setting) -> "C3DDetector":
        """Build the detector; see `Detector`. `path` is the file of weights, and the mean clip lies beside it."""
        cls.complete_options(options)
        mean_path, mean_sha256 = obtain(MEAN, None if path is None else path.with_name(MEAN.file), trust=trust)
        path, sha256 = obtain(WEIGHTS, path, trust=trust)
        network = load_network(path, mean_path)
        return cls(network, hashlib.sha256(f"{sha256}{mean_sha256}".encode("ascii")).hexdigest())

    def extract(self, clips: Tensor) -> Tensor:
        """Logits (B, 101) of clips (B, 3, 16, H, W)."""
        _check_frames(self.name, clips)
        return self.network(clips)


class C3DTorchScriptDetector(ScriptDetector):
    """The logarithm of the probabilities that StyleGAN-V's TorchScript file gives.

    Logits up to a constant for each clip, which a softmax takes away. The file's checksum is not published: as it is a
    program, it needs `trust`.
    """

    name = "c3d-ucf101-torchscript"
    metric = "video IS"
    preprocessing = "in the script"
    dim = CLASSES
    min_frames = FRAMES
    kind = "logits"
    WEIGHTS = SCRIPT

    def extract(self, clips: Tensor) -> Tensor:
        """Logarithms (B, 101) of the probabilities of clips (B, 3, 16, H, W), which go in as uint8.

        Raises:
            ValueError: the script takes or gives something else.
        """
        _check_frames(self.name, clips)
        found = self.run(clips)
        if found.isfinite().all() and ((found < 0).any() or (found.sum(dim=1) - 1).abs().max() > 1e-3):
            raise self.unlike("its rows are no probabilities")
        # A probability may underflow to 0, whose logarithm would be infinite and whose share in a score is 0.
        return found.clamp_min(torch.finfo(torch.float32).tiny).log()


def load_network(path: Path, mean_path: Path, width: int = 64, hidden: int = 4096) -> C3D:
    """Build C3D from TGANv2's two files.

    Args:
        path: arrays `conv1a/W`, `conv1a/b`, …, `fc8/b`: weights (out, in, 3, 3, 3) and (out, in), and biases.
        mean_path: an array `mean` (3, 16, 128, 171), BGR, in units of 0..255.
        width: see `C3D`.
        hidden: see `C3D`.

    Raises:
        ValueError: a file is damaged, or its arrays are others.
    """
    means = _read_arrays(mean_path)
    if "mean" not in means or means["mean"].shape != MEAN_SHAPE:
        found = {name: array.shape for name, array in means.items()}
        raise ValueError(f"{mean_path} holds the arrays {found}; accepted: 'mean' of shape {MEAN_SHAPE}")
    cut = slice(MARGIN, MARGIN + SIZE)
    mean = torch.from_numpy(means["mean"][:, :, cut, cut].astype(np.float32))
    with torch.device("meta"):
        network = C3D(mean, width, hidden)
    names = {name.replace(".weight", "/W").replace(".bias", "/b"): name for name in network.state_dict()}
    arrays = _read_arrays(path)
    if others := sorted(arrays.keys() - names.keys()):
        logger.warning("%s holds more arrays than C3D has, which are passed over as Chainer does: %s", path, ", ".join(others))
    state = {names[name]: torch.from_numpy(arrays[name].astype(np.float32)) for name in arrays.keys() & names.keys()}
    try:
        check_weights(state, {name: tuple(value.shape) for name, value in network.state_dict().items()})
    except ValueError as error:
        raise ValueError(f"{path} holds no weights of C3D: {error}") from error
    network.load_state_dict(state, assign=True)
    return network


def _read_arrays(path: Path) -> Mapping[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged, or is no .npz file: {error}") from error


def _check_frames(name: str, clips: Tensor) -> None:
    if clips.shape[2] != FRAMES:
        raise ValueError(f"detector {name!r} takes clips of {FRAMES} frames, got {clips.shape[2]}")
