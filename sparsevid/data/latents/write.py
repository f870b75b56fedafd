"""Writing a latent cache: by all ranks, resumable, and the same files for any number of ranks. `read` reads it.

A shard that is there and whole is kept for as long as all its videos are wanted; the videos that no such shard holds are
dealt out to new ones. So a writing that was cut short goes on, and a video that had to be taken out costs its own shard.

Dimensions: T frames, C = 3 channels, H and W height and width in pixels, N frames of a shard, M channels of the moments,
h and w their height and width.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import save
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder
from sparsevid.data.latents.read import (
    CACHE_FILE,
    DTYPES,
    SHARD_FOLDER,
    CachedVideo,
    LatentCache,
    ShardRecord,
    describe_autoencoder,
    write_json,
)
from sparsevid.data.transforms import flip as mirror
from sparsevid.data.tree.manifest import Manifest, Video
from sparsevid.data.whole import frames_ahead, in_batches
from sparsevid.system.atomic import renamed
from sparsevid.system.distributed import barrier, broadcast_object, default_device, is_main, rank, world_size
from sparsevid.system.locks import folder_locked
from sparsevid.system.logging import get_logger, progress
from sparsevid.system.shared import check_shared
from sparsevid.system.threads import thread_pool
from sparsevid.videos.read import DecodeError, describe_decoder

MEGABYTE = 1 << 20
SHARD_BYTES = 256 * MEGABYTE
BATCH_FRAMES = 16
MAX_WORKERS = 8
_SHARD_FILE = re.compile(r"\.?(shard-[0-9]{5,})\.(safetensors|json)(\.[0-9a-f]+\.partial)?")

logger = get_logger(__name__)


@dataclass(frozen=True)
class ShardPlan:
    """A shard to write: its name and its videos, in the manifest's order."""

    name: str
    videos: tuple[Video, ...]

    @property
    def rows(self) -> int:
        """N, the frames of all its videos."""
        return sum(video.frames for video in self.videos)

    @property
    def cached(self) -> tuple[CachedVideo, ...]:
        """The videos as the shard's record names them."""
        return tuple(map(CachedVideo.of, self.videos))


@dataclass(frozen=True)
class _Job:
    """One writing of a cache; `settings` decide the shards' content, and stand in every shard's record."""

    folder: Path
    root: Path
    autoencoder: Autoencoder
    size: tuple[int, int]
    flip: bool
    dtype: str
    batch_frames: int
    device: torch.device
    workers: int
    settings: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M,h,w) of a frame's moments."""
        factor = self.autoencoder.factor
        return self.autoencoder.moment_channels, self.size[0] // factor, self.size[1] // factor

    @property
    def frame_bytes(self) -> int:
        """On disk, mirrored frame included."""
        channels, height, width = self.shape
        return channels * height * width * DTYPES[self.dtype].itemsize * (1 + self.flip)


def plan_shards(videos: Sequence[Video], frame_bytes: int, shard_bytes: int, taken: Collection[str] = ()) -> list[ShardPlan]:
    """Deal whole videos out to shards, in order; a function of these arguments alone, not of ranks.

    Args:
        videos: of the manifest.
        frame_bytes: of one frame on disk.
        shard_bytes: limit of a shard; a video that is larger is a shard of its own.
        taken: names that no shard may have.

    Returns:
        The shards.
    """
    groups: list[list[Video]] = []
    filled = 0
    for video in videos:
        if not groups or filled + video.frames * frame_bytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(video)
        filled += video.frames * frame_bytes
    names = (name for i in count() if (name := f"shard-{i:05d}.safetensors") not in taken)
    return [ShardPlan(name, tuple(group)) for group, name in zip(groups, names, strict=False)]


def write_cache(
    folder: str | Path,
    manifest: Manifest,
    autoencoder: Autoencoder,
    size: tuple[int, int],
    flip: bool,
    *,
    rule_record: dict[str, Any],
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    batch_frames: int = BATCH_FRAMES,
    device: torch.device | str | None = None,
    workers: int | None = None,
) -> LatentCache:
    """Write the cache of a manifest, on all ranks at once.

    Whole shards of an earlier writing are kept if all their videos are wanted. The others are removed once the new cache is
    finished: no run should be reading them then.

    Args:
        folder: the cache; made if need be.
        manifest: the whole manifest, before a split is selected.
        autoencoder: a cacheable one, see `Autoencoder.cacheable`.
        size: (H,W) in pixels; every frame is resized and cropped to it.
        flip: keep mirrored frames too.
        rule_record: the clip rule in force, as information for readers of the file.
        dtype: name of the data type on disk; default: the autoencoder's first choice.
        shard_bytes: limit of a shard, which is held in memory twice while it is written.
        batch_frames: frames that the autoencoder is given at once.
        device: where it runs; default: this rank's GPU if there is one, else the CPU.
        workers: threads of this rank that decode; default: its share of the machine's cores, 8 at most.

    Returns:
        The finished cache, on every rank.

    Raises:
        ValueError: the autoencoder cannot be cached, an argument is out of range, moments do not fit the data type, the
            folder holds shards that were made with other settings or of other videos, is not the same for all ranks or is being
            written by another process, or the disk has no room.
        OSError: the folder cannot be written.
        DecodeError: a video cannot be decoded as the manifest says; the shards that are written stay.
    """
    if min(shard_bytes, batch_frames, 1 if workers is None else workers) < 1:
        raise ValueError(f"shard_bytes, batch_frames and workers count from 1, got {shard_bytes}, {batch_frames}, {workers}")
    dtype, size = _checked(autoencoder, dtype, size)
    settings = {
        "autoencoder": autoencoder.fingerprint(),
        "size": list(size),
        "flip": flip,
        "dtype": dtype,
        "shard_bytes": shard_bytes,
    }
    threads = workers or max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    target = torch.device(device or default_device())
    job = _Job(Path(folder), manifest.root, autoencoder, size, flip, dtype, batch_frames, target, threads, settings)
    with folder_locked(job.folder):
        _write(job, manifest, rule_record)
    return LatentCache.open(job.folder)


def _write(job: _Job, manifest: Manifest, rule_record: dict[str, Any]) -> None:
    """What `write_cache` does while no other process writes there."""
    check_shared(job.folder, ValueError)
    records = _records(job, manifest.videos)
    kept, missing = broadcast_object(_plan(job, manifest.videos, records) if is_main() else None)
    _check_space(job, kept, missing)
    if is_main():
        _retract(job, missing)
    barrier()  # nobody writes before everybody has seen what was there
    (job.folder / SHARD_FOLDER).mkdir(parents=True, exist_ok=True)
    job.autoencoder.to(job.device)
    _write_share(job, missing[rank() :: world_size()])
    barrier()
    if is_main():
        _finish(job, manifest, kept, missing, rule_record)
    barrier()


def _checked(autoencoder: Autoencoder, dtype: str | None, size: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """Data type and size, if the autoencoder takes them."""
    if not autoencoder.cacheable:
        raise ValueError(
            f"the autoencoder {autoencoder.kind} cannot be cached: {autoencoder.uncached}; accepted: kl, temporal, pixels"
        )
    accepted = [name for kept in autoencoder.cache_dtypes for name, value in DTYPES.items() if value is kept]
    if dtype is not None and dtype not in accepted:
        raise ValueError(f"data type {dtype!r} for a cache of {autoencoder.kind}; accepted: {', '.join(accepted)}")
    height, width = (int(side) for side in size)
    if min(height, width) < 1 or height % autoencoder.factor or width % autoencoder.factor:
        raise ValueError(f"size {height}×{width}: both must be multiples of {autoencoder.factor}, the autoencoder's factor")
    return dtype or accepted[0], (height, width)


def _records(job: _Job, videos: Sequence[Video]) -> list[ShardRecord]:
    """The records of the folder's shards, by name.

    Raises:
        ValueError: the folder holds a shard that was made with other settings, or shards of other videos alone.
    """
    names = sorted(path.name for path in (job.folder / SHARD_FOLDER).glob("shard-*.json") if _SHARD_FILE.fullmatch(path.name))
    records = []
    for path in (job.folder / SHARD_FOLDER / name for name in names):
        try:
            settings, record = _read_record(path)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s cannot be read, its shard is made again: %s", path, error)
            continue
        pairs = {key: (settings.get(key), value) for key, value in job.settings.items()}
        differing = [f"{key}: {old} there, {new} asked for" for key, (old, new) in pairs.items() if old != new]
        if differing:
            raise ValueError(
                f"{job.folder} holds shards that were made with other settings ({'; '.join(differing)}): "
                "give another folder, or delete this one"
            )
        records.append(record)
    wanted = set(map(CachedVideo.of, videos))
    if records and not any(video in wanted for record in records for video in record.videos):
        raise ValueError(f"{job.folder} is a cache of other videos alone: give another folder, or delete this one")
    return records


def _read_record(path: Path) -> tuple[dict[str, Any], ShardRecord]:
    """The settings that a shard was made with, and its record. Raises ValueError, KeyError, TypeError if it is neither."""
    values = json.loads(path.read_text(encoding="utf-8"))
    record = ShardRecord.from_dict(values["shard"])
    if Path(record.name).stem != path.stem:
        raise ValueError(f"it names {record.name}")
    return dict(values["settings"]), record


def _plan(job: _Job, videos: Sequence[Video], records: Sequence[ShardRecord]) -> tuple[list[ShardRecord], list[ShardPlan]]:
    """The shards that stay, and those to write for the videos that these do not hold."""
    lacking = {CachedVideo.of(video): video for video in videos}
    kept: list[ShardRecord] = []
    taken: set[str] = set()  # an earlier cache.json may name these: they stay until the new one is there
    with thread_pool(job.workers) as pool, progress(total=len(records), desc="checking shards", delay=2) as bar:
        for record, problem in zip(
            records, pool.map(lambda each: each.problem(job.folder, content=True), records), strict=True
        ):
            bar.update()
            if problem:
                logger.warning("%s; it is made again", problem)
                continue
            taken.add(record.name)
            if lacking.keys() >= set(record.videos):
                kept.append(record)
                for video in set(record.videos):
                    del lacking[video]
    return kept, plan_shards(list(lacking.values()), job.frame_bytes, job.settings["shard_bytes"], taken)


def _retract(job: _Job, missing: Sequence[ShardPlan]) -> None:
    """Remove a `cache.json` that names shards to be written: whoever opened it meanwhile might find other videos in them."""
    try:
        names = {shard.name for shard in LatentCache.open(job.folder).shards}
        stands = names.isdisjoint(shard.name for shard in missing)
    except (FileNotFoundError, ValueError):  # it has to be written anew in any case
        stands = False
    if not stands:
        (job.folder / CACHE_FILE).unlink(missing_ok=True)


def _check_space(job: _Job, kept: Sequence[ShardRecord], missing: Sequence[ShardPlan]) -> None:
    """Say what will be written, and raise ValueError if the disk has no room for it."""
    there, lacking = sum(shard.rows for shard in kept), sum(shard.rows for shard in missing)
    total, needed = (rows * job.frame_bytes / MEGABYTE for rows in (there + lacking, lacking))
    folder = job.folder.absolute()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free / MEGABYTE
    logger.info(
        "%s: %d frames × %d bytes = %.1f MB; %d shards are there and whole; to write: %d shards, %.1f MB, free: %.1f MB",
        job.folder, there + lacking, job.frame_bytes, total, len(kept), len(missing), needed, free,
    )  # fmt: skip
    if needed > free:
        raise ValueError(f"{job.folder}: {needed:.1f} MB are to be written, and {free:.1f} MB are free on this disk")


def _write_share(job: _Job, share: Sequence[ShardPlan]) -> None:
    """Write a rank's shards."""
    if not share:
        return
    name = f"encoding (rank 0 of {world_size()})" if world_size() > 1 else "encoding"
    with progress(total=sum(shard.rows for shard in share), desc=name, unit=" frames") as bar:
        for shard in share:
            _write_shard(job, shard, bar.update)


def _write_shard(job: _Job, shard: ShardPlan, report: Callable[[int], Any]) -> None:
    """Decode and encode a shard's videos, and write file and record. What is cut short here leaves only a `.partial`."""
    names = ("frames", "mirrored") if job.flip else ("frames",)
    tensors = {name: torch.empty(shard.rows, *job.shape, dtype=DTYPES[job.dtype]) for name in names}
    row = 0
    try:
        for frames in in_batches(frames_ahead(job.root, shard.videos, job.size, job.workers), job.batch_frames):
            rows = slice(row, row + len(frames))
            tensors["frames"][rows] = _encode(job, frames)
            if job.flip:
                tensors["mirrored"][rows] = _encode(job, mirror(frames))
            row += len(frames)
            report(len(frames))
    except DecodeError as error:
        advice = (
            "a cache holds every video of the data: run `sparsevid prepare_data CARD --full-scan`, which leaves such videos "
            "out from then on, then the same command again, which keeps what is written"
        )
        raise DecodeError(error.path, f"{error.reason}; {advice}", error.detail) from error
    _check_finite(job, shard, tensors)
    path = job.folder / SHARD_FOLDER / shard.name
    content = save(tensors)
    with renamed(path) as draft:
        draft.write_bytes(content)
    record = ShardRecord(shard.name, len(content), hashlib.sha256(content).hexdigest(), shard.cached, describe_decoder())
    write_json(path.with_suffix(".json"), {"settings": job.settings, "shard": asdict(record)})


def _encode(job: _Job, frames: Tensor) -> Tensor:
    """Frames (T,C,H,W) → moments (T,M,h,w)."""
    clip = rearrange(frames, "t c h w -> 1 c t h w").to(job.device)
    return rearrange(job.autoencoder.moments(clip), "1 m t h w -> t m h w").to(DTYPES[job.dtype])


def _check_finite(job: _Job, shard: ShardPlan, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError for moments that the data type cannot hold, naming the video."""
    row = 0
    for video in shard.videos:
        for moments in tensors.values():
            if not torch.isfinite(moments[row : row + video.frames]).all():
                raise ValueError(f"{video.path}: moments are not finite in {job.dtype}; float32 holds larger ones")
        row += video.frames


def _finish(
    job: _Job, manifest: Manifest, kept: Sequence[ShardRecord], written: Sequence[ShardPlan], rule_record: dict[str, Any]
) -> None:
    """Write `cache.json`, then remove shards that it does not name: damaged ones, and those of videos no longer wanted."""
    folder = job.folder / SHARD_FOLDER
    records = [*kept, *(_read_record((folder / shard.name).with_suffix(".json"))[1] for shard in written)]
    position = {CachedVideo.of(video): i for i, video in enumerate(manifest.videos)}
    cache = LatentCache(
        folder=job.folder,
        autoencoder=describe_autoencoder(job.autoencoder),
        size=job.size,
        flip=job.flip,
        rule=rule_record,
        manifest=manifest.fingerprint,
        dtype=job.dtype,
        shape=job.shape,
        shards=tuple(sorted(records, key=lambda record: position[record.videos[0]])),
    )
    cache.save()
    named = {Path(record.name).stem for record in records}
    for path in sorted(folder.iterdir()):
        found = _SHARD_FILE.fullmatch(path.name)
        if found and (found[1] not in named or found[3]):
            logger.info("%s is of no use any more, it is removed", path)
            path.unlink()
