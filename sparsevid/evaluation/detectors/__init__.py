"""Detectors by name. One file per network; a network is imported when it is asked for."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from sparsevid.evaluation.detectors.base import Detector, Setting

__all__ = ["DETECTORS", "Detector", "build_detector", "detector_class"]

# name -> (module, class)
DETECTORS: dict[str, tuple[str, str]] = {
    "c3d-ucf101": ("sparsevid.evaluation.detectors.c3d", "C3DDetector"),
    "c3d-ucf101-torchscript": ("sparsevid.evaluation.detectors.c3d", "C3DTorchScriptDetector"),
    "clip": ("sparsevid.evaluation.detectors.clip", "CLIPDetector"),
    "i3d": ("sparsevid.evaluation.detectors.i3d", "I3DDetector"),
    "i3d-torchscript": ("sparsevid.evaluation.detectors.i3d_torchscript", "I3DTorchScriptDetector"),
    "inception-2015": ("sparsevid.evaluation.detectors.inception", "InceptionDetector"),
    "inception-2015-adm": ("sparsevid.evaluation.detectors.inception", "InceptionADMDetector"),
    "inception-2015-logits": ("sparsevid.evaluation.detectors.inception", "InceptionLogitsDetector"),
    "motion-lucas-kanade": ("sparsevid.evaluation.detectors.motion", "MotionDetector"),
    "stream-inception-2015": ("sparsevid.evaluation.detectors.stream", "StreamDetector"),
    "transnetv2": ("sparsevid.evaluation.detectors.transnetv2", "TransNetV2Detector"),
    "v-jepa": ("sparsevid.evaluation.detectors.vjepa", "VJEPADetector"),
    "videomae-v2": ("sparsevid.evaluation.detectors.videomae", "VideoMAEDetector"),
}


def build_detector(
    name: str,
    device: "torch.device | str" = "cpu",
    *,
    path: Path | None = None,
    trust: bool = False,
    options: "Mapping[str, Setting] | None" = None,
) -> "Detector":
    """Build the detector `name`.

    Args:
        name: a key of `DETECTORS`.
        device: where it computes.
        path: a weight file; None for the published one, which is in the cache or downloaded to it.
        trust: accept a weight file whose checksum is not known.
        options: some of the class's `OPTIONS`.

    Returns:
        The detector, in evaluation mode.

    Raises:
        FileNotFoundError: there is no weight file, and none can be downloaded; the message says what to get.
        ModuleNotFoundError: the detector's package is not installed; the message says how to install it.
        ValueError: there is no such detector or option, or the file holds no weights of it, or is not to be trusted.
    """
    cls = detector_class(name)
    settings = cls.complete_options(options or {})
    return cls.from_weights(None if path is None else Path(path), trust, **settings).to(device)


def detector_class(name: str) -> "type[Detector]":
    """The class of the detector `name`, which knows its metric, preprocessing and options without loading weights.

    Raises:
        ValueError: there is no such detector.
    """
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}; known are {', '.join(sorted(DETECTORS))}")
    module, cls = DETECTORS[name]
    return getattr(import_module(module), cls)


def __getattr__(name: str) -> Any:
    """`Detector` on first use: the names alone are wanted without PyTorch."""
    if name != "Detector":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sparsevid.evaluation.detectors.base import Detector

    return Detector
