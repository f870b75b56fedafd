"""Every frame of every video, in order and resized: decoded ahead by threads, and in batches of one length.

Dimensions: t frames of a tensor, C = 3 channels, H and W height and width in pixels.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from sparsevid.data.transforms import resize_crop
from sparsevid.data.tree.manifest import Video
from sparsevid.system.threads import thread_pool
from sparsevid.videos.read import DecodeError, holds_parts, iter_frames, read_frames

DECODED_AT_ONCE = 16  # frames held at a video's full size
PARTS_AHEAD = 16  # tensors of DECODED_AT_ONCE resized frames that a thread decodes before it turns to the next video


def video_frames(root: Path, video: Video, size: tuple[int, int], chunk: int = DECODED_AT_ONCE) -> Iterator[Tensor]:
    """All frames of a video, resized chunk by chunk, so that it is never held at its full size.

    Args:
        root: the manifest's.
        video: to decode.
        size: (H,W) in pixels.
        chunk: frames of a tensor.

    Yields:
        uint8 (t,C,H,W), t = `chunk` but for the last.

    Raises:
        DecodeError: a frame cannot be decoded, or their number is not the manifest's.
    """
    path = root / video.path
    chunks: Iterator[Tensor]
    if holds_parts(path):  # any frame by itself
        numbers = range(video.first, video.first + video.frames)
        parts = (numbers[i : i + chunk] for i in range(0, video.frames, chunk))
        chunks = (read_frames(path, part, display=video.display) for part in parts)
    else:
        chunks = iter_frames(path, chunk, display=video.display)
    count = 0
    for frames in chunks:
        count += len(frames)
        yield resize_crop(frames, size)
    if count != video.frames:
        raise DecodeError(path, f"{count} frames could be decoded, the manifest says {video.frames}")


def frames_ahead(root: Path, videos: Sequence[Video], size: tuple[int, int], workers: int) -> Iterator[Tensor]:
    """The frames of all videos, one video after the other, decoded by threads ahead of their use.

    A thread takes PARTS_AHEAD tensors of a video, then turns to the next one: short videos are decoded side by side, and of
    long ones no more is held than that.

    Args:
        root: the manifest's.
        videos: in the order wanted.
        size: (H,W) in pixels.
        workers: threads, from 1.

    Yields:
        uint8 (t,C,H,W), as `video_frames`.

    Raises:
        DecodeError: as `video_frames`, once the frames before it have been given.
    """
    waiting: deque[tuple[Iterator[Tensor], Future[list[Tensor]]]] = deque()
    remaining = iter(videos)
    with thread_pool(workers) as pool:
        while True:
            for video in islice(remaining, workers + 1 - len(waiting)):
                parts = video_frames(root, video, size)
                waiting.append((parts, pool.submit(_take, parts)))
            if not waiting:
                return
            parts, future = waiting.popleft()
            taken = future.result()
            if len(taken) == PARTS_AHEAD:  # there may be more of it
                waiting.appendleft((parts, pool.submit(_take, parts)))
            yield from taken


def in_batches(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same frames (t,C,H,W), `size` at a time but for the last: short videos fill a batch together."""
    held: list[Tensor] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count >= size:
            whole, rest = torch.cat(held).split([count - count % size, count % size])
            yield from whole.split(size)
            held, count = [rest], len(rest)
    if count:
        yield torch.cat(held)


def _take(parts: Iterator[Tensor]) -> list[Tensor]:
    return list(islice(parts, PARTS_AHEAD))
