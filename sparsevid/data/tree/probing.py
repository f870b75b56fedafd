"""Looking into the videos that the walk found: what each holds, and, if asked for, whether all of it can be decoded."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from torch import Tensor

from sparsevid.data.tree.rules import TreeRules
from sparsevid.data.tree.walk import Found
from sparsevid.system.logging import get_logger, progress
from sparsevid.system.threads import thread_pool
from sparsevid.videos.array_files import clip_cuts
from sparsevid.videos.frame_folder import frame_names, numbering_gaps, probe_images
from sparsevid.videos.kinds import kind_of
from sparsevid.videos.read import DecodeError, VideoInfo, frame_times, iter_frames, probe, read_frames, sought_runs
from sparsevid.videos.reading import FROM_START

logger = get_logger(__name__)
CUT_SHORT = "shorter than its header says"
_DECIMALS = 6  # of a time in seconds: microseconds
_PER_TASK = 32  # videos that a thread looks into in a row: a task for each would fill the memory for large sets


@dataclass(frozen=True)
class Contents:
    """What a video holds.

    Attributes:
        info: of all of it.
        runs: (first frame, number of frames) of the videos to be made of it: one, unless it is split at gaps or a stack.
        remarks: what is worth knowing, and no reason to pass it over.
        times: seconds at which each frame is shown, where the rate varies.
    """

    info: VideoInfo
    runs: tuple[tuple[int, int], ...]
    remarks: tuple[str, ...]
    times: tuple[float, ...] | None


def look_into(
    root: Path, found: Sequence[Found], rules: TreeRules, workers: int | None, full_scan: bool
) -> Iterator[Contents | str]:
    """Look into videos in several threads: libav and Pillow let go of the interpreter while they read.

    Args:
        root: the tree.
        found: the videos.
        rules: whether folders are split at gaps.
        workers: threads; None: one per core.
        full_scan: decode every frame.

    Yields:
        For each video, in order, what it holds, or the reason to pass it over.
    """

    ended = Event()  # nobody waits for more: a task of many long videos stops at the next

    def look_at_some(start: int) -> list[Contents | str]:
        some = found[start : start + _PER_TASK]
        return [_look(root, each, rules, full_scan) for each in some if not ended.is_set()]

    starts = range(0, len(found), _PER_TASK)
    with (
        thread_pool(workers or os.cpu_count()) as pool,
        progress(total=len(found), desc="looking into videos", delay=2) as bar,
    ):
        try:
            for some in pool.map(look_at_some, starts):
                yield from some
                bar.update(len(some))
        finally:
            ended.set()


def _look(root: Path, found: Found, rules: TreeRules, full_scan: bool) -> Contents | str:
    path = root / found.path
    try:
        info = probe_images(path) if rules.media == "image" else probe(path)
        remarks = info.notes
        if info.frames < info.header_frames:
            remarks = (CUT_SHORT, *remarks)
        if full_scan:
            same = _decode_all(path, info.frames, display=found.folder and info.stored is not None)  # turned one by one
            remarks += () if same else (FROM_START,)
        cuts = _cuts(path, found, rules)
        bounds = (0, *(cut for cut in cuts if cut < info.frames), info.frames)
        runs = tuple((bounds[i], bounds[i + 1] - bounds[i]) for i in range(len(bounds) - 1))
        times = tuple(round(time, _DECIMALS) for time in frame_times(path)) if info.variable_rate else None
        return Contents(info, runs, remarks, times)
    except DecodeError as error:
        if error.detail:  # which frame: the reasons are counted, and do not say
            logger.warning("%s", error)
        return error.reason


def _cuts(path: Path, found: Found, rules: TreeRules) -> tuple[int, ...]:
    """The frames at which a path is cut into several videos."""
    if found.folder:
        return numbering_gaps(frame_names(path)) if rules.split_at_gaps else ()
    # Images by the million are not opened once more.
    return clip_cuts(path) if rules.media == "video" and kind_of(path) == "array" else ()


def _decode_all(path: Path, expected: int, display: bool) -> bool:
    """Decode every frame, one at a time: whether random access gives the same, as far as a few of them tell.

    Raises DecodeError with the number of the frame that fails or has another size.
    """
    count, size, frames = 0, None, iter_frames(path, chunk=1, display=display)
    runs = sought_runs(path)
    sought = {i for run in runs for i in run}
    digests: dict[int, bytes] = {}
    while True:
        try:
            frame = next(frames, None)
        except DecodeError as error:
            inner = f"{error.reason}, {error.detail}" if error.detail else error.reason
            raise DecodeError(path, "a frame cannot be decoded", f"frame {count}: {inner}") from error
        if frame is None:
            break
        size = size or frame.shape
        if frame.shape != size:
            sizes = f"frame {count} is {frame.shape[3]}x{frame.shape[2]}, frame 0 is {size[3]}x{size[2]}"
            raise DecodeError(path, "the size changes inside the video", sizes)
        if count in sought:
            digests[count] = _digest(frame[0])
        count += 1
    if count < expected:
        raise DecodeError(path, "a frame cannot be decoded", f"frame {count}: the video ends before its {expected} frames")
    return all(
        _digest(frame) == digests[i]
        for run in runs
        for i, frame in zip(run, read_frames(path, run, display=display), strict=True)
    )


def _digest(frame: Tensor) -> bytes:
    return hashlib.sha256(frame.numpy().tobytes()).digest()
