"""What frames of a video make a clip.

Dimensions: T frames.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsevid.data.tree.manifest import Video

RULES = ("stride", "latte_linspace")
SHORT = ("exclude", "reduce_stride", "repeat_last")
_TIME_SLACK = 1e-6  # seconds; times are sums of rounded numbers


@dataclass(frozen=True)
class ClipRule:
    """What frames make a clip.

    Attributes:
        frames: T.
        stride: frames from one to the next.
        rule: `stride`: every stride-th frame, spanning (T−1)·stride + 1. `latte_linspace`: T frames spread evenly, cut to
            integers, over T·stride frames: 0, 3, …, 21, 25, … 47 for 16 frames of stride 3, as Latte reads FaceForensics
            and UCF101.
        short: what becomes of a video shorter than the span. `exclude`: left out. `reduce_stride`: frames closer together,
            as far apart as fits; left out below T frames. `repeat_last`: the last frame again and again.
        target_fps: count frames at this rate instead of the video's own: frame j of the rule is the one shown at j/target_fps
            seconds, whatever the times of the video's frames are.

    Raises:
        ValueError: a number is not positive, or a name is unknown.
    """

    frames: int = 16
    stride: int = 3
    rule: str = "stride"
    short: str = "exclude"
    target_fps: float | None = None

    def __post_init__(self) -> None:
        if self.frames < 1 or self.stride < 1:
            raise ValueError(f"a clip needs frames and stride from 1, got frames={self.frames}, stride={self.stride}")
        if self.rule not in RULES:
            raise ValueError(f"unknown clip rule {self.rule!r}; accepted: {', '.join(RULES)}")
        if self.short not in SHORT:
            raise ValueError(f"unknown treatment of short videos {self.short!r}; accepted: {', '.join(SHORT)}")
        if self.target_fps is not None and not self.target_fps > 0:
            raise ValueError(f"target_fps is a rate above 0 or nothing, got {self.target_fps}")

    @property
    def span(self) -> int:
        """Frames of the video from the clip's first to the last it may take, both counted."""
        return self.frames * self.stride if self.rule == "latte_linspace" else (self.frames - 1) * self.stride + 1


def clip_indices(rule: ClipRule, start: int, num_frames: int | None = None) -> list[int]:
    """The frame numbers of the clip that starts at frame `start`: `rule.frames` of them, never decreasing.

    Args:
        rule: what frames make a clip.
        start: one of `valid_starts`.
        num_frames: frames of the video, which bends the rule if it is shorter than the span; None if it is not.
    """
    span = rule.span
    if num_frames is not None and num_frames < span and rule.short == "reduce_stride":
        span = num_frames
        if rule.rule == "stride":
            stride = (num_frames - 1) // max(1, rule.frames - 1)
            return [start + i * stride for i in range(rule.frames)]
    if rule.rule == "latte_linspace":
        offsets = [i * (span - 1) // max(1, rule.frames - 1) for i in range(rule.frames)]
    else:
        offsets = [i * rule.stride for i in range(rule.frames)]
    last = None if num_frames is None else num_frames - 1
    return [start + offset if last is None else min(start + offset, last) for offset in offsets]


def valid_starts(rule: ClipRule, num_frames: int) -> range:
    """Every start whose clip lies inside a video of `num_frames` frames, both ends included.

    A video shorter than the span has the start 0, or none, as the rule says of short ones.
    """
    if num_frames >= rule.span:
        return range(num_frames - rule.span + 1)
    needed = {"exclude": rule.span, "reduce_stride": rule.frames, "repeat_last": 1}[rule.short]
    return range(1 if num_frames >= needed else 0)


def counted_frames(rule: ClipRule, video: "Video") -> int:
    """Frames of a video as the rule counts them: its own, or those of `target_fps` that fit into its time."""
    return video.frames if rule.target_fps is None else int(video.seconds * rule.target_fps + _TIME_SLACK) + 1


def own_frames(rule: ClipRule, video: "Video", indices: Sequence[int]) -> list[int]:
    """Frame numbers as the rule counts them → the video's own: with `target_fps` the frame shown at that time."""
    if rule.target_fps is None:
        return list(indices)
    times = [index / rule.target_fps + _TIME_SLACK for index in indices]
    if video.times is None:
        return [min(int(time * video.fps), video.frames - 1) for time in times]
    return [max(0, bisect_right(video.times, time) - 1) for time in times]
