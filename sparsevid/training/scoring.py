"""Scoring a run's samples by a protocol while it trains: clips go to the detector from memory, not by files.

Dimensions: C channels, T frames, H×W pixels of a clip; D features.
"""

from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from sparsevid.data.tree.clip_rule import ClipRule
from sparsevid.evaluation.clips.clip_readers import ClipShape
from sparsevid.evaluation.clips.clips import CardSource, choose_clips
from sparsevid.evaluation.detectors import build_detector
from sparsevid.evaluation.evaluate import Extras, compare_features
from sparsevid.evaluation.features import compute_features
from sparsevid.evaluation.protocols import Protocol, load_protocol, with_fields
from sparsevid.evaluation.record import ProtocolRecord
from sparsevid.runs.config import ConfigError, DataConfig, RunConfig
from sparsevid.system.distributed import is_main
from sparsevid.system.logging import get_logger

logger = get_logger(__name__)


class Scoring:
    """The protocol of a run's scores, its detector, and the features of the real clips, computed now by all ranks.

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
        self.protocol = with_fields(load_protocol(config.monitor.protocol), config.monitor.protocol_options)
        data, count = config.data, config.monitor.score_clips
        last = (self.protocol.frames - 1) * self.protocol.fake_stride
        if last >= _clips_of(data)[0]:
            raise ConfigError(
                f"monitor.protocol = {self.protocol.name} reads {last + 1} frames of a generated clip, this run's clips have "
                f"{data.frames}"
            )
        if self.protocol.fake_start != "first":
            raise ConfigError(
                f"monitor.protocol = {self.protocol.name} has fake_start {self.protocol.fake_start!r}; a run's samples are "
                "read from their first frame, accepted: 'first'"
            )
        self.detector = build_detector(self.protocol.detector, options=self.protocol.detector_options)
        clips = choose_clips(real_videos(data), "real", self.protocol, limit=count)
        differences = clip_differences(config, self.protocol)
        if differences and is_main():
            text = "; ".join(differences)
            logger.warning("scores by %s compare only within this run: %s", self.protocol.name, text)
        rules = self.protocol.as_dict()
        self.real = compute_features(clips, self.detector.to(device), role="real", protocol=rules)
        self.detector.to("cpu")
        self.told = False  # whether a score's warnings were logged: later ones say the same

    def features(self, clips: Tensor) -> Tensor:
        """Features of generated clips, which are read as a protocol reads the files of them.

        Args:
            clips: uint8 (B, 3, T, H, W).

        Returns:
            float32 (B, D) on the CPU.
        """
        rule = self.protocol
        clips = clips[:, :, : (rule.frames - 1) * rule.fake_stride + 1 : rule.fake_stride]
        shape = ClipShape(ClipRule(rule.frames, rule.fake_stride), rule.size, rule.resize)
        frames = shape.resized(rearrange(clips, "b c t h w -> (b t) c h w"))
        return self.detector(rearrange(frames, "(b t) c h w -> b c t h w", b=len(clips))).cpu()

    def compare(
        self, features: Tensor, step: int | None, sampling: dict[str, object], extras: Extras | None = None
    ) -> ProtocolRecord:
        """The score of samples' features (N, D), with its record; on rank 0. Warnings are logged with the first score alone.

        Args:
            features: of samples 0 … N − 1.
            step: of the weights that made them, if it is known.
            sampling: how they were made, for the record.
            extras: what is computed beside the score; default: nothing.
        """
        source = {"root": str(self.config.folder), "step": step, "weights": "ema", **sampling}
        names = tuple(f"sample {index}" for index in range(len(features)))
        fake = replace(
            self.real, features=features, clip_ids=names, role="fake", source=source, clips_fingerprint=None, computation={}
        )
        record = compare_features(self.real, fake, extras, quiet=self.told)
        self.told = True
        return record


def real_videos(data: DataConfig) -> CardSource:
    """The card of a run, with what the run says of it."""
    options = dict(data.card_options)
    if data.root is not None:
        options["root"] = str(Path(data.root).absolute())  # in a card a relative one lies below $SPARSEVID_DATA
    if data.fold is not None:
        options["split"] = {**options.get("split", {}), "fold": data.fold}
    return CardSource(data.card, options)


def _clips_of(data: DataConfig) -> tuple[int, int, tuple[int, int]]:
    """Frames, stride and (height, width) of a run's clips, which training has filled in from the card."""
    if data.frames is None or data.stride is None or data.size is None:
        said = f"data.frames = {data.frames}, data.stride = {data.stride}, data.size = {data.size}"
        raise ConfigError(f"samples are compared with clips of the run, of which it does not say all: {said}")
    return data.frames, data.stride, (data.size[0], data.size[1])


def clip_differences(config: RunConfig, protocol: Protocol) -> list[str]:
    """In what the clips of a run are not those that a protocol compares."""
    frames, stride, size = _clips_of(config.data)
    pairs = (
        ("size", protocol.size or size, size),
        ("frames", protocol.frames, frames),
        ("stride of real videos", protocol.real_stride, stride * protocol.fake_stride),
    )
    return [f"{what} is {its} in the protocol, {ours} in the run" for what, its, ours in pairs if its != ours]
