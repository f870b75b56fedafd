"""A latent cache holds what the autoencoder gives of the frames that decoding gives, whoever wrote it and however often."""

import json
import multiprocessing
import os
import pickle
import signal
from dataclasses import replace

import pytest
import torch
from data.caches import SIZE, contents, shard_times, write
from diffusers import AutoencoderKL
from einops import rearrange
from PIL import Image
from videos.made import moving_pictures, write_video

from sparsevid.autoencoder.kl import KLAutoencoder
from sparsevid.autoencoder.linear import LinearAutoencoder
from sparsevid.autoencoder.pixels import Pixels
from sparsevid.data.clips import ClipDataset
from sparsevid.data.latents.read import LatentCache, LatentFrames
from sparsevid.data.sources import VideoFrames
from sparsevid.data.tree.clip_rule import ClipRule
from sparsevid.data.tree.manifest import build_manifest
from sparsevid.data.tree.rules import TreeRules
from sparsevid.system import shards
from sparsevid.system.shards import plan_shards
from sparsevid.videos.read import DecodeError, describe_decoder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Two video files of classes a and b, and a frame folder that is two videos, since its numbering has a gap."""
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "a" / "long.mp4", frames=40)
    write_video(root / "b" / "xvid.avi", "mpeg4", frames=25, b_frames=2)
    (root / "b" / "stills").mkdir()
    for i, frame in enumerate(moving_pictures(15, 40, 30)):
        Image.fromarray(frame).save(root / "b" / "stills" / f"{i if i < 6 else i + 100:05d}.png")
    manifest = build_manifest(root, TreeRules(label_rule="folder", split_at_gaps=True))
    assert sorted((video.first, video.frames) for video in manifest.videos) == [(0, 6), (0, 25), (0, 40), (6, 9)]
    return manifest


@pytest.fixture(scope="module")
def kl(tmp_path_factory):
    """A small randomly initialised autoencoder of factor 2."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return KLAutoencoder.from_source(str(folder), frames_at_once=8)


@pytest.fixture(scope="module")
def pixels_cache(manifest, tmp_path_factory):
    """Read only."""
    return write(tmp_path_factory.mktemp("caches") / "pixels", manifest)


def encoded(autoencoder, frames):
    """Moments (T,M,h,w) of frames (T,C,H,W)."""
    return rearrange(autoencoder.moments(rearrange(frames, "t c h w -> 1 c t h w")), "1 m t h w -> t m h w")


@pytest.mark.parametrize("mirrored", [False, True])
def test_cached_pixels_are_the_decoded_frames(manifest, pixels_cache, mirrored):
    cached, decoded = LatentFrames(pixels_cache), VideoFrames(manifest.root, SIZE)
    for video in manifest.videos:
        for indices in ([*range(video.frames)], [video.frames - 1, 0, 3, 3], [2]):
            frames = cached.read(video, indices, mirrored)
            assert frames.dtype == torch.uint8
            assert torch.equal(frames, decoded.read(video, indices, mirrored))


def test_shards_say_what_decoded_them(manifest, tmp_path):
    cache = write(tmp_path, manifest)
    assert {shard.decoder for shard in cache.shards} == {describe_decoder("pyav")}
    values = json.loads((tmp_path / "cache.json").read_text())
    for shard in values["shards"]:
        del shard["decoder"]  # a cache of before
    (tmp_path / "cache.json").write_text(json.dumps(values))
    assert {shard.decoder for shard in LatentCache.open(tmp_path).shards} == {"not recorded"}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("float32", 1e-5)])
def test_cached_moments_are_those_of_the_decoded_frames(manifest, kl, dtype, tolerance, tmp_path):
    # Batches of 7 frames begin in one video and end in the next.
    cache = write(tmp_path, manifest, kl, dtype=dtype, batch_frames=7)
    cached, decoded = LatentFrames(cache), VideoFrames(manifest.root, SIZE)
    assert cache.shape == (8, 8, 12) and cache.frames == 80
    for video in manifest.videos:
        for mirrored in (False, True):
            moments = cached.read(video, range(video.frames), mirrored)
            expected = encoded(kl, decoded.read(video, range(video.frames), mirrored))
            assert moments.dtype == getattr(torch, dtype)
            torch.testing.assert_close(moments.float(), expected, rtol=tolerance, atol=tolerance)


def test_clips_are_drawn_from_the_cache_as_from_the_videos(manifest, pixels_cache):
    options = {"flip": True, "seed": 3, "images": 2}
    rule = ClipRule(4, 2)
    cached = ClipDataset(manifest, rule, LatentFrames(pixels_cache), **options)
    decoded = ClipDataset(manifest, rule, VideoFrames(manifest.root, SIZE), **options)
    for index in range(len(decoded)):
        clips = [cached[epoch, index]["clip"] for epoch in range(4)]
        assert all(torch.equal(clip, decoded[epoch, index]["clip"]) for epoch, clip in enumerate(clips))
        assert any(not torch.equal(clip, clips[0]) for clip in clips), "each epoch draws anew"


def test_what_is_read_is_no_view_of_the_cache(manifest, pixels_cache):
    frames, video = LatentFrames(pixels_cache), manifest.videos[0]
    before = frames.read(video, [0, 1, 2], False)
    frames.read(video, [0, 1, 2], False).zero_()
    assert before.any() and torch.equal(frames.read(video, [0, 1, 2], False), before)


def test_readers_travel_to_other_processes_and_keep_few_shards_open(manifest, pixels_cache, monkeypatch):
    monkeypatch.setattr(shards, "OPEN_SHARDS", 1)
    frames = LatentFrames(pixels_cache)
    keys = [(video, [i, 0], mirrored) for i in range(4) for video in manifest.videos for mirrored in (False, True)]
    expected = [frames.read(*key) for key in keys]
    again = pickle.loads(pickle.dumps(frames))
    assert all(torch.equal(again.read(*key), values) for key, values in zip(keys, expected, strict=True))


def test_plan_deals_whole_videos_in_order(manifest):
    for limit in (1, 60, 70, 200, 10_000):
        plan = plan_shards(manifest.videos, lambda video: 2 * video.frames, limit)
        rows = [sum(video.frames for video in shard.items) for shard in plan]
        assert [video for shard in plan for video in shard.items] == list(manifest.videos)
        assert all(2 * count <= limit or len(shard.items) == 1 for shard, count in zip(plan, rows, strict=True))
        for count, following in zip(rows, plan[1:], strict=False):
            assert 2 * (count + following.items[0].frames) > limit, "no shard is cut short"


def test_threads_and_batches_do_not_change_the_files(manifest, pixels_cache, tmp_path):
    assert len(pixels_cache.shards) > 1
    write(tmp_path / "again", manifest, workers=1, batch_frames=3)
    assert contents(tmp_path / "again") == contents(pixels_cache.folder)


class Killed(Pixels):
    """Pixels whose process is killed while it encodes the third batch."""

    def moments(self, clips):
        self.left = getattr(self, "left", 3) - 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().moments(clips)


@pytest.mark.slow
def test_a_killed_writer_goes_on(manifest, pixels_cache, tmp_path):
    # Spawned, not forked: another test of this process may have joined a group.
    process = multiprocessing.get_context("spawn").Process(
        target=write, args=(tmp_path, manifest, Killed()), kwargs={"batch_frames": 40}
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(FileNotFoundError, match="begun and not finished: give the same command again"):
        LatentCache.open(tmp_path)
    finished = shard_times(tmp_path)
    assert 0 < len(finished) < len(pixels_cache.shards)
    (tmp_path / "shards" / ".shard-00001.safetensors.0a1b2c3d.partial").write_bytes(b"cut short")
    write(tmp_path, manifest)
    assert contents(tmp_path) == contents(pixels_cache.folder)
    assert finished.items() <= shard_times(tmp_path).items(), "finished shards are kept"


@pytest.mark.parametrize("damage", ["byte", "record", "missing", "size"])
def test_a_damaged_shard_is_made_again(manifest, pixels_cache, damage, tmp_path):
    cache = write(tmp_path, manifest)
    path = tmp_path / "shards" / cache.shards[1].name
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    if damage == "byte":
        path.write_bytes(content)
        assert LatentCache.open(tmp_path) == cache, "opening compares sizes alone"
        with pytest.raises(ValueError, match=f"{path.name} does not have its recorded checksum"):
            cache.verify()
    elif damage == "record":
        path.with_suffix(".json").write_text("{")
    elif damage == "missing":
        path.unlink()
        with pytest.raises(ValueError, match=f"{path.name} is missing"):
            LatentCache.open(tmp_path)
    else:
        path.write_bytes(content[:-1])
        with pytest.raises(ValueError, match=f"{path.name} has {len(content) - 1} bytes instead of {len(content)}"):
            LatentCache.open(tmp_path)
        lost = next(video for video in manifest.videos if video.path == cache.shards[1].videos[0].path)
        with pytest.raises(ValueError, match="bytes instead of"):
            LatentFrames(cache).read(lost, [0], False)
    write(tmp_path, manifest).verify()
    assert contents(tmp_path) == contents(pixels_cache.folder)


def test_a_cache_fits_selections_and_other_labels(manifest, pixels_cache):
    part = replace(manifest, videos=manifest.videos[1:3])
    relabelled = replace(manifest, videos=tuple(replace(video, label=0, split="train") for video in manifest.videos))
    for fitting in (manifest, part, relabelled):
        pixels_cache.check(fitting, Pixels(), SIZE, flip=True)
        pixels_cache.check(fitting, Pixels(), SIZE, flip=False)


def test_a_cache_that_does_not_fit_says_all_that_differs(manifest, kl, tmp_path):
    cache = write(tmp_path, replace(manifest, videos=manifest.videos[:3]), flip=False)
    changed = replace(manifest.videos[1], bytes=7)
    videos = (manifest.videos[0], changed, *manifest.videos[2:])
    with pytest.raises(ValueError) as error:
        cache.check(replace(manifest, videos=videos), kl, (32, 32), flip=True)
    text = str(error.value)
    assert "autoencoder: the cache has pixels (fingerprint" in text and f"the run needs kl from {kl.source}" in text
    assert "size: the cache has 16×24, the run needs 32×32" in text
    assert "flip: the cache has no mirrored frames, the run needs mirrored frames" in text
    assert "2 of the run's 4 videos as they are now, the run needs all: the first" in text
    assert f"that is new or has changed is {changed.path}" in text
    assert f"--autoencoder kl --source {kl.source} --size 32 32 --flip" in text


def test_no_cache_fits_an_autoencoder_that_each_run_fits_for_itself(manifest, pixels_cache):
    linear = LinearAutoencoder.fit(torch.randint(0, 255, (1, 3, 4, 16, 16), dtype=torch.uint8), patch=2, channels=2)
    with pytest.raises(ValueError, match="no cache can: of the autoencoder linear, each run fits its own") as error:
        pixels_cache.check(manifest, linear, SIZE, flip=True)
    assert "encode_latents" not in str(error.value) and "data.latents=null" in str(error.value)


def test_readers_say_what_the_cache_does_not_hold(manifest, tmp_path):
    frames = LatentFrames(write(tmp_path, manifest, flip=False))
    video = manifest.videos[0]
    with pytest.raises(ValueError, match="no mirrored frames: encode the data with --flip"):
        frames.read(video, [0], True)
    with pytest.raises(ValueError, match="holds no such video: other.mp4"):
        frames.read(replace(video, path="other.mp4"), [0], False)
    with pytest.raises(ValueError, match=f"holds {video.frames} frames of it: .* has 3, from 0 on"):
        frames.read(replace(video, frames=3), [0], False)
    for index in (-1, video.frames):
        with pytest.raises(IndexError, match=f"frame {index} asked for, there are {video.frames}"):
            frames.read(video, [0, index], False)


def test_a_folder_is_not_mixed(manifest, tmp_path):
    write(tmp_path, manifest)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(size: \[16, 24\] there, \[16, 16\] asked for; flip: True there"):
        write(tmp_path, manifest, size=(16, 16), flip=False)
    assert contents(tmp_path) == before


def test_arguments_are_checked(manifest, kl, tmp_path):
    linear = LinearAutoencoder.fit(torch.randint(0, 255, (1, 3, 4, 16, 16), dtype=torch.uint8), patch=2, channels=2)
    for options, message in [
        ({"autoencoder": linear}, "autoencoder linear cannot be cached: each run fits its own; accepted: kl, temporal, pixels"),
        ({"autoencoder": kl, "dtype": "uint8"}, "accepted: float16, float32"),
        ({"dtype": "float16"}, "accepted: uint8"),
        ({"autoencoder": kl, "size": (15, 16)}, "size 15×16: both must be multiples of 2"),
        ({"batch_frames": 0}, "count from 1"),
        ({"workers": 0}, "count from 1"),
        ({"size": (1 << 20, 1 << 20)}, "MB are to be written, and .* MB are free"),
    ]:
        with pytest.raises(ValueError, match=message):
            write(tmp_path, manifest, **options)
    assert not list(tmp_path.iterdir())


def test_a_video_that_cannot_be_decoded_is_named(tmp_path):
    root = tmp_path / "videos"
    path = write_video(root / "v.mp4", frames=120)
    manifest = build_manifest(root)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 800] = bytes(800)
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"v\.mp4: .*run `sparsevid prepare_data CARD --full-scan`"):
        write(tmp_path / "cache", manifest)
    with pytest.raises(FileNotFoundError, match="no cache.json"):
        LatentCache.open(tmp_path / "cache")


def test_moments_beyond_the_data_type_are_an_error(manifest, kl, tmp_path):
    one = replace(manifest, videos=manifest.videos[:1])
    large = KLAutoencoder(AutoencoderKL.from_pretrained(kl.source), kl.source)
    large.vae.quant_conv.bias += 1e6
    with pytest.raises(ValueError, match="moments are not finite in float16; float32 holds larger ones"):
        write(tmp_path, one, large)
    assert write(tmp_path, one, large, dtype="float32").dtype == "float32"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "another format; accepted: 1"),
        ({"dtype": "int4"}, "accepted: float16, float32, uint8"),
        ({"size": 3}, "does not describe"),
        ({"surplus": 3}, "surplus"),
        ({"shards": [{"name": "../../x.safetensors", "bytes": 1, "sha256": "", "videos": []}]}, "not the name of a shard"),
    ],
)
def test_cache_files_are_checked(pixels_cache, change, message, tmp_path):
    values = json.loads((pixels_cache.folder / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps(values | change))
    with pytest.raises(ValueError, match=message):
        LatentCache.open(tmp_path)


def test_shards_of_another_shape_are_an_error(manifest, pixels_cache):
    wrong = replace(pixels_cache, shape=(3, 8, 8))
    with pytest.raises(ValueError, match=r"holds \[\d+, 3, 16, 24\], cache.json says \[\d+, 3, 8, 8\]"):
        LatentFrames(wrong).read(manifest.videos[0], [0], False)
