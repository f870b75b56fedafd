"""A made set on disk: written clip by clip, resumable, read back, and known by one hash.

    OUT/
      made.json                   set, settings, versions, clips of a class; written first
      clips.sha256                of each file, in sha256sum's form
      captions.csv                path and caption, of a set that has captions: several rows for each clip
      train/<class>/000000.mkv    FFV1, RGB: decoded frames are those that were made, to the bit
      test/<class>/000000.mkv

The hash is that of all decoded frames: train before test, classes in the order of their names, clips by number; of each the
bytes of its frames (T,H,W,C), C = 3 channels (RGB), T frames, H height, W width.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch.utils.data import DataLoader, Dataset

from sparsevid.data.made.base import SPLITS, MadeSet
from sparsevid.data.workers import WorkerContext, end_with_main, running
from sparsevid.system.atomic import renamed, write_json
from sparsevid.system.checksums import file_sha256
from sparsevid.system.errors import ExpectedError
from sparsevid.system.locks import LOCK, FolderLock
from sparsevid.system.logging import LineFile, get_logger, progress
from sparsevid.videos.read import DecodeError, read_frames
from sparsevid.videos.write import write_ffv1

RECORD, SUMS, CAPTIONS = "made.json", "clips.sha256", "captions.csv"
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.partial")  # of a file that a killed process was writing
_SUM = re.compile(r"([0-9a-f]{64})  (.+)")
logger = get_logger(__name__)


class MadeError(ExpectedError):
    """A folder that is not, or not wholly, what the set would be; the message names it."""


class Made(NamedTuple):
    """What was made: `videos` and `frames` in all, `sha256` over all decoded frames, `new`: clips that were not there."""

    videos: int
    frames: int
    sha256: str
    new: int


class Clip(NamedTuple):
    """A clip's place: split, class, and number within both."""

    split: str
    name: str
    index: int  # type: ignore[assignment]  # hides `tuple.index`, which nobody asks of a clip

    @property
    def path(self) -> str:
        """Of its file, below the folder."""
        return f"{self.split}/{self.name}/{self.index:06d}.mkv"


def clips_of(made: MadeSet, counts: Mapping[str, int]) -> list[Clip]:
    """All clips of a set, in the order of its hash, of which any number a class is a prefix of a larger one."""
    return [
        Clip(split, name, index)
        for split in SPLITS
        for name in made.settings.classes
        for index in range(counts[split])
    ]  # fmt: skip


def make(made: MadeSet, folder: Path, counts: Mapping[str, int], workers: int = 0) -> Made:
    """Make a set's clips, as far as they are not there, and read all of them.

    Args:
        made: the set.
        folder: made if it is missing.
        counts: clips of a class, by split.
        workers: processes that make clips; 0 makes them in this one.

    Returns:
        What was made.

    Raises:
        ValueError: a number is out of range.
        ImportError: what makes the clips is not installed.
        MadeError: the folder holds something else, or another set; or a file does not hold what was written to it.
        LockedError: another process makes a set there.
        OSError: a file cannot be written.
    """
    if set(counts) != set(SPLITS) or min(counts.values()) < 0 or not any(counts.values()):
        raise ValueError(f"clips of a class: numbers from 0 for {' and '.join(SPLITS)}, not all of them 0; got {dict(counts)}")
    made.check()
    clips = clips_of(made, counts)
    digest, new = hashlib.sha256(), 0
    captions: dict[str, tuple[str, ...]] = {}
    with FolderLock(folder, "made"):
        sums = _begin(made, folder, counts)
        lines = LineFile(folder / SUMS)
        for clip, result in zip(clips, _written(ClipFiles(made, folder, clips, sums), workers), strict=True):
            if isinstance(result, str):
                raise MadeError(result)
            if sums.get(clip.path) != result["file"]:
                lines.write(f"{result['file']}  {clip.path}")
            new += result["new"]
            digest.update(result["frames"].numpy())
            captions[clip.path] = made.captions(clip.name, result["frames"])
        lines.close()
        _write_captions(folder / CAPTIONS, captions)
    return Made(len(clips), len(clips) * made.settings.frames, digest.hexdigest(), new)


class ClipFiles(Dataset):
    """Clips of a set, each written when it is asked for, unless its file is there, and read back.

    Args:
        made: the set.
        folder: its folder.
        clips: their places.
        sums: SHA-256 of the files that are there, by path.
    """

    def __init__(self, made: MadeSet, folder: Path, clips: list[Clip], sums: Mapping[str, str]) -> None:
        self.made, self.folder, self.clips, self.sums = made, folder, clips, sums

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, place: int) -> dict | str:
        """`frames` uint8 (T,H,W,C), `file`: the file's SHA-256, and `new`: whether it was written now; or what went wrong, so
        that it is no traceback of another process.
        """
        clip = self.clips[place]
        path = self.folder / clip.path
        try:
            file = file_sha256(path) if path.is_file() else None
            if file is not None and self.sums.get(clip.path) != file:
                why = "differs from what was written" if clip.path in self.sums else f"is not in {SUMS}"
                logger.warning("%s %s: made again", path, why)
                file = None
            if new := file is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                frames = self.made.clip(SPLITS.index(clip.split), clip.name, clip.index)
                write_ffv1(path, frames, self.made.fps)
            shown = read_frames(path, range(self.made.settings.frames))
            if new and not torch.equal(shown, rearrange(frames, "c t h w -> t c h w")):
                return f"{path} does not give the frames that were written to it"
        except OSError as error:
            return f"{path} cannot be written: {error.strerror or error}"
        except DecodeError as error:
            return str(error)
        return {"frames": rearrange(shown, "t c h w -> t h w c").contiguous(), "file": file or file_sha256(path), "new": new}


def _written(files: ClipFiles, workers: int) -> Iterator[dict | str]:
    """What `files` gives, in order, with a progress bar."""
    context = WorkerContext([__name__]) if workers else None
    loader: DataLoader = DataLoader(
        files, batch_size=None, num_workers=workers, multiprocessing_context=context, worker_init_fn=end_with_main
    )
    with running(loader) as results, progress(results, total=len(files), unit="clip", desc=files.made.name) as bar:
        yield from bar


def _write_captions(path: Path, captions: Mapping[str, tuple[str, ...]]) -> None:
    """Write the captions of clips; those of others, which a larger set has, stay. Nothing is written where there are none."""
    rows = [[clip, text] for clip, texts in captions.items() for text in texts]
    if not rows:
        return
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            rows += [row for row in csv.reader(file) if len(row) == 2 and row[0].endswith(".mkv") and row[0] not in captions]
    rows.sort(key=lambda row: (SPLITS.index(row[0].partition("/")[0]), row[0]))
    with renamed(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "caption"])
        writer.writerows(rows)


def _begin(made: MadeSet, folder: Path, counts: Mapping[str, int]) -> dict[str, str]:
    """See that the folder is this set's, write its record, remove unfinished files, and give the sums of finished ones."""
    record = folder / RECORD
    values = _record(made, counts)
    if record.is_file():
        before = _read_record(record)
        _compare(folder, before, values)
        values |= {split: max(values[split], before[split]) for split in SPLITS}
        if more := {split: before[split] for split in SPLITS if before[split] > counts[split]}:
            there = " and ".join(f"{count} a class for {split}" for split, count in more.items())
            logger.info("%s holds more clips, %s: only the first are looked at now", folder, there)
    _refuse_strangers(made, folder, values)
    write_json(record, values)
    sums = folder / SUMS
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines() if sums.is_file() else []
    return {found[2]: found[1] for line in lines if (found := _SUM.fullmatch(line))}


def _record(made: MadeSet, counts: Mapping[str, int]) -> dict:
    """What `made.json` says, as it comes back from the file."""
    settings = {"set": made.name, "made_with": made.made_with, **asdict(made.settings)}
    return json.loads(json.dumps(settings | {split: counts[split] for split in SPLITS}))


def _read_record(path: Path) -> dict:
    try:
        values = dict(json.loads(path.read_text(encoding="utf-8")))
        return values | {split: int(values[split]) for split in SPLITS}
    except (ValueError, KeyError, TypeError) as error:
        raise MadeError(f"{path} is not the record of a made set: {error!r}") from error


def _compare(folder: Path, before: Mapping, now: Mapping) -> None:
    """Raise MadeError unless both records are of the same clips."""
    keys = [key for key in {**before, **now} if key not in SPLITS and before.get(key) != now.get(key)]
    if keys:
        listed = ", ".join(f"{key} is {before.get(key)!r} there and {now.get(key)!r} here" for key in keys)
        raise MadeError(f"{folder} holds another set: {listed}. Give another folder, or these settings")


def _refuse_strangers(made: MadeSet, folder: Path, values: Mapping) -> None:
    """Raise MadeError if the folder holds what the set does not: it would be read as part of it. Drafts are removed."""
    known = {RECORD, SUMS, CAPTIONS, LOCK} if (folder / RECORD).is_file() else {LOCK}
    known |= {clip.path for clip in clips_of(made, values)} if RECORD in known else set()
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if _LEFTOVER.fullmatch(name) and (RECORD in known or name.startswith(f".{RECORD}.")):
                path.unlink(missing_ok=True)  # a worker of the killed process may just have been done
            elif path.relative_to(folder).as_posix() not in known:
                which = f"which is not of the set that {RECORD} describes" if RECORD in known else f"and no {RECORD}"
                raise MadeError(f"{folder} holds {path.relative_to(folder)}, {which}; give another folder, or remove it")
