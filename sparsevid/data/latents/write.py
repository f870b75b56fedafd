"""Writing a latent cache: by all ranks, resumable, and the same files for any number of ranks, as `shards.ShardWriter`
writes. `read` reads it.

Dimensions: T frames, C = 3 channels, H and W height and width in pixels, N frames of a shard, M channels of the moments,
h and w their height and width.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder
from sparsevid.data.latents.read import (
    CACHE_FILE,
    DTYPES,
    CachedVideo,
    LatentCache,
    ShardRecord,
    describe_autoencoder,
)
from sparsevid.data.transforms import flip as mirror
from sparsevid.data.tree.manifest import Manifest, Video
from sparsevid.data.whole import frames_ahead, in_batches
from sparsevid.system.distributed import default_device
from sparsevid.system.shards import SHARD_BYTES, ShardPlan, ShardWriter
from sparsevid.system.threads import own_threads
from sparsevid.videos.read import DecodeError, describe_decoder

BATCH_FRAMES = 16
MAX_WORKERS = 8


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
    target = torch.device(device or default_device())
    threads = workers or own_threads(MAX_WORKERS)
    writer = LatentWriter(
        Path(folder),
        manifest,
        autoencoder,
        rule_record,
        batch_frames=batch_frames,
        device=target,
        settings=settings,
        threads=threads,
    )
    writer.write(manifest.videos)
    return LatentCache.open(folder)


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


class LatentWriter(ShardWriter[Video, ShardRecord]):
    """A writing of a manifest's latents.

    Args:
        manifest: the whole of it.
        autoencoder: encodes its frames, on `device`, `batch_frames` at once.
        rule_record: the clip rule in force.
        settings: `size`, `flip` and `dtype` among them.
        others: see `ShardWriter`.
    """

    index = CACHE_FILE
    what, unit = "videos", "frames"

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        autoencoder: Autoencoder,
        rule_record: dict[str, Any],
        *,
        batch_frames: int,
        device: torch.device,
        settings: dict[str, Any],
        threads: int,
    ) -> None:
        super().__init__(folder, settings, threads)
        self.manifest, self.autoencoder, self.rule_record = manifest, autoencoder.to(device), rule_record
        self.batch_frames, self.device = batch_frames, device
        self.size, self.flip, self.dtype = tuple(settings["size"]), settings["flip"], settings["dtype"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M,h,w) of a frame's moments."""
        factor = self.autoencoder.factor
        return self.autoencoder.moment_channels, self.size[0] // factor, self.size[1] // factor

    def key(self, item: Video) -> CachedVideo:
        return CachedVideo.of(item)

    def bytes_of(self, item: Video) -> int:
        """Mirrored frames included."""
        channels, height, width = self.shape
        return item.frames * channels * height * width * DTYPES[self.dtype].itemsize * (1 + self.flip)

    def units(self, item: Video) -> int:
        return item.frames

    def read_record(self, values: dict[str, Any]) -> ShardRecord:
        return ShardRecord.from_dict(values)

    def keys_of(self, shard: ShardRecord) -> tuple[CachedVideo, ...]:
        return shard.videos

    def named(self) -> set[str]:
        return {shard.name for shard in LatentCache.open(self.folder).shards}

    def record(self, plan: ShardPlan[Video], size: int, sha256: str) -> ShardRecord:
        return ShardRecord(plan.name, size, sha256, tuple(map(CachedVideo.of, plan.items)), describe_decoder())

    def tensors(self, plan: ShardPlan[Video], report: Callable[[int], Any]) -> dict[str, Tensor]:
        """Decode and encode a shard's videos."""
        names = ("frames", "mirrored") if self.flip else ("frames",)
        rows = sum(video.frames for video in plan.items)
        tensors = {name: torch.empty(rows, *self.shape, dtype=DTYPES[self.dtype]) for name in names}
        row = 0
        try:
            ahead = frames_ahead(self.manifest.root, plan.items, self.size, self.threads)
            for frames in in_batches(ahead, self.batch_frames):
                place = slice(row, row + len(frames))
                tensors["frames"][place] = self._encode(frames)
                if self.flip:
                    tensors["mirrored"][place] = self._encode(mirror(frames))
                row += len(frames)
                report(len(frames))
        except DecodeError as error:
            advice = (
                "a cache holds every video of the data: run `sparsevid prepare_data CARD --full-scan`, which leaves such "
                "videos out from then on, then the same command again, which keeps what is written"
            )
            raise DecodeError(error.path, f"{error.reason}; {advice}", error.detail) from error
        self._check_finite(plan.items, tensors)
        return tensors

    def _encode(self, frames: Tensor) -> Tensor:
        """Frames (T,C,H,W) → moments (T,M,h,w)."""
        clip = rearrange(frames, "t c h w -> 1 c t h w").to(self.device)
        return rearrange(self.autoencoder.moments(clip), "1 m t h w -> t m h w").to(DTYPES[self.dtype])

    def _check_finite(self, videos: Sequence[Video], tensors: dict[str, Tensor]) -> None:
        """Raise ValueError for moments that the data type cannot hold, naming the video."""
        row = 0
        for video in videos:
            for moments in tensors.values():
                if not torch.isfinite(moments[row : row + video.frames]).all():
                    raise ValueError(f"{video.path}: moments are not finite in {self.dtype}; float32 holds larger ones")
            row += video.frames

    def finish(self, shards: list[ShardRecord]) -> None:
        LatentCache(
            folder=self.folder,
            autoencoder=describe_autoencoder(self.autoencoder),
            size=self.size,
            flip=self.flip,
            rule=self.rule_record,
            manifest=self.manifest.fingerprint,
            dtype=self.dtype,
            shape=self.shape,
            shards=tuple(shards),
        ).save()
