"""Looking into the videos that the walk found: what each holds, and, if asked for, whether all of it can be decoded."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sparsevid.data.decode import DecodeError, VideoInfo, frame_times, iter_frames, probe
from sparsevid.data.frame_folder import frame_names, numbering_gaps
from sparsevid.data.rules import TreeRules
from sparsevid.data.walk import Found
from sparsevid.logging import progress

CUT_SHORT = "shorter than its header says"
_DECIMALS = 6  # of a time in seconds: microseconds
_PER_TASK = 32  # videos that a thread looks into in a row: a task for each would fill the memory for large sets


@dataclass(frozen=True)
class Contents:
    """What a video holds.

    Attributes:
        info: of all of it.
        runs: (first frame, number of frames) of the videos to be made of it: one, unless it is split at gaps.
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

    def look_at_some(start: int) -> list[Contents | str]:
        return [_look(root, each, rules, full_scan) for each in found[start : start + _PER_TASK]]

    starts = range(0, len(found), _PER_TASK)
    with (
        ThreadPoolExecutor(workers or os.cpu_count()) as pool,
        progress(total=len(found), desc="looking into videos", delay=2) as bar,
    ):
        for some in pool.map(look_at_some, starts):
            yield from some
            bar.update(len(some))


def _look(root: Path, found: Found, rules: TreeRules, full_scan: bool) -> Contents | str:
    path = root / found.path
    try:
        info = probe(path)
        remarks = info.notes
        if info.frames < info.header_frames:
            remarks = (CUT_SHORT, *remarks)
        if full_scan:
            _decode_all(path, info.frames)
        cuts = numbering_gaps(frame_names(path)) if found.folder and rules.split_at_gaps else ()
        bounds = (0, *cuts, info.frames)
        runs = tuple((bounds[i], bounds[i + 1] - bounds[i]) for i in range(len(bounds) - 1))
        times = tuple(round(time, _DECIMALS) for time in frame_times(path)) if info.variable_rate else None
        return Contents(info, runs, remarks, times)
    except DecodeError as error:
        return error.reason


def _decode_all(path: Path, expected: int) -> None:
    """Decode every frame, one at a time. Raises DecodeError with the number of the one that fails or has another size."""
    count, size = 0, None
    try:
        for frame in iter_frames(path, chunk=1):
            size = size or frame.shape
            if frame.shape != size:
                sizes = f"{frame.shape[3]}x{frame.shape[2]}, frame 0 is {size[3]}x{size[2]}"
                raise DecodeError(path, f"the size changes inside the video: it is {sizes}")
            count += 1
    except DecodeError as error:
        raise DecodeError(path, f"frame {count} cannot be decoded: {error.reason}") from error
    if count < expected:
        raise DecodeError(path, f"frame {count} cannot be decoded: the video ends before its {expected} frames")
