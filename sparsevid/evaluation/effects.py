"""How far choices that a report may leave out move a score: each by itself, against a named protocol.

Dimensions: T frames, C = 3 channels, H×W pixels of a clip.
"""

import hashlib
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from sparsevid.evaluation.clips.clip_readers import GeneratedClips
from sparsevid.evaluation.clips.clips import ClipSource, ProtocolClips, choose_clips
from sparsevid.evaluation.detectors import Detector
from sparsevid.evaluation.evaluate import check_detector, compute_metrics, files_stamp, one_split
from sparsevid.evaluation.features import ClipSet, FeatureFile, compute_features
from sparsevid.evaluation.protocols import BOTH, Protocol, Role, with_fields
from sparsevid.system.logging import get_logger, progress
from sparsevid.videos.read import DecodeError, read_frames
from sparsevid.videos.write import write_mp4

SPLITS = ("train", "test", "all")
STRIDES = (1, 2, 3, 4, 6, 8)
DRAW, DRAWS = "another draw", 4  # what they move a score by is its noise
USUAL_SIZE = (256, 256)  # of a resize where the protocol has none before the detector
logger = get_logger(__name__)


def through_mp4(clip: Tensor, crf: int = 18) -> Tensor:
    """A clip uint8 (3,T,H,W) as H.264 in 4:2:0 gives it back, by x264's constant rate factor."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(path, clip, 8.0, crf)
        frames = read_frames(path, range(clip.shape[1]))
    return rearrange(frames, "t c h w -> c t h w")[:, :, : clip.shape[2], : clip.shape[3]].contiguous()


def through_jpeg(clip: Tensor, quality: int = 75) -> Tensor:
    """A clip uint8 (3,T,H,W) as JPEG files of its frames give it back."""
    frames = []
    for frame in rearrange(clip, "c t h w -> t h w c").numpy():
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, format="JPEG", quality=quality)
        with Image.open(buffer, formats=["JPEG"]) as image:
            frames.append(np.asarray(image.convert("RGB")))
    return rearrange(torch.from_numpy(np.stack(frames)), "t h w c -> c t h w").contiguous()


CODECS: dict[str, Callable[[Tensor], Tensor]] = {
    "JPEG, quality 75": through_jpeg,
    "H.264, crf 18": through_mp4,
    "H.264, crf 28": lambda clip: through_mp4(clip, 28),
}


class RecodedClips:
    """The clips of another set after a lossy codec.

    Args:
        clips: the set.
        codec: a name of `CODECS`.
    """

    def __init__(self, clips: ClipSet, codec: str) -> None:
        self.clips, self.codec, self.ids = clips, codec, clips.ids
        self.origin: dict[str, Any] = {**clips.origin, "codec": codec}
        self.fingerprint = hashlib.sha256(f"{clips.fingerprint} {codec}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, first: int, last: int) -> Iterator[tuple[str, Tensor]]:
        for name, clip in self.clips.read(first, last):
            yield name, CODECS[self.codec](clip)


@dataclass(frozen=True)
class Choice:
    """A choice other than the protocol's.

    Attributes:
        kind: of choices, such as "stride of real clips".
        options: fields of the protocol, as `with_fields` takes them.
        split: of the real data, in place of the one that is measured.
        share: of the clips on both sides.
        codec: role and name of `CODECS` that clips pass, beside what they went through before.
    """

    kind: str
    options: tuple[str, ...] = ()
    split: str | None = None
    share: float = 1.0
    codec: tuple[Role, str] | None = None

    @property
    def label(self) -> str:
        """What is chosen, for a table."""
        said = [*self.options, *([f"split={self.split}"] if self.split else [])]
        said += [f"{self.share:.0%} of the clips"] if self.share < 1 else []
        return ", ".join(said + ([f"{self.codec[0]}: {self.codec[1]}"] if self.codec else []))


@dataclass(frozen=True)
class Effect:
    """What a choice makes of the score.

    Attributes:
        kind, choice: for a table; both empty for the protocol itself.
        score: the protocol's first metric; None where it cannot be had.
        difference: from the protocol's own score.
        real, fake: clips.
        problem: why there is no score.
    """

    kind: str
    choice: str
    score: float | None
    difference: float | None
    real: int = 0
    fake: int = 0
    problem: str = ""


def choices(protocol: Protocol, split: str) -> list[Choice]:
    """What a report may have done otherwise, each by itself."""
    found = [Choice("split", split=other) for other in SPLITS if other != split]
    found += [Choice("stride of real clips", (f"real_stride={n}", "real_min_frames=null"))
              for n in STRIDES if n != protocol.real_stride]  # fmt: skip
    for start in ("first", "random", "all"):
        if start != protocol.real_start:
            one = () if protocol.clips_per_video or start != "random" else ("clips_per_video=1",)
            found.append(Choice("start of real clips", (f"real_start={start}", *one)))
    found += [Choice("start of generated clips", (f"fake_start={start}",)) for start in ("first", "random")
              if start != protocol.fake_start]  # fmt: skip
    found += [Choice("number of clips", share=share) for share in (0.5, 0.25)]
    found += [Choice("selection of real videos", (f"real_selection={order}",))
              for order in ("sorted", "spread", "random", "balanced") if order != protocol.real_selection]  # fmt: skip
    found += [Choice(DRAW, (f"seed={protocol.seed + n}",)) for n in range(1, DRAWS + 1)]
    size = "size=[{},{}]".format(*(protocol.size or USUAL_SIZE))
    found += [Choice("resize before the detector", (size, f"resize={how}")) for how in ("cover", "stretch", "stretch_aliased")
              if protocol.size is None or how != protocol.resize]  # fmt: skip
    other = "stored" if protocol.geometry == "display" else "display"
    found.append(Choice("rotation and pixel aspect", (f"geometry={other}",)))
    return found + [Choice("lossy codec", codec=(role, codec)) for role in ("real", "fake") for codec in CODECS]


def measure_effects(
    real: ClipSource,
    fake: ClipSource,
    detector: Detector,
    protocol: Protocol,
    *,
    limit: int | None = None,
    split: str | None = None,
    batch_size: int = 16,
    keep: Path | None = None,
) -> list[Effect]:
    """The score by a protocol, then by each other choice. All ranks call it together.

    Args:
        real: real videos, see `choose_clips`.
        fake: generated ones.
        detector: the protocol's.
        protocol: what is named; its first metric is the score.
        limit: take fewer clips than the protocol's counts, for all choices.
        split: of the real data; needed where the protocol reports several.
        batch_size: clips of a forward pass.
        keep: folder for the feature file of each set of clips; what is finished there is taken up. None keeps nothing.

    Returns:
        The protocol's own score first. A choice that these data do not allow has a problem in place of a score.

    Raises:
        ValueError, DecodeError, FileNotFoundError: the score by the protocol itself cannot be had, see `choose_clips`.
    """
    check_detector(detector, protocol)
    split = split or one_split(protocol, "real")
    taken: dict[tuple[str, str], FeatureFile] = {}

    def features(chosen: ProtocolClips, role: Role, codec: str | None) -> FeatureFile:
        clips: ClipSet = chosen if codec is None else RecodedClips(chosen, codec)
        key = role, clips.fingerprint
        if key not in taken:
            out = None if keep is None else keep / f"{detector.name}-{role}-{clips.fingerprint[:12]}.safetensors"
            stamp = "" if keep is None else files_stamp(chosen)
            readers = 1 if isinstance(chosen.reader, GeneratedClips) else None
            taken[key] = compute_features(
                clips, detector, batch_size=batch_size, role=role, readers=readers, out=out, stamp=stamp
            )
        return taken[key]

    def score(choice: Choice) -> tuple[float, int, int]:
        rules = with_fields(protocol, choice.options)
        rules = replace(rules, split=choice.split or split)

        def side(source: ClipSource, role: Role) -> FeatureFile:
            count = limit if choice.share == 1 else _count(source, role, rules, limit, choice.share)
            codec = choice.codec[1] if choice.codec is not None and choice.codec[0] == role else None
            return features(choose_clips(source, role, rules, limit=count), role, codec)

        ours, theirs = side(real, "real"), side(fake, "fake")
        value = next(iter(compute_metrics(ours, theirs, rules).values()))
        return value, len(ours.clip_ids), len(theirs.clip_ids)

    own, *counts = score(Choice(""))
    found = [Effect("", protocol.name, own, 0.0, counts[0], counts[1])]
    for choice in progress(choices(protocol, split), desc="effects", unit="choice", delay=2):
        try:
            value, *counts = score(choice)
            found.append(Effect(choice.kind, choice.label, value, value - own, counts[0], counts[1]))
        except (ValueError, DecodeError) as error:
            found.append(Effect(choice.kind, choice.label, None, None, problem=str(error)))
    return found


def noise_of(effects: Sequence[Effect]) -> float | None:
    """What another draw of clips moves the score by at most; None where no other draw has a score."""
    return max((abs(each.difference) for each in effects if each.kind == DRAW and each.difference is not None), default=None)


def _count(source: ClipSource, role: Role, rules: Protocol, limit: int | None, share: float) -> int:
    """A share of the clips that there would be."""
    clips: ProtocolClips = choose_clips(source, role, rules, limit=limit)
    return max(2, round(share * len(clips)))


def splits_of(protocol: Protocol) -> str | None:
    """The split that a score is measured on unless another is said."""
    return "train" if protocol.split == BOTH else None
