"""Clip rules, which say what frames make a clip, and the dataset of clips.

Dimensions: T frames, C = 3 channels (RGB), H height, W width.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from sparsevid.data.decode import DEFAULT_BACKEND, DecodeError, iter_frames, read_frames
from sparsevid.data.manifest import Manifest
from sparsevid.data.transforms import flip, resize_crop
from sparsevid.logging import get_logger, progress
from sparsevid.seeding import Purpose, keyed_generator

RULES = ("stride",)
DRAWS = 4  # of a clip, before a video that fails to decode is an error
NO_LABEL = -1

logger = get_logger(__name__)


@dataclass(frozen=True)
class ClipRule:
    """What frames make a clip: `frames` of them, `stride` apart, placed by the rule of the given name.

    Raises:
        ValueError: `frames` or `stride` is below 1, or the rule is unknown.
    """

    frames: int = 16
    stride: int = 3
    rule: str = "stride"

    def __post_init__(self) -> None:
        if self.frames < 1 or self.stride < 1:
            raise ValueError(f"a clip needs frames and stride from 1, got frames={self.frames}, stride={self.stride}")
        if self.rule not in RULES:
            raise ValueError(f"unknown clip rule {self.rule!r}; accepted: {', '.join(RULES)}")

    @property
    def span(self) -> int:
        """Frames of the video from the clip's first to its last, both counted."""
        return (self.frames - 1) * self.stride + 1


def clip_indices(rule: ClipRule, start: int) -> list[int]:
    """The frame numbers of the clip that starts at frame `start`: `rule.frames` of them, increasing."""
    return [start + i * rule.stride for i in range(rule.frames)]


def valid_starts(rule: ClipRule, num_frames: int) -> range:
    """Every start whose clip lies inside a video of `num_frames` frames, both ends included; may be empty."""
    return range(max(0, num_frames - rule.span + 1))


class ClipDataset(Dataset):
    """Clips of a manifest's videos, each drawn as a function of (seed, epoch, video) alone.

    So a clip does not depend on the worker, rank or order in which it is asked for.

    Args:
        manifest: the videos.
        rule: what frames make a clip.
        size: (H,W) in pixels; every video is resized and cropped to it.
        flip: mirror half of the clips.
        seed: of all draws.
        cache_frames: decode every video once, now, and keep all its frames resized: for sets that fit in memory.
        backend: decoding backend, see `sparsevid.data.decode`.

    Attributes:
        videos: the usable videos, in the manifest's order.
        excluded: how many videos are shorter than the rule's span.

    Raises:
        ValueError: no video is as long as the span.
        DecodeError: with `cache_frames`, a video cannot be decoded.
    """

    def __init__(
        self,
        manifest: Manifest,
        rule: ClipRule,
        size: tuple[int, int],
        flip: bool = False,
        seed: int = 0,
        cache_frames: bool = False,
        backend: str = DEFAULT_BACKEND,
    ) -> None:
        self.manifest, self.rule, self.size = manifest, rule, (int(size[0]), int(size[1]))
        self.flip, self.seed, self.backend = flip, seed, backend
        self.videos = tuple(video for video in manifest.videos if valid_starts(rule, video.frames))
        self.excluded = len(manifest.videos) - len(self.videos)
        if not self.videos:
            longest = max((video.frames for video in manifest.videos), default=0)
            raise ValueError(
                f"{manifest.root}: none of {len(manifest.videos)} videos is as long as a clip: {rule.frames} frames "
                f"{rule.stride} apart span {rule.span} frames, the longest video has {longest}"
            )
        if self.excluded:
            logger.warning(
                "%s: %d of %d videos are shorter than %d frames and left out",
                manifest.root, self.excluded, len(manifest.videos), rule.span,
            )  # fmt: skip
        self._cache: list[Tensor] | None = None
        if cache_frames:
            self._cache = [self._whole(i) for i in progress(range(len(self)), desc="decoding videos", delay=2)]

    def __len__(self) -> int:
        """The number of usable videos: each gives one clip per epoch."""
        return len(self.videos)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Tensor | int]:
        """Draw a clip.

        Args:
            key: (epoch, index), or index alone for epoch 0; index counts `videos`.

        Returns:
            `clip` uint8 (C,T,H,W), `label` (-1 if there is none), `video` = index, `start` = first frame's number.

        Raises:
            IndexError: no such video.
            DecodeError: none of several draws could be decoded.
        """
        epoch, index = (0, key) if isinstance(key, int) else key
        if not 0 <= index < len(self):
            raise IndexError(f"video {index} asked for, the dataset has {len(self)}")
        starts = valid_starts(self.rule, self.videos[index].frames)
        reasons = []
        for attempt in range(DRAWS):
            generator = keyed_generator(Purpose.CLIP, self.seed, epoch, index, *([attempt] if attempt else []))
            start = starts[int(torch.randint(len(starts), (), generator=generator))]
            mirrored = self.flip and bool(torch.rand((), generator=generator) < 0.5)
            try:
                frames = self._frames(index, start)
            except DecodeError as error:
                reasons.append(error.reason)
                logger.warning("%s; draw %d of %d", error, attempt + 1, DRAWS)
                continue
            clip = rearrange(flip(frames) if mirrored else frames, "t c h w -> c t h w").contiguous()
            label = self.videos[index].label
            return {"clip": clip, "label": NO_LABEL if label is None else label, "video": index, "start": start}
        raise DecodeError(self._path(index), f"{DRAWS} draws of a clip failed, the last: {reasons[-1]}")

    def _path(self, index: int):
        return self.manifest.root / self.videos[index].path

    def _frames(self, index: int, start: int) -> Tensor:
        """A clip's frames (T,C,H,W), resized."""
        indices = clip_indices(self.rule, start)
        if self._cache is not None:
            return self._cache[index][indices]
        return resize_crop(read_frames(self._path(index), indices, self.backend), self.size)

    def _whole(self, index: int) -> Tensor:
        """All frames of a video (T,C,H,W), resized chunk by chunk, so that no video is held at its full size."""
        frames = torch.cat([resize_crop(chunk, self.size) for chunk in iter_frames(self._path(index))])
        expected = self.videos[index].frames
        if len(frames) != expected:
            raise DecodeError(self._path(index), f"{len(frames)} frames could be decoded, the manifest says {expected}")
        return frames


def fixed_clips(dataset: ClipDataset, count: int, seed: int) -> list[tuple[int, int]]:
    """The keys of the clips that an evaluation reads: clip j is video j mod N in epoch j // N, for N videos.

    Args:
        dataset: where the clips are drawn.
        count: how many, from 1.
        seed: the evaluation's seed. The draws are the dataset's, so it must be the dataset's too.

    Returns:
        `count` keys (epoch, index).

    Raises:
        ValueError: `count` is below 1, or `seed` is not the dataset's.
    """
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}")
    if seed != dataset.seed:
        raise ValueError(f"fixed clips of seed {seed} asked from a dataset of seed {dataset.seed}; seeds must agree")
    return [divmod(j, len(dataset)) for j in range(count)]
