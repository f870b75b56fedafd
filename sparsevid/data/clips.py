"""The dataset of clips, and fixed choices of them.

Dimensions: T frames, k stills, C channels, H height, W width.
"""

from collections.abc import Sequence
from typing import TypedDict

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from sparsevid.data.captions import ClipCaptions
from sparsevid.data.sources import FrameSource
from sparsevid.data.tree.clip_rule import ClipRule, clip_indices, counted_frames, own_frames, valid_starts
from sparsevid.data.tree.manifest import Manifest, Video
from sparsevid.data.turns import drawn_classes
from sparsevid.system.logging import get_logger
from sparsevid.system.seeding import Purpose, keyed_generator
from sparsevid.videos.read import DecodeError

REDRAWS = 10  # of a sample, before data that fail to decode are an error
NO_LABEL = -1
NO_VIDEO = -1
FIXED_CLIPS_RULE = 2  # of `fixed_clips`; by rule 1 they were of the first videos, in the manifest's order

logger = get_logger(__name__)


def usable_videos(manifest: Manifest, rule: ClipRule) -> tuple[Video, ...]:
    """The videos that give a clip, in the manifest's order; how many do not is logged.

    Raises:
        ValueError: none does.
    """
    usable = tuple(video for video in manifest.videos if valid_starts(rule, counted_frames(rule, video)))
    if not usable:
        longest = max((counted_frames(rule, video) for video in manifest.videos), default=0)
        raise ValueError(
            f"{manifest.root}: none of {len(manifest.videos)} videos is as long as a clip: {rule.frames} frames "
            f"{rule.stride} apart span {rule.span} frames, the longest video has {longest}"
            + (f" at {rule.target_fps:g} frames a second" if rule.target_fps else "")
            + "; `short` accepts reduce_stride and repeat_last"
        )
    excluded = len(manifest.videos) - len(usable)
    if excluded:
        logger.warning(
            "%s: %d of %d videos are shorter than %d frames and left out; frames, stride and short decide",
            manifest.root, excluded, len(manifest.videos), rule.span if rule.short == "exclude" else rule.frames,
        )  # fmt: skip
    return usable


class Told(TypedDict, total=False):
    """What a sample is told, of a dataset with captions; see `ClipDataset`."""

    text: Tensor
    text_mask: Tensor
    caption: Tensor | int
    sizes: Tensor


class Sample(Told):
    """A clip and what is known of it; see `ClipDataset`."""

    clip: Tensor
    label: Tensor | int
    video: int
    start: int
    redraws: int
    failed: int


class ClipDataset(Dataset):
    """Clips of a manifest's videos, each drawn as a function of (seed, epoch, video) alone.

    So a clip does not depend on the worker, rank or order in which it is asked for.

    Args:
        manifest: the videos.
        rule: what frames make a clip.
        source: where frames come from: `VideoFrames`, `MemoryFrames`, or the `LatentFrames` of a cache.
        flip: mirror half of the clips.
        seed: of all draws.
        images: k, stills that follow the clip's frames (joint image-video training): single frames of other videos.
        captions: of the videos, for a model of text.

    Attributes:
        videos: the usable videos, in the manifest's order.
        excluded: how many videos are too short.

    Raises:
        ValueError: no video is as long as the span, or stills are asked of a single video.
    """

    def __init__(
        self,
        manifest: Manifest,
        rule: ClipRule,
        source: FrameSource,
        *,
        flip: bool = False,
        seed: int = 0,
        images: int = 0,
        captions: ClipCaptions | None = None,
    ) -> None:
        self.manifest, self.rule, self.source, self.captions = manifest, rule, source, captions
        self.flip, self.seed, self.images = flip, seed, images
        self.videos = usable_videos(manifest, rule)
        self.excluded = len(manifest.videos) - len(self.videos)
        if images < 0 or (images and len(self.videos) < 2):
            raise ValueError(f"{images} stills of other videos asked for; there are {len(self.videos)} usable videos")

    def __len__(self) -> int:
        """The number of usable videos: each gives one clip per epoch."""
        return len(self.videos)

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        """Draw a clip.

        What cannot be decoded is drawn again, as a function of the same key, from any video.

        Args:
            key: (epoch, index), or index alone for epoch 0; index counts `videos`.

        Returns:
            `clip` (C,T+k,H,W) as the source gives frames; `label`, -1 if there is none, with stills int64 (1+k,) of the
            clip and of each still; `video`, its index; `start`, its first frame as the rule counts; `redraws`, 0 for a clip
            of the video asked for; `failed`, the last video that could not be decoded, -1 if none.
            With captions also `text` (L,C) features in the type that is kept, `text_mask` (L,) bool, and `caption`, a place in
            `captions.texts`; with stills (1+k,L,C), (1+k,L) and int64 (1+k,). And `sizes` (3,), height and width of the video
            in pixels, and the clip's height over its width.

        Raises:
            IndexError: no such video.
            DecodeError: the clip and ten others in its place could not be decoded.
        """
        epoch, asked = (0, key) if isinstance(key, int) else key
        if not 0 <= asked < len(self):
            raise IndexError(f"video {asked} asked for, the dataset has {len(self)}")
        failed = NO_VIDEO
        for attempt in range(REDRAWS + 1):
            again = (attempt,) if attempt else ()
            generator = keyed_generator(Purpose.CLIP, self.seed, epoch, asked, *again)
            index = int(torch.randint(len(self), (), generator=generator)) if attempt else asked
            try:
                clip, start = self._clip(index, generator)
                stills, others = self._stills(index, keyed_generator(Purpose.STILL, self.seed, epoch, asked, *again))
            except DecodeError as error:
                failure, failed = error, self._index_of(error)
                continue
            frames = rearrange(torch.cat([clip, *stills]), "t c h w -> c t h w").contiguous()
            labels = [self._label(number) for number in (index, *others)]
            label = torch.tensor(labels) if self.images else labels[0]
            told = self._told((index, *others), frames, keyed_generator(Purpose.CAPTION, self.seed, epoch, asked, *again))
            return {
                "clip": frames, "label": label, "video": index, "start": start, "redraws": attempt, "failed": failed, **told
            }  # fmt: skip
        reason = f"a clip and {REDRAWS} others in its place failed, the last: {failure.reason}"
        raise DecodeError(failure.path, reason, failure.detail)

    def _clip(self, index: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """A video's clip (T,C,H,W), and its start."""
        video = self.videos[index]
        count = counted_frames(self.rule, video)
        starts = valid_starts(self.rule, count)
        start = starts[int(torch.randint(len(starts), (), generator=generator))]
        indices = own_frames(self.rule, video, clip_indices(self.rule, start, count))
        return self.source.read(video, indices, self._mirrored(generator)), start

    def _stills(self, index: int, generator: torch.Generator) -> tuple[list[Tensor], list[int]]:
        """Frames (1,C,H,W) of k other videos, and the videos' numbers."""
        stills, others = [], []
        for _ in range(self.images):
            other = int(torch.randint(len(self) - 1, (), generator=generator))
            others.append(other + (other >= index))
            video = self.videos[others[-1]]
            frame = int(torch.randint(video.frames, (), generator=generator))
            stills.append(self.source.read(video, [frame], self._mirrored(generator)))
        return stills, others

    def _told(self, numbers: Sequence[int], frames: Tensor, generator: torch.Generator) -> Told:
        """What a clip and its stills (C,T+k,H,W) are told, of a dataset with captions."""
        if self.captions is None:
            return {}
        videos = [self.videos[number] for number in numbers]
        places = [self.captions.draw(video, generator) for video in videos]
        text, mask = self.captions.read(videos, places)
        sizes = torch.tensor([videos[0].height, videos[0].width, frames.shape[-2] / frames.shape[-1]])
        if not self.images:
            return {"text": text[0], "text_mask": mask[0], "caption": places[0], "sizes": sizes}
        return {"text": text, "text_mask": mask, "caption": torch.tensor(places), "sizes": sizes}

    def _mirrored(self, generator: torch.Generator) -> bool:
        return self.flip and bool(torch.rand((), generator=generator) < 0.5)

    def _label(self, index: int) -> int:
        label = self.videos[index].label
        return NO_LABEL if label is None else label

    def _index_of(self, error: DecodeError) -> int:
        """The video that an error names: the clip's, or a still's."""
        return next((i for i, video in enumerate(self.videos) if error.path == self.manifest.root / video.path), NO_VIDEO)


def fixed_clips(dataset: ClipDataset, count: int, seed: int) -> list[tuple[int, int]]:
    """The keys of clips that are read once, to fit or to compare on: drawn over all videos, evenly over classes.

    Classes take turns in a drawn order. In each, videos do so too, and give a clip of another epoch in their next turn. The
    keys are a function of the dataset's videos and the seed, and those of a smaller count are their beginning.

    Args:
        dataset: where the clips are drawn.
        count: how many, from 1.
        seed: of the draws. Those inside a video are the dataset's, so it must be the dataset's too.

    Returns:
        `count` different keys (epoch, index).

    Raises:
        ValueError: `count` is below 1, or `seed` is not the dataset's.
    """
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}")
    if seed != dataset.seed:
        raise ValueError(f"fixed clips of seed {seed} asked from a dataset of seed {dataset.seed}; seeds must agree")
    classes = drawn_classes([video.label for video in dataset.videos], keyed_generator(Purpose.FIXED_CLIPS, seed))
    keys = []
    for j in range(count):
        turn, place = divmod(j, len(classes))
        epoch, video = divmod(turn, len(classes[place]))
        keys.append((epoch, classes[place][video]))
    return keys
