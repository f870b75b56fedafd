"""Detectors by name. One file per network; a network is imported when it is asked for."""

from importlib import import_module

import torch

from sparsevid.evaluation.detectors.base import Detector

__all__ = ["DETECTORS", "Detector", "build_detector", "detector_class"]

# name -> (module, class)
DETECTORS: dict[str, tuple[str, str]] = {
    "transnetv2": ("sparsevid.evaluation.detectors.transnetv2", "TransNetV2Detector"),
}


def build_detector(name: str, device: torch.device | str = "cpu") -> Detector:
    """Build the detector `name` with its standard weights.

    Args:
        name: a key of `DETECTORS`.
        device: where it computes.

    Returns:
        The detector, in evaluation mode.

    Raises:
        ValueError: there is no such detector.
        ModuleNotFoundError: the detector's package is not installed; the message says how to install it.
    """
    return detector_class(name)().to(device)


def detector_class(name: str) -> type[Detector]:
    """The class of the detector `name`, which knows its metric and preprocessing without loading weights.

    Raises:
        ValueError: there is no such detector.
    """
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}; known are {', '.join(sorted(DETECTORS))}")
    module, cls = DETECTORS[name]
    return getattr(import_module(module), cls)
