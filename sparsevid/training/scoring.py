"""Scoring a run's samples by a protocol while it trains: clips go to the detector from memory, not by files.

Dimensions: C channels, T frames, H×W pixels of a clip; D features.
"""

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from sparsevid.config import ConfigError, RunConfig
from sparsevid.data.transforms import resize_crop
from sparsevid.distributed import is_main
from sparsevid.evaluation.detectors import build_detector
from sparsevid.evaluation.evaluate import choose_clips, compare_features
from sparsevid.evaluation.features import FeatureFile, compute_features
from sparsevid.evaluation.protocols import Protocol, ProtocolRecord, load_protocol
from sparsevid.logging import get_logger

logger = get_logger(__name__)


class Scoring:
    """The protocol of a run's scores, its detector, and on rank 0 the features of the real clips, computed now.

    The detector is kept on the CPU between uses.

    Args:
        config: of the run, with what the card answers filled in.
        device: where the detector computes.

    Raises:
        ConfigError: the protocol cannot be applied to this run's clips or data.
        ValueError, FileNotFoundError, ModuleNotFoundError, DecodeError: see `load_protocol`, `build_detector` and
            `choose_clips`.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config = config
        self.protocol = load_protocol(config.monitor.protocol)
        data, count = config.data, config.monitor.score_clips
        last = (self.protocol.frames - 1) * self.protocol.fake_stride
        if last >= data.frames:
            raise ConfigError(
                f"monitor.protocol = {self.protocol.name} reads {last + 1} frames of a generated clip, this run's clips have "
                f"{data.frames}"
            )
        if data.root is not None and self.protocol.split != "all":
            raise ConfigError(
                f"monitor.protocol = {self.protocol.name} takes split {self.protocol.split!r} of the real videos, which the "
                "card knows and data.root goes past: write the root into the card, or set $SPARSEVID_DATA"
            )
        self.detector = build_detector(self.protocol.detector)
        self.real: FeatureFile | None = None
        clips = choose_clips(data.root or data.card, "real", self.protocol, limit=count)  # all ranks: one reads the tree
        if is_main():
            if differences := clip_differences(config, self.protocol):
                text = "; ".join(differences)
                logger.warning("scores by %s compare only within this run: %s", self.protocol.name, text)
            origin = {"role": "real", "protocol": self.protocol.as_dict(), "source": clips.origin}
            self.real = compute_features(clips, self.detector.to(device), total=len(clips), **origin)
            self.detector.to("cpu")

    def features(self, clips: Tensor) -> Tensor:
        """Features of generated clips, which are read as a protocol reads the files of them.

        Args:
            clips: uint8 (B, 3, T, H, W).

        Returns:
            float32 (B, D) on the CPU.
        """
        rule = self.protocol
        clips = clips[:, :, : (rule.frames - 1) * rule.fake_stride + 1 : rule.fake_stride]
        frames = resize_crop(rearrange(clips, "b c t h w -> (b t) c h w"), rule.size)
        return self.detector(rearrange(frames, "(b t) c h w -> b c t h w", b=len(clips))).cpu()

    def compare(self, features: Tensor, step: int, sampling: dict[str, object]) -> ProtocolRecord:
        """The score of samples' features (N, D), with its record; on rank 0.

        Args:
            features: of samples 0 … N − 1.
            step: of the weights that made them.
            sampling: how they were made, for the record.
        """
        source = {"root": str(self.config.folder), "step": step, "weights": "ema", **sampling}
        names = tuple(f"sample {index}" for index in range(len(features)))
        fake = replace(self.real, features=features, clip_ids=names, role="fake", source=source)
        return compare_features(self.real, fake)


def clip_differences(config: RunConfig, protocol: Protocol) -> list[str]:
    """In what the clips of a run are not those that a protocol compares."""
    data, stride = config.data, config.data.stride * protocol.fake_stride
    pairs = (
        ("size", tuple(protocol.size), tuple(data.size)),
        ("frames", protocol.frames, data.frames),
        ("stride of real videos", protocol.real_stride, stride),
    )
    return [f"{what} is {its} in the protocol, {ours} in the run" for what, its, ours in pairs if its != ours]
