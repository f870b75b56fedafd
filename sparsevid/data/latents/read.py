"""The latent cache: an autoencoder's moments of every frame of every video, at one size; its format, and reading it.

Frame autoencoders work frame by frame, so whole videos are kept, mirrored ones too if the run mirrors. Any clip rule, random
start and draw then works from the cache as from the videos, frame for frame. `write` makes a cache.

<cache>/
    cache.json                        what it holds, written last: autoencoder, size, manifest, and the shards' records
    shards/shard-00000.safetensors    `frames` (N,M,h,w) of whole videos one after the other; `mirrored` likewise if flip is on
    shards/shard-00000.json           the shard's record, from which an interrupted writer goes on

Shards are safetensors files and not tar archives, which are read from front to back: clips need a few frames from anywhere.
These are memory-mapped, any rows of a tensor are read alone, and nothing is unpickled.

Dimensions: T frames asked for, N frames of a shard, M channels of the moments, h and w their height and width.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder
from sparsevid.data.tree.manifest import Manifest, Video
from sparsevid.system.shards import OpenShards, Shard, ShardedCache
from sparsevid.videos.display import DISPLAYED, STORED

FORMAT = 1  # of cache.json
CACHE_FILE = "cache.json"
DTYPES = {"float16": torch.float16, "float32": torch.float32, "uint8": torch.uint8}


class CachedVideo(NamedTuple):
    """A video of a cache: path and first frame, by which it is found, and what shows whether it is still the same."""

    path: str
    first: int
    frames: int
    bytes: int
    displayed: bool = False  # stretched or turned, as a player shows it; caches of before hold stored pixels

    @classmethod
    def of(cls, video: Video) -> "CachedVideo":
        """A manifest's video, as a cache names it."""
        return cls(video.path, video.first, video.frames, video.bytes, video.geometry == DISPLAYED)

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> "CachedVideo":
        """From its JSON form. Raises ValueError or TypeError if it is not that."""
        path, first, frames, size, *displayed = row
        return cls(str(path), int(first), int(frames), int(size), *map(bool, displayed))


@dataclass(frozen=True)
class ShardRecord(Shard):
    """What is known of a finished shard.

    Attributes:
        videos: whose frames fill the rows, in this order.
        decoder: what gave the pixels, with its version.
    """

    videos: tuple[CachedVideo, ...]
    decoder: str = "not recorded"

    @property
    def rows(self) -> int:
        """N, the frames of all its videos."""
        return sum(video.frames for video in self.videos)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ShardRecord":
        """From the JSON form of `asdict`.

        Raises:
            ValueError, KeyError, TypeError: it is not that.
        """
        file = cls.file_values(values)
        videos = tuple(map(CachedVideo.from_row, values["videos"]))
        if not videos:
            raise ValueError(f"{values['name']} has no videos")
        return cls(*file, videos, str(values.get("decoder", cls.decoder)))  # caches of before do not say


@dataclass(frozen=True)
class LatentCache(ShardedCache):
    """A finished cache.

    Attributes:
        folder: where it lies.
        autoencoder: kind, source, fingerprint, channels and factor of the autoencoder that made it.
        size: (height, width) of the frames in pixels.
        flip: whether mirrored frames are kept too.
        rule: the clip rule at the time of writing; for the reader of the file, the cache serves any rule.
        manifest: fingerprint of the manifest that it was made from; like the rule, for the reader of the file.
        dtype: name of the moments' data type.
        shape: (M,h,w) of a frame's moments.
        shards: their records, in the manifest's order of each shard's first video.
    """

    kind, file, form, dtypes = "latent cache", CACHE_FILE, FORMAT, DTYPES
    folder: Path
    autoencoder: dict[str, Any]
    size: tuple[int, int]
    flip: bool
    rule: dict[str, Any]
    manifest: str
    dtype: str
    shape: tuple[int, int, int]
    shards: tuple[ShardRecord, ...]

    @property
    def frames(self) -> int:
        """Frames of all videos, mirrored ones not counted."""
        return sum(shard.rows for shard in self.shards)

    @classmethod
    def from_values(cls, folder: Path, values: dict[str, Any]) -> "LatentCache":
        values["shards"] = tuple(ShardRecord.from_dict(shard) for shard in values["shards"])
        (height, width), (channels, *sides) = values["size"], values["shape"]
        return cls(folder, **values | {"size": (height, width), "shape": (channels, *sides)})

    def check(self, manifest: Manifest, autoencoder: Autoencoder, size: tuple[int, int], flip: bool) -> None:
        """Make sure that a run can use this cache.

        Args:
            manifest: the run's, or one selected from it; labels and splits are left out of account, since frames do not
                depend on them.
            autoencoder: the run's.
            size: (height, width) in pixels of the run's clips.
            flip: whether the run mirrors clips. A cache with mirrored frames serves a run without them too.

        Raises:
            ValueError: it cannot; the message lists all that differs, and says how a cache that fits is made.
        """
        if not autoencoder.cacheable:
            kind = autoencoder.kind
            raise ValueError(
                f"{self.folder} does not fit the run, and no cache can: of the autoencoder {kind}, {autoencoder.uncached}. "
                "Train from the videos (data.latents=null), or with an autoencoder that can be cached: kl, temporal, pixels"
            )
        differences = []
        if self.autoencoder["fingerprint"] != autoencoder.fingerprint():
            differences.append(("autoencoder", _spell(self.autoencoder), _spell(describe_autoencoder(autoencoder))))
        if self.size != tuple(size):
            differences.append(("size", f"{self.size[0]}×{self.size[1]}", f"{size[0]}×{size[1]}"))
        if flip and not self.flip:
            differences.append(("flip", "no mirrored frames", "mirrored frames"))
        held = {video for shard in self.shards for video in shard.videos}
        needed = [CachedVideo.of(video) for video in manifest.videos]
        if lacking := [video for video in needed if video not in held]:
            has = f"{len(needed) - len(lacking)} of the run's {len(needed)} videos as they are now"
            first, other = lacking[0], lacking[0]._replace(displayed=not lacking[0].displayed)
            what = f"the first that is new or has changed is {first.path}"
            if other in held:
                what = f"{first.path} is there {_geometry(other)}, and wanted {_geometry(first)}"
            differences.append(("videos", has, f"all: {what}"))
        if differences:
            lines = [f"  {name}: the cache has {has}, the run needs {needs}" for name, has, needs in differences]
            command = f"sparsevid encode_latents CARD --out NEW_FOLDER --autoencoder {autoencoder.kind}"
            command += f" --source {shlex.quote(autoencoder.source)}" if autoencoder.source else ""
            command += f" --size {size[0]} {size[1]} {'--flip' if flip else '--no-flip'}"
            command += " --no-display" if any(video.geometry == STORED for video in manifest.videos) else ""
            raise ValueError("\n".join([f"{self.folder} does not fit the run:", *lines, f"  one that fits: {command}"]))


class LatentFrames:
    """Moments of a video's frames, out of a cache. Can be pickled: each process opens shards for itself, when it needs them.

    Args:
        cache: where from.
    """

    moments = True

    def __init__(self, cache: LatentCache) -> None:
        self.cache = cache
        self._places: dict[tuple[str, int], tuple[ShardRecord, int, CachedVideo]] = {}  # → shard, first row
        for shard in cache.shards:
            row = 0
            for video in shard.videos:
                self._places[video.path, video.first] = (shard, row, video)
                row += video.frames
        self._open = OpenShards(cache.folder)

    def read(self, video: Video, indices: Sequence[int], mirrored: bool) -> Tensor:
        """Moments of some frames.

        Args:
            video: found by its path and first frame.
            indices: T frame numbers from 0, in any order, repeats allowed.
            mirrored: of the frames mirrored left to right, before they were encoded.

        Returns:
            (T,M,h,w) in the cache's data type; memory of its own.

        Raises:
            ValueError: the video is not in the cache, has other frames there or is shown otherwise, mirrored frames are not
                kept, or a shard is damaged.
            IndexError: no such frame.
        """
        wanted = CachedVideo.of(video)
        shard, row, held = self._places.get((video.path, video.first), (None, 0, wanted))
        frames = held.frames
        if shard is None or frames != video.frames:
            found = f"{frames} frames of it" if shard else "no such video"
            raise ValueError(f"{self.cache.folder} holds {found}: {video.path} has {video.frames}, from {video.first} on")
        if held.displayed != wanted.displayed:
            raise ValueError(f"{self.cache.folder} holds {video.path} {_geometry(held)}, not {_geometry(wanted)}")
        if mirrored and not self.cache.flip:
            raise ValueError(f"{self.cache.folder} holds no mirrored frames: encode the data with --flip")
        wrong = [i for i in indices if not 0 <= i < frames]
        if wrong:
            raise IndexError(f"{video.path}: frame {wrong[0]} asked for, there are {frames}")
        try:
            values = self._open(shard).get_slice("mirrored" if mirrored else "frames")
            expected = [shard.rows, *self.cache.shape]
            if values.get_shape() != expected:
                raise ValueError(f"{self.cache.folder}: {shard.name} holds {values.get_shape()}, {CACHE_FILE} says {expected}")
            return values[[row + i for i in indices]]
        except SafetensorError as error:
            raise ValueError(f"{self.cache.folder}: {shard.name} is damaged: {error}") from error


def describe_autoencoder(autoencoder: Autoencoder) -> dict[str, Any]:
    """What a cache records of the autoencoder that made it."""
    values = {name: getattr(autoencoder, name) for name in ("kind", "source", "channels", "factor")}
    return values | autoencoder.configuration() | {"fingerprint": autoencoder.fingerprint()}


def _geometry(video: CachedVideo) -> str:
    return "as a player shows it" if video.displayed else "as it is stored"


def _spell(autoencoder: dict[str, Any]) -> str:
    source = f" from {autoencoder['source']}" if autoencoder["source"] else ""
    return f"{autoencoder['kind']}{source} (fingerprint {autoencoder['fingerprint'][:16]})"
