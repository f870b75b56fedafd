"""A clip is a function of (seed, epoch, video) alone, lies inside its video, and equals the frames it names."""

import random

import pytest
import torch
from data.videos import sequential, write_video
from einops import rearrange
from torch.utils.data import DataLoader

from sparsevid.data.clips import NO_LABEL, ClipDataset, ClipRule, clip_indices, fixed_clips, valid_starts
from sparsevid.data.decode import DecodeError
from sparsevid.data.manifest import build_manifest
from sparsevid.data.transforms import resize_crop

RULE = ClipRule(frames=4, stride=3)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "a" / "long.mp4", frames=40)
    write_video(root / "a" / "exact.mkv", frames=RULE.span, size=(90, 40))
    write_video(root / "b" / "xvid.avi", "mpeg4", frames=25, b_frames=2)
    write_video(root / "b" / "short.mp4", frames=RULE.span - 1)
    return build_manifest(root, label_rule="folder")


def same(one, other):
    return torch.equal(one["clip"], other["clip"]) and all(one[k] == other[k] for k in ("label", "video", "start"))


@pytest.mark.parametrize(("frames", "stride", "span"), [(16, 3, 46), (8, 4, 29), (1, 9, 1), (5, 1, 5)])
def test_span(frames, stride, span):
    rule = ClipRule(frames, stride)
    assert rule.span == span
    assert clip_indices(rule, 7)[0] == 7 and clip_indices(rule, 7)[-1] == 7 + span - 1
    assert len(clip_indices(rule, 0)) == frames


def test_both_ends_are_valid_starts():
    assert list(valid_starts(RULE, RULE.span - 1)) == []
    assert list(valid_starts(RULE, RULE.span)) == [0]
    starts = valid_starts(RULE, 30)
    assert clip_indices(RULE, starts[0])[0] == 0 and clip_indices(RULE, starts[-1])[-1] == 29


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"stride": 0}, {"rule": "latte"}])
def test_rules_are_checked(wrong):
    with pytest.raises(ValueError, match="frames and stride from 1|accepted: stride"):
        ClipRule(**wrong)


def test_clips_are_the_frames_they_name(manifest):
    dataset = ClipDataset(manifest, RULE, (16, 24))
    for index, video in enumerate(dataset.videos):
        frames = [torch.from_numpy(frame) for frame in sequential(manifest.root / video.path)]
        for epoch in range(3):
            item = dataset[epoch, index]
            chosen = torch.stack([frames[i] for i in clip_indices(RULE, item["start"])])
            expected = resize_crop(rearrange(chosen, "t h w c -> t c h w"), (16, 24))
            assert torch.equal(item["clip"], rearrange(expected, "t c h w -> c t h w"))
            assert (item["label"], item["video"]) == (video.label, index)


def test_short_videos_are_excluded_and_counted(manifest):
    dataset = ClipDataset(manifest, RULE, (16, 16))
    assert (len(dataset), dataset.excluded) == (3, 1)
    assert all(video.frames >= RULE.span for video in dataset.videos)
    with pytest.raises(ValueError, match="none of 4 videos .* span 46 frames, the longest video has 40"):
        ClipDataset(manifest, ClipRule(), (16, 16))


def test_draws_depend_on_seed_epoch_and_video_alone(manifest):
    keys = [(epoch, index) for epoch in range(4) for index in range(3)]
    one, other = (ClipDataset(manifest, RULE, (16, 16), flip=True, seed=5) for _ in range(2))
    reference = {key: one[key] for key in keys}
    random.Random(0).shuffle(keys)
    torch.manual_seed(99)
    assert all(same(other[key], reference[key]) for key in keys)
    assert same(one[2], one[0, 2]), "an index alone is epoch 0"
    reseeded = ClipDataset(manifest, RULE, (16, 16), flip=True, seed=6)
    assert any(not same(reseeded[key], reference[key]) for key in keys)


def test_worker_processes_do_not_change_clips(manifest):
    dataset = ClipDataset(manifest, RULE, (16, 16), flip=True)
    keys = [(0, 0), (1, 2), (2, 1), (0, 2)]
    for batch, key in zip(DataLoader(dataset, sampler=keys, batch_size=1, num_workers=2), keys, strict=True):
        assert torch.equal(batch["clip"][0], dataset[key]["clip"])


def test_all_starts_and_both_directions_are_drawn(manifest):
    dataset = ClipDataset(manifest, RULE, (16, 16), flip=True, cache_frames=True)
    plain = ClipDataset(manifest, RULE, (16, 16), cache_frames=True)
    index = next(i for i, video in enumerate(dataset.videos) if video.frames == 25)
    items = [dataset[epoch, index] for epoch in range(300)]
    assert {item["start"] for item in items} == set(range(25 - RULE.span + 1))
    mirrored = sum(not torch.equal(item["clip"], plain[epoch, index]["clip"]) for epoch, item in enumerate(items))
    assert 100 < mirrored < 200
    for epoch, item in enumerate(items[:20]):
        straight = plain[epoch, index]["clip"]
        assert torch.equal(item["clip"], straight) or torch.equal(item["clip"], straight.flip(-1))


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_cached_clips_equal_decoded_ones(manifest, backend):
    options = {"size": (16, 20), "flip": True, "seed": 3, "backend": backend}
    cached, decoded = (ClipDataset(manifest, RULE, cache_frames=c, **options) for c in (True, False))
    assert all(same(cached[epoch, i], decoded[epoch, i]) for epoch in range(3) for i in range(len(decoded)))


def test_cached_clips_equal_decoded_ones_of_real_videos(real_videos):
    manifest = build_manifest(real_videos)
    rule = ClipRule(8, 4)
    cached, decoded = (ClipDataset(manifest, rule, (48, 48), flip=True, cache_frames=c) for c in (True, False))
    assert all(same(cached[1, i], decoded[1, i]) for i in range(4))


def test_cached_clips_are_no_views_of_the_cache(manifest):
    dataset = ClipDataset(manifest, RULE, (16, 16), cache_frames=True)
    before = dataset[0, 0]["clip"].clone()
    dataset[0, 0]["clip"].zero_()
    assert torch.equal(dataset[0, 0]["clip"], before)


def test_no_label(manifest):
    dataset = ClipDataset(build_manifest(manifest.root), RULE, (16, 16))
    assert dataset[0]["label"] == NO_LABEL == -1


@pytest.mark.parametrize("key", [3, -1, (0, 3)])
def test_no_such_video(manifest, key):
    with pytest.raises(IndexError, match="the dataset has 3"):
        ClipDataset(manifest, RULE, (16, 16))[key]


def test_damage_is_drawn_around_the_same_way_each_time(tmp_path):
    path = write_video(tmp_path / "v.mp4", frames=120)
    dataset, again = (ClipDataset(build_manifest(tmp_path), RULE, (16, 16), backend="pyav") for _ in range(2))
    intact = [dataset[epoch, 0] for epoch in range(30)]
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 800] = bytes(800)
    path.write_bytes(content)
    damaged = [dataset[epoch, 0] for epoch in range(30)]
    assert all(same(item, again[epoch, 0]) for epoch, item in enumerate(damaged))
    pairs = list(zip(damaged, intact, strict=True))
    kept = [same(item, before) for item, before in pairs if item["start"] == before["start"]]
    assert 0 < len(kept) < 30, "some clips are drawn again, and not all"
    assert all(kept)


def test_a_video_without_a_readable_clip_is_an_error_after_bounded_draws(tmp_path):
    write_video(tmp_path / "v.mp4", frames=20)
    manifest = build_manifest(tmp_path)
    (tmp_path / "v.mp4").write_bytes(b"gone\n" * 100)
    with pytest.raises(DecodeError, match="4 draws of a clip failed, the last: not readable"):
        ClipDataset(manifest, RULE, (16, 16))[0]
    with pytest.raises(DecodeError, match="not readable"):
        ClipDataset(manifest, RULE, (16, 16), cache_frames=True)


def test_fixed_clips(manifest):
    dataset = ClipDataset(manifest, RULE, (16, 16), seed=2)
    assert fixed_clips(dataset, 7, seed=2) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert fixed_clips(dataset, 5, seed=2) == fixed_clips(dataset, 7, seed=2)[:5]
    with pytest.raises(ValueError, match="seed 1 asked from a dataset of seed 2"):
        fixed_clips(dataset, 7, seed=1)
    with pytest.raises(ValueError, match="count must be 1 or more"):
        fixed_clips(dataset, 0, seed=2)
