"""Writing a latent cache: by all ranks, resumable, and the same files for any number of ranks. `latents` reads it.

Dimensions: T frames, C = 3 channels, H and W height and width in pixels, N frames of a shard, M channels of the moments,
h and w their height and width.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import save
from torch import Tensor

from sparsevid.autoencoder import Autoencoder
from sparsevid.data.decode import DecodeError
from sparsevid.data.latents import (
    DTYPES,
    SHARD_FOLDER,
    CachedVideo,
    LatentCache,
    ShardRecord,
    describe_autoencoder,
    write_json,
)
from sparsevid.data.manifest import Manifest, Video
from sparsevid.data.transforms import flip as mirror
from sparsevid.data.whole import frames_ahead, in_batches
from sparsevid.distributed import barrier, default_device, is_main, rank, world_size
from sparsevid.logging import get_logger, progress

MEGABYTE = 1 << 20
SHARD_BYTES = 256 * MEGABYTE
BATCH_FRAMES = 16
MAX_WORKERS = 8

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
        return tuple(CachedVideo(video.path, video.first, video.frames, video.bytes) for video in self.videos)


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


def plan_shards(videos: Sequence[Video], frame_bytes: int, shard_bytes: int) -> list[ShardPlan]:
    """Deal whole videos out to shards, in order; a function of these arguments alone, not of ranks.

    Args:
        videos: of the manifest.
        frame_bytes: of one frame on disk.
        shard_bytes: limit of a shard; a video that is larger is a shard of its own.

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
    return [ShardPlan(f"shard-{i:05d}.safetensors", tuple(group)) for i, group in enumerate(groups)]


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
    """Write the cache of a manifest, on all ranks at once. Shards of an interrupted writing that are whole are kept.

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
            folder holds shards that were made with other settings, or the disk has no room.
        DecodeError: a video cannot be decoded as the manifest says.
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
        "videos": _fingerprint(manifest.videos),
    }
    threads = workers or max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    target = torch.device(device or default_device())
    job = _Job(Path(folder), manifest.root, autoencoder, size, flip, dtype, batch_frames, target, threads, settings)
    plan = plan_shards(manifest.videos, job.frame_bytes, shard_bytes)
    _check_settings(job, plan)
    _check_space(job, plan)
    barrier()  # nobody writes before everybody has seen what was there
    (job.folder / SHARD_FOLDER).mkdir(parents=True, exist_ok=True)
    autoencoder.to(job.device)
    _write_share(job, plan[rank() :: world_size()])
    barrier()
    if is_main():
        cache = LatentCache(
            folder=job.folder,
            autoencoder=describe_autoencoder(autoencoder),
            size=size,
            flip=flip,
            rule=rule_record,
            manifest=manifest.fingerprint,
            dtype=dtype,
            shape=job.shape,
            shards=tuple(_recorded(job, shard)[1] for shard in plan),
        )
        cache.save()
    barrier()
    return LatentCache.open(job.folder)


def _checked(autoencoder: Autoencoder, dtype: str | None, size: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """Data type and size, if the autoencoder takes them."""
    if not autoencoder.cacheable:
        raise ValueError(f"each run fits its own {autoencoder.kind} autoencoder, so it cannot be cached; accepted: kl, pixels")
    accepted = [name for kept in autoencoder.cache_dtypes for name, value in DTYPES.items() if value is kept]
    if dtype is not None and dtype not in accepted:
        raise ValueError(f"data type {dtype!r} for a cache of {autoencoder.kind}; accepted: {', '.join(accepted)}")
    height, width = (int(side) for side in size)
    if min(height, width) < 1 or height % autoencoder.factor or width % autoencoder.factor:
        raise ValueError(f"size {height}×{width}: both must be multiples of {autoencoder.factor}, the autoencoder's factor")
    return dtype or accepted[0], (height, width)


def _fingerprint(videos: Sequence[Video]) -> str:
    """SHA-256 over what decides the frames: unlike the manifest's, without labels and splits."""
    rows = [(video.path, video.first, video.frames, video.bytes) for video in videos]
    return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()


def _record_path(job: _Job, shard: ShardPlan) -> Path:
    return (job.folder / SHARD_FOLDER / shard.name).with_suffix(".json")


def _recorded(job: _Job, shard: ShardPlan) -> tuple[dict[str, Any], ShardRecord] | None:
    """The settings that a shard was made with, and its record; None if it has none that can be read."""
    path = _record_path(job, shard)
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return dict(values["settings"]), ShardRecord.from_dict(values["shard"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read, its shard is made again: %s", path, error)
        return None


def _check_settings(job: _Job, plan: list[ShardPlan]) -> None:
    """Raise ValueError if the folder holds a shard that other settings made."""
    for shard in plan:
        recorded = _recorded(job, shard)
        if recorded is None or recorded[0] == job.settings:
            continue
        pairs = {key: (recorded[0].get(key), value) for key, value in job.settings.items()}
        differing = [f"{key}: {old} there, {new} asked for" for key, (old, new) in pairs.items() if old != new]
        raise ValueError(
            f"{job.folder} holds shards that were made with other settings ({'; '.join(differing)}): "
            "give another folder, or delete this one"
        )


def _check_space(job: _Job, plan: list[ShardPlan]) -> None:
    """Say what will be written, and raise ValueError if the disk has no room for it."""
    rows = sum(shard.rows for shard in plan)
    there = sum(shard.rows for shard in plan if (job.folder / SHARD_FOLDER / shard.name).is_file())
    total, needed = rows * job.frame_bytes / MEGABYTE, (rows - there) * job.frame_bytes / MEGABYTE
    folder = job.folder.absolute()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free / MEGABYTE
    logger.info(
        "%s: %d frames × %d bytes = %.1f MB in %d shards; to write: %.1f MB, free: %.1f MB",
        job.folder, rows, job.frame_bytes, total, len(plan), needed, free,
    )  # fmt: skip
    if needed > free:
        raise ValueError(f"{job.folder}: {needed:.1f} MB are to be written, and {free:.1f} MB are free on this disk")


def _write_share(job: _Job, share: list[ShardPlan]) -> None:
    """Write those of a rank's shards that are not there and whole."""
    missing = [shard for shard in share if not _is_finished(job, shard)]
    if len(missing) < len(share):
        logger.info("%d of %d shards of this rank are there and whole", len(share) - len(missing), len(share))
    if not missing:
        return
    name = f"encoding (rank 0 of {world_size()})" if world_size() > 1 else "encoding"
    with progress(total=sum(shard.rows for shard in missing), desc=name, unit=" frames") as bar:
        for shard in missing:
            _write_shard(job, shard, bar.update)


def _is_finished(job: _Job, shard: ShardPlan) -> bool:
    """Whether a shard is there, whole, and of these videos."""
    recorded = _recorded(job, shard)
    if recorded is None:
        return False
    problem = recorded[1].problem(job.folder, content=True)
    if recorded[1].videos != shard.cached:
        problem = f"{_record_path(job, shard)} names other videos"
    if problem:
        logger.warning("%s; it is made again", problem)
    return problem is None


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
        advice = "a cache holds every video of the data: take it out; sparsevid prepare_data --full-scan lists all such videos"
        raise DecodeError(error.path, f"{error.reason}; {advice}") from error
    _check_finite(job, shard, tensors)
    path = job.folder / SHARD_FOLDER / shard.name
    draft = path.with_name(f"{path.name}.partial")
    content = save(tensors)
    draft.write_bytes(content)
    os.replace(draft, path)
    record = ShardRecord(shard.name, len(content), hashlib.sha256(content).hexdigest(), shard.cached)
    write_json(_record_path(job, shard), {"settings": job.settings, "shard": asdict(record)})


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
