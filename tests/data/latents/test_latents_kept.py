"""Writing into a folder that holds shards: what is whole and wanted stays, and what is made is as if made at once."""

import multiprocessing
from dataclasses import replace
from datetime import timedelta

import pytest
import torch.distributed as dist
from data.caches import contents, same_frames, shard_times, write
from videos.made import write_video

from sparsevid.autoencoder.pixels import Pixels
from sparsevid.data.tree.manifest import build_manifest, open_manifest
from sparsevid.videos.read import DecodeError


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Four videos; a small shard holds the first two, or one of the others."""
    root = tmp_path_factory.mktemp("videos")
    for name, frames in {"a": 9, "b": 6, "c": 40, "d": 25}.items():
        write_video(root / f"{name}.mp4", frames=frames)
    return build_manifest(root)


@pytest.fixture(scope="module")
def pixels_cache(manifest, tmp_path_factory):
    """Read only: written at once."""
    return write(tmp_path_factory.mktemp("caches") / "pixels", manifest)


class Unfit(Pixels):
    """Pixels that fail."""

    def moments(self, clips):
        raise ValueError("moments are not finite")


@pytest.fixture
def damaged(tmp_path, monkeypatch):
    """A folder of five videos of which the fourth, of 120 frames, is damaged inside."""
    monkeypatch.setenv("SPARSEVID_CACHE", str(tmp_path / "manifests"))
    for name, frames in {"a": 9, "b": 12, "c": 20, "d": 120, "e": 9}.items():
        write_video(tmp_path / "videos" / f"{name}.mp4", frames=frames)
    path = tmp_path / "videos" / "d.mp4"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 800] = bytes(800)
    path.write_bytes(content)
    return tmp_path / "videos"


def test_a_damaged_video_costs_only_its_own_shard(damaged, tmp_path):
    out = tmp_path / "cache"
    with pytest.raises(DecodeError, match=r"d\.mp4.*prepare_data CARD --full-scan.*same command again, which keeps"):
        write(out, open_manifest(damaged))
    written = shard_times(out)
    assert written
    scanned = open_manifest(damaged, full_scan=True)
    assert [video.path for video in scanned.videos] == ["a.mp4", "b.mp4", "c.mp4", "e.mp4"]
    cache = write(out, open_manifest(damaged))
    assert written.items() <= shard_times(out).items() and not list(out.rglob("*.partial"))
    assert same_frames(cache, write(tmp_path / "fresh", scanned), scanned.videos)


@pytest.mark.parametrize("damage_too", [False, True])
def test_other_videos_cost_the_shards_that_hold_what_is_gone(manifest, pixels_cache, damage_too, tmp_path):
    """What is new, has changed or stood beside what is gone is written; nothing is left of what is of no use."""
    first = manifest.videos[:3]
    cache = write(tmp_path, replace(manifest, videos=first), shard_bytes=1)
    before, names = shard_times(tmp_path), {shard.videos[0].path: shard.name for shard in cache.shards}
    assert len(before) == 3
    if damage_too:
        (tmp_path / "shards" / names[first[0].path]).write_bytes(b"cut short")
    with pytest.raises(ValueError, match="moments are not finite"):  # a writing that fails takes nothing away
        write(tmp_path, replace(manifest, videos=manifest.videos[1:]), Unfit(), shard_bytes=1)
    assert (tmp_path / "cache.json").exists() != damage_too and before.keys() <= shard_times(tmp_path).keys()
    wanted = replace(manifest, videos=manifest.videos[1:])
    cache = write(tmp_path, wanted, shard_bytes=1)
    after = shard_times(tmp_path)
    assert len(after) == 3 and len(before.items() & after.items()) == 2
    assert [shard.videos[0].path for shard in cache.shards] == [video.path for video in wanted.videos]
    assert len(list((tmp_path / "shards").iterdir())) == 6
    cache.verify()
    assert same_frames(cache, pixels_cache, wanted.videos)


def test_a_shard_with_two_videos_is_given_up_with_either(manifest, pixels_cache, tmp_path):
    write(tmp_path, manifest, shard_bytes=1 << 30)
    fewer = replace(manifest, videos=manifest.videos[:1] + manifest.videos[2:])
    cache = write(tmp_path, fewer, shard_bytes=1 << 30)
    assert [shard.rows for shard in cache.shards] == [sum(video.frames for video in fewer.videos)]
    assert len(shard_times(tmp_path)) == 1 and same_frames(cache, pixels_cache, fewer.videos)


def write_as_rank(rank, store, folder, manifest):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(minutes=9))
    write(folder, manifest)
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_agree_on_what_is_there(manifest, pixels_cache, tmp_path):
    cache = write(tmp_path / "cache", manifest)
    kept, *lost = sorted(shard.name for shard in cache.shards)
    for name in lost:
        (tmp_path / "cache" / "shards" / name).write_bytes(b"cut short")
    before = shard_times(tmp_path / "cache")[kept]
    context = multiprocessing.get_context("spawn")  # another test of this process may have joined a group
    arguments = (tmp_path / "store", tmp_path / "cache", manifest)
    ranks = [context.Process(target=write_as_rank, args=(rank, *arguments)) for rank in range(2)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(timeout=580)
    assert lost and [each.exitcode for each in ranks] == [0, 0] and shard_times(tmp_path / "cache")[kept] == before
    assert contents(tmp_path / "cache") == contents(pixels_cache.folder)


def test_a_cache_of_other_videos_alone_is_left_alone(manifest, tmp_path):
    one, two = (replace(manifest, videos=videos) for videos in (manifest.videos[:2], manifest.videos[2:]))
    write(tmp_path, one)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="is a cache of other videos alone: give another folder"):
        write(tmp_path, two)
    assert contents(tmp_path) == before
