"""Writing small latent caches, and comparing them."""

import torch

from sparsevid.autoencoder.pixels import Pixels
from sparsevid.data.latents.read import LatentFrames
from sparsevid.data.latents.write import write_cache

SIZE = (16, 24)
RULE = {"frames": 4, "stride": 3}
SMALL_SHARDS = 60_000  # bytes: of pixels at SIZE, mirrored too, one long video or two short ones


def write(folder, manifest, autoencoder=None, size=SIZE, flip=True, **options):
    """Write a cache in small shards, of pixels unless told."""
    options = {"rule_record": RULE, "shard_bytes": SMALL_SHARDS, "workers": 2} | options
    return write_cache(folder, manifest, autoencoder or Pixels(), size, flip, **options)


def contents(folder):
    """Every file below a folder: path → bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def shard_times(folder):
    """When each shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "shards").glob("*.safetensors")}


def same_frames(cache, other, videos):
    """Whether two caches give the same frames of these videos, mirrored ones too."""
    one, two = LatentFrames(cache), LatentFrames(other)
    return all(
        torch.equal(one.read(video, range(video.frames), mirrored), two.read(video, range(video.frames), mirrored))
        for video in videos
        for mirrored in (False, True)
    )
