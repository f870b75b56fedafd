"""What lies on disk: a file for each clip and format, and samples.json, which says what they are.

    samples/
      samples.json          number of clips, settings, versions; written first
      000000.mp4            one format: clips by index
      ffv1/000000.mkv       several formats: a folder for each, so that a folder can be scored as it is
      contact_sheet.png     the first clips
    samples-grid.mp4        the same clips side by side, if asked for: beside the folder, where no evaluator takes it for a clip
    samples.npz             of an image model, all images in one array, if asked for: beside the folder, too

For a class-conditional model, sample i is of class `classes[i mod length]` in the settings of samples.json; for one of text, of
`prompts[i mod length]`, which its files say too.
"""

import errno
import json
import os
import re
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from sparsevid import __version__
from sparsevid.generation import GenerationError
from sparsevid.generation.formats import LOSSLESS_FIRST, RECORD, SHEET
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.generation.sampling import Sampling
from sparsevid.runs.older import savings_of_reuse
from sparsevid.system.atomic import check_writable, write_json
from sparsevid.system.locks import FolderLock
from sparsevid.system.logging import get_logger, progress
from sparsevid.videos.check import clip_file_is_whole
from sparsevid.videos.read import DecodeError, frame_times, probe, read_frames
from sparsevid.videos.sheets import legible_scale, write_contact_sheet, write_grid
from sparsevid.videos.write import EVERY_FORMAT, MAX_GIF_FPS, clip_path, gif_time, write_clip, write_image_archive

SHEET_CLIPS = 16
LISTED = 8  # values of a list at most that a message has in full
_LEFTOVER = re.compile(r"\.([0-9]{6,}(\.[a-z0-9]+)?|contact_sheet\.png|samples\.json)(\.[0-9a-f]+)?\.(partial|replaced)")
_CLIP = re.compile(r"[0-9]{6,}(\.[a-z0-9]+)?")
logger = get_logger(__name__)


@dataclass(frozen=True)
class JobRecord:
    """What samples.json says.

    Attributes:
        num: clips that were asked for.
        settings: what decides the clips; plain values.
        made_with: versions and devices that clips were made with, which may change the last bits; the first made the first.
        clip: for who scores them, `frames` of a clip, and `stride` of the real ones that the model was trained on (None where
            it is not one number). Records of before say nothing of it.
    """

    num: int
    settings: dict[str, Any]
    made_with: list[dict[str, str]]
    clip: dict[str, int | None] = field(default_factory=dict)


def make_record(pipeline: VideoPipeline, sampling: Sampling, num: int, formats: Sequence[str]) -> JobRecord:
    """The record of a job."""
    settings = sampling.record(pipeline.token_schedule(sampling), pipeline.classes) | {
        "checkpoint": pipeline.fingerprint(),
        "objective": pipeline.config.objective.kind,
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "compile": pipeline.compiled,
        "formats": list(formats),
        "savings": [saving.record() for saving in pipeline.policies(sampling)],
        "fps": pipeline.fps,
        **({"tf32": True} if pipeline.tf32 else {}),  # jobs of before it could be chosen say nothing of it
        **({} if pipeline.prompts is None else {"text_encoder": pipeline.prompts.fingerprint(sampling)}),
    }
    made_with = {"sparsevid": __version__, "torch": torch.__version__, "device": pipeline.device.type}
    data = pipeline.config.data
    frames, _, _ = pipeline.autoencoder.clip_size(sampling.input_size)
    clip = {"frames": frames, "stride": data.stride if data.target_fps is None and data.rule in (None, "stride") else None}
    return JobRecord(num, json.loads(json.dumps(settings)), [made_with], clip)  # as they come back from the file


class ClipFolder:
    """The folder of a job.

    Args:
        path: made by `begin`.
        formats: names in `EVERY_FORMAT`.
        shape: (T, H, W) of the clips, in pixels.
        fps: frames a second.

    Raises:
        ValueError: no format, an unknown one, one twice, a rate that a GIF cannot have, or a PNG of several
            frames.
    """

    def __init__(self, path: Path, formats: Sequence[str], shape: tuple[int, int, int], fps: float) -> None:
        unknown = [each for each in formats if each not in EVERY_FORMAT]
        if unknown or not formats or len(set(formats)) != len(formats):
            raise ValueError(f"formats {list(formats)}; accepted are one or more of {', '.join(EVERY_FORMAT)}, each once")
        if "png" in formats and shape[0] != 1:
            raise ValueError(f"the model makes clips of {shape[0]} frames, a PNG file is one image; take the format frames")
        if "gif" in formats and not 0 < fps <= MAX_GIF_FPS:
            raise ValueError(f"the model makes {fps:g} frames a second, a GIF shows at most {MAX_GIF_FPS}; leave out gif")
        self.path, self.formats, self.shape, self.fps = path, tuple(formats), shape, fps
        self._lock: FolderLock | None = None

    def begin(self, record: JobRecord, *, grid: bool = False) -> JobRecord:
        """Make the folder, compare the record that is there with the job's, write it, and remove unfinished files.

        Until `end`, no other process can begin a job there.

        Args:
            record: of the job, as `make_record` gives it.
            grid: the job writes a grid, too: see that it can, and remove unfinished ones.

        Returns:
            What was written: the job's record, or the one that was there, for as many clips as any job was asked for.

        Raises:
            GenerationError: a record of other settings, which the message names, clips without a record, clips of another job
                in the folder of a format, or a grid that cannot be written.
            LockedError: a job of another process is at work there.
            OSError: the folder cannot be written.
        """
        self._lock = FolderLock(self.path, "filled")
        folders = list(dict.fromkeys([self.path, *(self._stem(0, format).parent for format in self.formats)]))
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        if strangers := [folder for folder in folders[1:] if (folder / RECORD).exists()]:
            raise GenerationError(f"{strangers[0]} is the folder of a job of its own: it holds {RECORD}; give another folder")
        if (self.path / RECORD).is_file():
            before = self._read()
            _compare(self.path, before, record)
            record = replace(before, num=max(before.num, record.num))
        elif clips := sorted(entry for folder in folders for entry in folder.iterdir() if _CLIP.fullmatch(entry.name)):
            name = clips[0].relative_to(self.path)
            raise GenerationError(f"{self.path} holds {name} and no {RECORD}, which says what it is; give another folder")
        if grid:
            self._begin_grid()
        self._write_record(record)
        for folder in folders:
            _remove_leftovers(folder, _LEFTOVER)
        return record

    def end(self) -> None:
        """Let other processes begin a job."""
        if self._lock is not None:
            self._lock.release()

    def add_maker(self, record: JobRecord) -> None:
        """Note versions and device of a job that is about to write clips, beside those that made the ones that are there.

        Args:
            record: of the job, as `make_record` gives it.

        Raises:
            OSError: the record cannot be written.
        """
        before, (now,) = self._read(), record.made_with
        if now in before.made_with:
            return
        there = "; ".join(", ".join(f"{name} {value}" for name, value in each.items()) for each in before.made_with)
        logger.warning("%s: clips were made with %s, and more are made now with %s: last bits may differ",
                       self.path, there, ", ".join(f"{name} {value}" for name, value in now.items()))  # fmt: skip
        self._write_record(replace(before, made_with=[*before.made_with, now]))

    def missing(self, index: int) -> tuple[str, ...]:
        """Formats in which clip `index` is not there, or not whole."""
        there = {format: clip_path(self._stem(index, format), format) for format in self.formats}
        return tuple(
            format for format, path in there.items() if not (path.exists() and clip_file_is_whole(path, format, *self.shape))
        )

    def exists(self, index: int) -> bool:
        """Whether clip `index` is there in every format; what is in its files is not looked at."""
        return all(clip_path(self._stem(index, format), format).exists() for format in self.formats)

    def write(self, index: int, clip: Tensor, formats: Sequence[str], prompt: str | None = None) -> None:
        """Write clip `index`, uint8 (3, T, H, W), and into its files the prompt that it was made of.

        Raises:
            GenerationError: it cannot be written, or its folder of frames, which was not whole, holds something else.
        """
        try:
            for format in formats:
                write_clip(self._stem(index, format), clip, self.fps, format, prompt)
        except OSError as error:
            raise GenerationError(f"clip {index} could not be written to {self.path}: {error.strerror or error}") from error

    def read(self, index: int) -> Tensor:
        """Clip `index`, uint8 (3, T, H, W), from a lossless file if there is one."""
        format = next(each for each in LOSSLESS_FIRST if each in self.formats)
        path = clip_path(self._stem(index, format), format)
        if format == "npz":
            with np.load(path, allow_pickle=False) as archive:
                return rearrange(torch.from_numpy(archive["frames"]), "t h w c -> c t h w")
        shown = _gif_frames(path, self.shape[0], self.fps) if format == "gif" else range(self.shape[0])
        return rearrange(read_frames(path, shown), "t c h w -> c t h w")

    def write_sheet(self, num: int, sampling: Sampling, classes: Sequence[str], *, grid: bool = False) -> None:
        """Write the contact sheet of the first clips from their files, so that it is the same after an interruption.

        Args:
            num: clips that any job was asked for; those that are not there, or not whole, are left out.
            classes: names by label; none for an unconditional model.
            grid: write the same clips as one video, too, beside the folder.

        Raises:
            GenerationError: the grid cannot be written.
            OSError: the contact sheet cannot be written.
        """
        shown = [index for index in range(min(num, SHEET_CLIPS)) if not self.missing(index)]
        clips = [self.read(index) for index in shown]
        captions = [line for index in shown if (line := sampling.caption(index, classes)) is not None]
        scale = legible_scale(*self.shape[1:])
        write_contact_sheet(self.path / SHEET, clips, captions or None, scale=scale)
        if grid:
            with self._naming_grid():
                write_grid(grid_path(self.path), clips, self.fps, scale=scale)

    def pack(self, num: int, labels: Sequence[int] | None, fresh: bool) -> Path:
        """Write the first images as one archive beside the folder, as ADM's evaluator takes them; one at a time is held.

        Args:
            num: of the images.
            labels: the class of each; None of an unconditional model.
            fresh: images were written since the archive was; if not, one that is there with as many is left as it is.

        Returns:
            The archive.

        Raises:
            GenerationError: the archive cannot be written.
        """
        path = archive_path(self.path)
        if not fresh and path.is_file() and _images_in(path) == num:
            return path
        arrays = {} if labels is None else {"arr_1": np.asarray(labels, np.int64)}
        try:
            images = progress(map(self.read, range(num)), total=num, desc=f"pack {path.name}", unit="image")
            write_image_archive(path, images, num, arrays)
        except OSError as error:
            raise GenerationError(f"{path} cannot be written: {error.strerror or error}") from error
        return path

    def _begin_grid(self) -> None:
        path = grid_path(self.path)
        with self._naming_grid():
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            check_writable(path.parent)
            _remove_leftovers(path.parent, re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]+\.partial"))

    @contextmanager
    def _naming_grid(self) -> Iterator[None]:
        """The grid lies outside the folder: errors name it."""
        try:
            yield
        except OSError as error:
            raise GenerationError(f"the grid {grid_path(self.path)} cannot be written: {error.strerror or error}") from error

    def _stem(self, index: int, format: str) -> Path:
        return (self.path if len(self.formats) == 1 else self.path / format) / f"{index:06d}"

    def _read(self) -> JobRecord:
        path = self.path / RECORD
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            settings = dict(values["settings"])
            if "reuse_every" in settings and "savings" not in settings:  # of before there were others
                settings["savings"] = savings_of_reuse(int(settings.pop("reuse_every")))
            made_with = [dict(each) for each in values["made_with"]]
            return JobRecord(int(values["num"]), settings, made_with, dict(values.get("clip", {})))
        except (ValueError, KeyError, TypeError) as error:
            raise GenerationError(f"{path} is not a record of generated clips: {error!r}") from error

    def _write_record(self, record: JobRecord) -> None:
        write_json(self.path / RECORD, asdict(record))


def grid_path(folder: Path) -> Path:
    """Where the grid of a folder's clips is written: beside it."""
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}-grid.mp4")


def archive_path(folder: Path) -> Path:
    """Where the archive of a folder's images is written: beside it."""
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}.npz")


def _images_in(path: Path) -> int | None:
    """Images of an archive; None if it is none."""
    try:
        return probe(path).frames
    except DecodeError:
        return None


def _remove_leftovers(folder: Path, names: re.Pattern[str]) -> None:
    """Remove what a killed job left unfinished."""
    for entry in [each for each in folder.iterdir() if names.fullmatch(each.name)]:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _gif_frames(path: Path, frames: int, fps: float) -> list[int]:
    """The frame of a GIF that shows each frame of the clip: equal neighbours are one there, which lasts longer."""
    begins = [round(100 * seconds) for seconds in frame_times(path)]
    return [bisect_right(begins, gif_time(index, fps)) - 1 for index in range(frames)]


def _compare(folder: Path, before: JobRecord, now: JobRecord) -> None:
    keys = sorted({*before.settings, *now.settings})
    differing = [key for key in keys if before.settings.get(key) != now.settings.get(key)]
    if differing:
        listed = ", ".join(_difference(key, before.settings.get(key), now.settings.get(key)) for key in differing)
        raise GenerationError(f"{folder} holds clips of other settings: {listed}. Give another folder, or these settings")


def _difference(key: str, there: Any, here: Any) -> str:
    """How two values differ, in words; of long lists, such as thousands of prompts, the first place that does."""
    if not (isinstance(there, list) and isinstance(here, list) and max(len(there), len(here)) > LISTED):
        return f"{key} is {there!r} there and {here!r} here"
    place = next((i for i, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), None)
    if place is None:
        return f"{key} are {len(there)} there and {len(here)} here"
    return f"{key}[{place}] is {there[place]!r} of {len(there)} there and {here[place]!r} of {len(here)} here"
