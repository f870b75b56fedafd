"""A clip is a function of (seed, epoch, video) alone, lies inside its video, and equals the frames it names."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from data.classes import write_classes
from einops import rearrange
from torch.utils.data import DataLoader
from videos.made import sequential, write_video

from sparsevid.data.clips import NO_LABEL, ClipDataset, fixed_clips
from sparsevid.data.sources import MemoryFrames, VideoFrames
from sparsevid.data.transforms import resize_crop
from sparsevid.data.tree.clip_rule import ClipRule, clip_indices, counted_frames, own_frames, valid_starts
from sparsevid.data.tree.manifest import Manifest, build_manifest
from sparsevid.data.tree.rules import TreeRules
from sparsevid.videos.read import DecodeError

RULE = ClipRule(frames=4, stride=3)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "a" / "long.mp4", frames=40)
    write_video(root / "a" / "exact.mkv", frames=RULE.span, size=(90, 40))
    write_video(root / "b" / "xvid.avi", "mpeg4", frames=25, b_frames=2)
    write_video(root / "b" / "short.mp4", frames=RULE.span - 1)
    return build_manifest(root, TreeRules(label_rule="folder"))


def clips(manifest: Manifest, rule: ClipRule = RULE, size=(16, 16), backend="pyav", **options) -> ClipDataset:
    """Clips decoded from the videos."""
    return ClipDataset(manifest, rule, VideoFrames(manifest.root, size, backend), **options)


def clips_in_memory(manifest: Manifest, rule: ClipRule = RULE, size=(16, 16), **options) -> ClipDataset:
    """The same clips out of memory."""
    return ClipDataset(manifest, rule, MemoryFrames(manifest, size), **options)


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


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"stride": 0}, {"rule": "latte"}, {"short": "pad"}, {"target_fps": -1.0}])
def test_rules_are_checked(wrong):
    with pytest.raises(ValueError, match="frames and stride from 1|accepted: stride|accepted: exclude|rate above 0"):
        ClipRule(**wrong)


def test_clips_are_the_frames_they_name(manifest):
    dataset = clips(manifest, size=(16, 24))
    for index, video in enumerate(dataset.videos):
        frames = [torch.from_numpy(frame) for frame in sequential(manifest.root / video.path)]
        for epoch in range(3):
            item = dataset[epoch, index]
            chosen = torch.stack([frames[i] for i in clip_indices(RULE, item["start"])])
            expected = resize_crop(rearrange(chosen, "t h w c -> t c h w"), (16, 24))
            assert torch.equal(item["clip"], rearrange(expected, "t c h w -> c t h w"))
            assert (item["label"], item["video"]) == (video.label, index)


def test_short_videos_are_excluded_and_counted(manifest):
    dataset = clips(manifest)
    assert (len(dataset), dataset.excluded) == (3, 1)
    assert all(video.frames >= RULE.span for video in dataset.videos)
    with pytest.raises(ValueError, match="none of 4 videos .* span 46 frames, the longest video has 40"):
        clips(manifest, ClipRule())


def test_draws_depend_on_seed_epoch_and_video_alone(manifest):
    keys = [(epoch, index) for epoch in range(4) for index in range(3)]
    one, other = (clips(manifest, flip=True, seed=5) for _ in range(2))
    reference = {key: one[key] for key in keys}
    random.Random(0).shuffle(keys)
    torch.manual_seed(99)
    assert all(same(other[key], reference[key]) for key in keys)
    assert same(one[2], one[0, 2]), "an index alone is epoch 0"
    reseeded = clips(manifest, flip=True, seed=6)
    assert any(not same(reseeded[key], reference[key]) for key in keys)


def test_worker_processes_do_not_change_clips(manifest):
    dataset = clips(manifest, flip=True)
    keys = [(0, 0), (1, 2), (2, 1), (0, 2)]
    for batch, key in zip(
        DataLoader(dataset, sampler=keys, batch_size=1, num_workers=2, multiprocessing_context="forkserver"), keys, strict=True
    ):
        assert torch.equal(batch["clip"][0], dataset[key]["clip"])


def test_all_starts_and_both_directions_are_drawn(manifest):
    dataset = clips_in_memory(manifest, flip=True)
    plain = clips_in_memory(manifest)
    index = next(i for i, video in enumerate(dataset.videos) if video.frames == 25)
    items = [dataset[epoch, index] for epoch in range(300)]
    assert {item["start"] for item in items} == set(range(25 - RULE.span + 1))
    mirrored = sum(not torch.equal(item["clip"], plain[epoch, index]["clip"]) for epoch, item in enumerate(items))
    assert 100 < mirrored < 200
    for epoch, item in enumerate(items[:20]):
        straight = plain[epoch, index]["clip"]
        assert torch.equal(item["clip"], straight) or torch.equal(item["clip"], straight.flip(-1))


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_clips_out_of_memory_equal_decoded_ones(manifest, backend):
    options = {"size": (16, 20), "flip": True, "seed": 3}
    kept, decoded = clips_in_memory(manifest, **options), clips(manifest, backend=backend, **options)
    assert all(same(kept[epoch, i], decoded[epoch, i]) for epoch in range(3) for i in range(len(decoded)))


def test_clips_out_of_memory_equal_decoded_ones_of_real_videos(real_videos):
    manifest = build_manifest(real_videos)
    options = {"rule": ClipRule(8, 4), "size": (48, 48), "flip": True}
    kept, decoded = clips_in_memory(manifest, **options), clips(manifest, **options)
    assert all(same(kept[1, i], decoded[1, i]) for i in range(4))


def test_clips_are_no_views_of_the_memory(manifest):
    dataset = clips_in_memory(manifest)
    before = dataset[0, 0]["clip"].clone()
    dataset[0, 0]["clip"].zero_()
    assert torch.equal(dataset[0, 0]["clip"], before)


def test_no_label(manifest):
    dataset = clips(build_manifest(manifest.root))
    assert dataset[0]["label"] == NO_LABEL == -1


@pytest.mark.parametrize("key", [3, -1, (0, 3)])
def test_no_such_video(manifest, key):
    with pytest.raises(IndexError, match="the dataset has 3"):
        clips(manifest)[key]


def test_damage_is_drawn_around_the_same_way_each_time(tmp_path):
    path = write_video(tmp_path / "v.mp4", frames=120)
    dataset, again = (clips(build_manifest(tmp_path)) for _ in range(2))
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


def test_what_cannot_be_read_is_replaced_named_and_bounded(tmp_path):
    for name in "abc":
        write_video(tmp_path / f"{name}.mp4", frames=20)
    manifest = build_manifest(tmp_path)
    intact = clips(manifest)
    before = [intact[epoch, 1] for epoch in range(6)]
    (tmp_path / "a.mp4").write_bytes(b"gone\n" * 100)
    dataset, again = clips(manifest), clips(manifest)
    items = [dataset[epoch, 0] for epoch in range(6)]
    assert all(item["redraws"] > 0 and item["failed"] == 0 and item["video"] in (1, 2) for item in items)
    assert {item["failed"] for item in before} == {-1}
    assert all(same(item, again[epoch, 0]) for epoch, item in enumerate(items)), "redraws are seeded too"
    assert all(same(dataset[epoch, 1], item) for epoch, item in enumerate(before)), "others are as before"
    with pytest.raises(DecodeError, match="not readable"):
        clips_in_memory(manifest)
    for name in "bc":
        (tmp_path / f"{name}.mp4").write_bytes(b"gone\n" * 100)
    with pytest.raises(DecodeError, match="a clip and 10 others in its place failed, the last: not readable"):
        dataset[0]


def test_latte_linspace_is_not_a_stride():
    rule = ClipRule(rule="latte_linspace")
    assert rule.span == 48
    expected = [0, 3, 6, 9, 12, 15, 18, 21, 25, 28, 31, 34, 37, 40, 43, 47]
    assert clip_indices(rule, 0) == expected
    assert clip_indices(rule, 11) == [11 + i for i in expected]
    assert clip_indices(rule, 0) == np.linspace(0, 47, 16, dtype=int).tolist()
    assert list(valid_starts(rule, 47)) == [] and list(valid_starts(rule, 49)) == [0, 1]


@pytest.mark.parametrize("name", ["stride", "latte_linspace"])
@pytest.mark.parametrize("frames", range(1, 60))
def test_short_videos(name, frames):
    """Whatever the option: as many frames as asked for, all inside the video, in order; or no clip at all."""
    for short, needed in (("exclude", 46 if name == "stride" else 48), ("reduce_stride", 16), ("repeat_last", 1)):
        rule = ClipRule(rule=name, short=short)
        starts = valid_starts(rule, frames)
        assert bool(starts) == (frames >= needed)
        for start in starts:
            indices = clip_indices(rule, start, frames)
            assert len(indices) == 16 and indices == sorted(indices) and indices[0] >= 0 and indices[-1] < frames
            if short == "reduce_stride":
                assert len(set(indices)) == 16, "no frame twice"
            if frames >= rule.span:
                assert indices == clip_indices(rule, start), "a video that is long enough is read as ever"


def test_short_videos_of_real_files(manifest):
    short = next(i for i, video in enumerate(manifest.videos) if video.frames == RULE.span - 1)
    frames = [torch.from_numpy(frame) for frame in sequential(manifest.root / manifest.videos[short].path)]
    for option, indices in (("reduce_stride", [0, 2, 4, 6]), ("repeat_last", [0, 3, 6, 8])):
        dataset = clips(manifest, ClipRule(4, 3, short=option), size=(48, 112))
        assert dataset.excluded == 0
        assert torch.equal(dataset[short]["clip"], rearrange(torch.stack([frames[i] for i in indices]), "t h w c -> c t h w"))


@pytest.mark.parametrize("target_fps", [5.0, 12.5, 25.0, 50.0])
def test_target_rate(manifest, target_fps):
    """Frame j of the rule is the one on show at j / target_fps seconds."""
    video = manifest.videos[0]
    rule = ClipRule(2, 1, target_fps=target_fps)
    count = counted_frames(rule, video)
    assert count == int((video.frames - 1) / 25 * target_fps + 1e-6) + 1
    own = own_frames(rule, video, range(count))
    assert own == [math.floor(j / target_fps * 25 + 1e-6) for j in range(count)]
    assert own[0] == 0 and own[-1] < video.frames


def test_target_rate_of_a_video_with_a_rate_that_varies(tmp_path):
    """The first second at 25 frames a second, then 5: at 5 a second every fifth frame, then every one."""
    times = [i / 25 for i in range(25)] + [1 + i / 5 for i in range(11)]
    write_video(tmp_path / "v.mp4", frames=len(times), times=times)
    manifest = build_manifest(tmp_path)
    assert manifest.notes.keys() == {"variable frame rate"}
    (video,) = manifest.videos
    rule = ClipRule(4, 1, target_fps=5.0)
    assert counted_frames(rule, video) == 16
    assert own_frames(rule, video, range(16)) == [0, 5, 10, 15, 20, *range(25, 36)]
    assert ClipRule(4, 1) != rule and len(clips(manifest, rule)[0]["clip"][0]) == 4


def test_stills_are_frames_of_other_videos(manifest):
    plain = clips(manifest, flip=True, seed=4)
    joint = clips(manifest, flip=True, seed=4, images=3)
    seen = set()
    for epoch in range(8):
        for index in range(len(joint)):
            item, alone = joint[epoch, index], plain[epoch, index]
            assert item["clip"].shape == (3, RULE.frames + 3, 16, 16) and item["label"].shape == (4,)
            assert torch.equal(item["clip"][:, : RULE.frames], alone["clip"]), "the clip is as without stills"
            assert item["label"][0] == alone["label"] and torch.equal(item["clip"], joint[epoch, index]["clip"])
            labels = {video.label for other, video in enumerate(joint.videos) if other != index}
            assert set(item["label"][1:].tolist()) <= labels
            seen |= {tuple(still.flatten().tolist()) for still in item["clip"][:, RULE.frames :].unbind(1)}
    assert len(seen) > 30, "stills are drawn anew for each epoch and clip"


def test_stills_need_other_videos(tmp_path):
    write_video(tmp_path / "v.mp4", frames=20)
    with pytest.raises(ValueError, match="2 stills of other videos asked for; there are 1 usable"):
        clips(build_manifest(tmp_path), images=2)


def test_fixed_clips(manifest):
    """All different; a smaller count is the beginning of a larger one; a function of the seed."""
    dataset = clips(manifest, seed=2)
    keys = fixed_clips(dataset, 7, seed=2)
    assert len(set(keys)) == 7 and {index for _, index in keys} == {0, 1, 2}
    assert all(fixed_clips(dataset, count, seed=2) == keys[:count] for count in range(1, 8))
    orders = {tuple(fixed_clips(clips(manifest, seed=seed), 7, seed)) for seed in range(20)}
    assert len(orders) > 3
    with pytest.raises(ValueError, match="seed 1 asked from a dataset of seed 2"):
        fixed_clips(dataset, 7, seed=1)
    with pytest.raises(ValueError, match="count must be 1 or more"):
        fixed_clips(dataset, 0, seed=2)


@pytest.mark.parametrize("videos", [[5] * 12, [1, 7, 30]], ids=["equal classes", "unequal classes"])
def test_fixed_clips_of_sorted_classes_are_even_over_them_and_drawn_inside(tmp_path, videos):
    manifest = build_manifest(write_classes(tmp_path, videos), TreeRules(label_rule="folder"))
    dataset = ClipDataset(manifest, ClipRule(frames=2, stride=1), VideoFrames(manifest.root, (8, 8)), seed=0)
    keys = fixed_clips(dataset, 60, seed=0)
    assert len(set(keys)) == 60
    for count in (len(videos), 25, 60):
        taken = Counter(dataset.videos[index].label for _, index in keys[:count])
        assert len(taken) == len(videos) and max(taken.values()) - min(taken.values()) <= 1
    few = [fixed_clips(ClipDataset(manifest, dataset.rule, dataset.source, seed=seed), 2, seed) for seed in range(30)]
    assert {dataset.videos[index].label for each in few for _, index in each} == set(range(len(videos)))
    last = [index for index, video in enumerate(dataset.videos) if video.label == len(videos) - 1]
    found = [index for _, index in keys if index in last]
    assert found[: len(last)] != last[: len(found)], "inside a class, videos are drawn too"
    assert Counter(found).most_common(1)[0][1] <= -(-len(found) // len(last)), "each video once before any gives a second clip"
    epochs = [epoch for epoch, index in keys if index == found[0]]
    assert epochs == list(range(len(epochs)))


def test_fixed_clips_without_classes_are_of_all_videos(tmp_path):
    """A tree whose folders are no classes, sorted all the same."""
    manifest = build_manifest(write_classes(tmp_path, [5] * 12))
    dataset = ClipDataset(manifest, ClipRule(frames=2, stride=1), VideoFrames(manifest.root, (8, 8)), seed=0)
    assert len({index for _, index in fixed_clips(dataset, 60, 0)}) == 60
    assert len({index // 5 for _, index in fixed_clips(dataset, 24, 0)}) > 6
