"""Which clips a protocol takes, and that reading them gives those frames. Videos are arrays whose pixels say their number."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from videos.made import write_video

from sparsevid.data.transforms import resize_crop
from sparsevid.data.tree.clip_rule import ClipRule
from sparsevid.evaluation.clips.choice import clip_starts, take_evenly, video_order
from sparsevid.evaluation.clips.clip_readers import FRAMES_PER_READ
from sparsevid.evaluation.clips.clips import ClipGenerator, ProtocolClips, choose_clips
from sparsevid.evaluation.protocols import Protocol, load_protocol
from sparsevid.system.seeding import Purpose, keyed_generator
from sparsevid.videos.read import read_frames
from sparsevid.videos.write import write_frames, write_gif, write_mp4

DEMO = "sparsevid/fd-transnetv2-v1"
PUBLISHED = [
    *(f"stylegan-v/fvd2048_{name}" for name in ("16f", "128f", "128f_subsample8f")),
    *(f"latte/{name}" for name in ("ucf101", "sky", "taichi", "ffs")),
]


def small(name: str, **changes) -> Protocol:
    """A protocol of the package without resizing, for videos of a few pixels."""
    return dataclasses.replace(load_protocol(name), size=None, **changes)


def write_videos(root: Path, lengths: dict[str, int]) -> Path:
    """Arrays of 2×2 pixels; frame i has the value i."""
    for name, length in lengths.items():
        path = root / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.arange(length, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2).repeat(3, 3))
    return root


def frames_read(clips: ProtocolClips) -> dict[str, list[list[int]]]:
    """Video → the frames of its clips, by the pixels that were read."""
    read: dict[str, list[list[int]]] = {}
    for name, clip in clips:
        video, first = name.rsplit("@", 1)
        frames = clip[0, :, 0, 0].tolist()
        assert frames[0] == int(first) and clip.unique().tolist() == sorted(set(frames))
        read.setdefault(video.removesuffix(".npy"), []).append(frames)
    return read


def lengths_around(needed: int, others: int) -> dict[str, int]:
    """Videos one frame too short, just long enough, and longer; natural order of names is not that of their characters."""
    lengths = {"v10": needed, "v2": needed - 1, "v1": needed + 1, "b/v-3": needed, "b/v_3": needed + 5, "b-1": needed + 2}
    return lengths | {f"c{i}": needed + 3 * i for i in range(others)}


def public_rule(
    lengths: dict[str, int], protocol: Protocol, draw: Callable[[int, int], int], shuffle: Callable[[int], list[int]]
) -> dict[str, list[list[int]]]:
    """Frames by the words of the published code: short videos go, then the first N of sorted names, or N drawn, are taken."""
    length, stride = protocol.frames, protocol.real_stride
    natural = sorted(lengths, key=lambda name: (name.split("/")[0].rstrip("0123456789"), name.count("/"), len(name), name))
    kept = [name for name in natural if lengths[name] >= length * stride]
    number = {name: i for i, name in enumerate(kept)}
    order = sorted(kept) if protocol.name.startswith("stylegan-v") else [kept[i] for i in shuffle(len(kept))]
    taken = {}
    for name in order[: protocol.real_count]:
        offset = draw(number[name], lengths[name] - length * stride + stride)  # offsets 0 … this − 1
        taken[name] = [list(range(offset, offset + length * stride, stride))]
    return taken


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("count", [2048, 4])
def test_frames_are_those_of_the_published_rule_under_one_generator(tmp_path, name, count):
    protocol = small(name, real_count=count)
    lengths = lengths_around(protocol.frames * protocol.real_stride, others=4)

    def draw(video: int, choices: int) -> int:
        return int(torch.randperm(choices, generator=keyed_generator(Purpose.EVALUATION, protocol.seed, video))[0])

    def shuffle(videos: int) -> list[int]:
        return torch.randperm(videos, generator=keyed_generator(Purpose.EVALUATION, protocol.seed)).tolist()

    clips = choose_clips(write_videos(tmp_path, lengths), "real", protocol)
    assert frames_read(clips) == public_rule(lengths, protocol, draw, shuffle)
    assert "v2" not in frames_read(clips) and clips.origin["too_short"] == 1
    assert len(clips) == min(count, len(lengths) - 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_generated_clips_begin_at_frame_0_with_a_stride_of_their_own(tmp_path, name):
    protocol = small(name, fake_count=3)
    needed = protocol.frames * protocol.fake_stride
    clips = choose_clips(
        write_videos(tmp_path, {"s10": needed, "s9": needed + 1, "s1": needed, "s2": needed + 9}), "fake", protocol
    )
    expected = list(range(0, needed, protocol.fake_stride))
    assert frames_read(clips) == {name: [expected] for name in ("s1", "s10", "s2")}  # sorted by characters, then the first


def test_cd_fvd_takes_one_clip_of_every_real_video_and_2048_generated_ones(tmp_path):
    protocol = small("cd-fvd", fake_count=3)
    root = write_videos(tmp_path, {f"v{i}": 16 + i for i in range(6)})
    real = frames_read(choose_clips(root, "real", protocol))
    assert list(real) == [f"v{i}" for i in range(6)] and all(len(clips) == 1 for clips in real.values())
    fake = frames_read(choose_clips(root, "fake", protocol))
    assert len(fake) == 3
    starts = {choose_clips(root, "fake", protocol, seed=seed).ids for seed in range(8)}
    assert len(starts) > 1  # drawn, not the first


def test_all_clips_lie_side_by_side_wherever_they_begin(tmp_path):
    protocol = small("sparsevid/v1", frames=4, split="all")  # spans 10 frames
    root = write_videos(tmp_path, {"a": 9, "b": 10, "c": 19, "d": 35})
    for seed in range(3):
        read = frames_read(choose_clips(root, "real", protocol, seed=seed))
        assert {name: len(clips) for name, clips in read.items()} == {"b": 1, "c": 1, "d": 3}
        some = choose_clips(root, "real", protocol, seed=seed, limit=4)
        assert (some.origin["clips"], some.origin["intended"]) == (4, 5)
        for first, *clips in read.values():
            assert all(clip == [frame + 10 * (i + 1) for frame in first] for i, clip in enumerate(clips))
    generators = (torch.Generator().manual_seed(seed) for seed in range(60))
    firsts = {min(clip_starts(ClipRule(4, 3), 35, "all", generator)) for generator in generators}
    assert firsts == set(range(6))  # five frames are left over
    # A count that ends inside a turn takes no part of a video before the others.
    some = {clip_starts(ClipRule(1, 1), 4, "all", torch.Generator().manual_seed(seed), 1)[0] for seed in range(60)}
    assert some == {0, 1, 2, 3}


@pytest.mark.parametrize(("frames", "stride"), [(1, 1), (5, 1), (5, 3)])
def test_every_valid_start_is_drawn_both_ends_included(frames, stride):
    rule, length = ClipRule(frames, stride), (frames - 1) * stride + 4
    starts = {clip_starts(rule, length, "random", torch.Generator().manual_seed(seed), 1)[0] for seed in range(60)}
    assert starts == {0, 1, 2, 3}
    assert sorted(clip_starts(rule, length, "random", torch.Generator())) == [0, 1, 2, 3]
    assert clip_starts(rule, rule.span, "random", torch.Generator()) == [0]
    for start in ("random", "first", "all"):
        assert clip_starts(rule, rule.span - 1, start, torch.Generator()) == []


def test_turns_take_one_clip_of_every_video_before_a_second_of_any():
    starts = [[5, 1], [2], [9, 7, 8]]
    assert take_evenly([[2, 0, 1]], starts, 2) == [(0, 5), (2, 9)]
    assert take_evenly([[2, 0, 1]], starts, 4) == [(0, 5), (1, 2), (2, 7), (2, 9)]
    everything = [(video, start) for video, each in enumerate(starts) for start in sorted(each)]
    assert take_evenly([[0, 1, 2]], starts, None) == take_evenly([[2, 1, 0]], starts, 99) == everything
    assert take_evenly([[]], [], 3) == []


def test_an_order_holds_every_video_once():
    names = ["v2", "v10", "a/b", "a-b"]
    assert video_order(names, "spread", torch.Generator()) == [0, 1, 2, 3]
    assert [names[i] for i in video_order(names, "sorted", torch.Generator())] == ["a-b", "a/b", "v10", "v2"]
    drawn = {tuple(video_order(names, "random", torch.Generator().manual_seed(seed))) for seed in range(20)}
    assert len(drawn) > 10 and all(sorted(order) == [0, 1, 2, 3] for order in drawn)


def test_the_demo_protocol_still_takes_the_clips_it_took_first():
    """This list was printed before protocols had their present fields."""
    clips = choose_clips("demo", "real", load_protocol(DEMO), limit=12)
    assert clips.ids == (
        "bigbuckbunny.mp4@61", "bigbuckbunny.mp4@70", "bigbuckbunny.mp4@100", "bikes.mp4@60", "bikes.mp4@130", "bikes.mp4@185",
        "carphone_distorted.mp4@1", "carphone_distorted.mp4@52", "carphone_distorted.mp4@91", "carphone_pristine.mp4@21",
        "carphone_pristine.mp4@54", "carphone_pristine.mp4@66",
    )  # fmt: skip


def test_the_list_is_a_function_of_the_seed_and_fewer_clips_are_some_of_it():
    protocol = load_protocol(DEMO)
    clips = choose_clips("demo", "real", protocol, limit=20)
    assert clips.ids == choose_clips("demo", "real", protocol, limit=20).ids
    other = choose_clips("demo", "real", protocol, limit=20, seed=1)
    assert other.ids == choose_clips("demo", "real", dataclasses.replace(protocol, seed=1), limit=20).ids != clips.ids
    assert (clips.origin["seed"], other.origin["seed"]) == (0, 1)
    assert (clips.origin["clips"], clips.origin["intended"]) == (20, 256)
    assert set(choose_clips("demo", "real", protocol, limit=10).ids) < set(clips.ids) and len(set(clips.ids)) == 20


def test_a_part_is_read_as_in_the_whole_and_is_the_named_frames(tmp_path):
    for seed, name in enumerate(("a", "b", "c")):
        noise = torch.randint(0, 256, (3, 1, 48, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        write_mp4(tmp_path / f"{name}.mp4", torch.cat([noise.roll(3 * i, -1) for i in range(40)], dim=1), 25)
    clips = choose_clips(tmp_path, "real", dataclasses.replace(load_protocol(DEMO), real_count=30))
    assert FRAMES_PER_READ // 8 < 10  # ten of a video: more than one pass reads
    whole = list(clips)
    assert tuple(name for name, _ in whole) == clips.ids
    for first, last in ((0, 1), (9, 13), (21, 22), (26, 30), (3, 3)):
        part = list(clips.read(first, last))
        assert [name for name, _ in part] == list(clips.ids[first:last])
        assert all(torch.equal(clip, whole[first + i][1]) for i, (_, clip) in enumerate(part))
    for name, clip in whole[::7]:
        path, start = name.rsplit("@", 1)
        frames = read_frames(tmp_path / path, range(int(start), int(start) + 29, 4))
        assert torch.equal(clip, resize_crop(frames, (48, 48)).transpose(0, 1))
    with pytest.raises(IndexError, match="clips 26 to 31 asked for, there are 30"):
        clips.read(26, 31)


def test_any_tree_gives_clips_at_any_depth(tmp_path):
    """Video files, frame folders, single arrays and stacks; the same pixels wherever nothing is lost."""
    clip = torch.randint(0, 256, (3, 8, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    array = clip.permute(1, 2, 3, 0).numpy()
    (tmp_path / "x" / "y").mkdir(parents=True)
    np.save(tmp_path / "x" / "one.npy", array)
    np.savez(tmp_path / "x" / "y" / "stack.npz", np.stack([array, array[::-1]]))
    write_frames(tmp_path / "x" / "y" / "z", clip)
    write_mp4(tmp_path / "film.mp4", clip, 6)
    protocol = small(DEMO, lossless=True)
    clips = choose_clips(tmp_path, "fake", protocol)
    read = dict(clips)
    assert clips.ids == ("film.mp4@0", "x/one.npy@0", "x/y/stack.npz@0", "x/y/stack.npz@8", "x/y/z@0")
    assert torch.equal(read["x/one.npy@0"], clip) and torch.equal(read["x/y/z@0"], clip)
    assert torch.equal(read["x/y/stack.npz@0"], clip) and torch.equal(read["x/y/stack.npz@8"], clip.flip(1))
    assert clips.origin["formats"] == {".mp4": 1, ".npy": 1, ".npz": 2, "frames .png": 1}
    assert [text for text in clips.origin["warnings"] if "1 .mp4" in text and "lossless" not in text and "without loss" in text]
    (tmp_path / "film.mp4").unlink()
    write_video(tmp_path / "film.mkv", "ffv1", 8, pixels="bgr0", size=(16, 16))
    clips = choose_clips(tmp_path, "fake", protocol)
    assert clips.origin["warnings"] == [] and clips.origin["formats"][".mkv without loss"] == 1
    real = choose_clips(tmp_path, "real", dataclasses.replace(protocol, real_stride=1)).origin["formats"]
    assert ".mkv" in real and ".mkv without loss" not in real  # of real files nobody asks, so that none is opened
    write_video(tmp_path / "film.mkv", "ffv1", 8, size=(16, 16))  # half of the colours' resolution is lost
    (warning,) = choose_clips(tmp_path, "fake", protocol).origin["warnings"]
    assert "1 .mkv" in warning


@pytest.mark.parametrize("resize", ["cover", "stretch"])
def test_frames_are_brought_to_the_size_as_the_protocol_says(tmp_path, resize):
    frames = torch.randint(0, 256, (8, 3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", frames.permute(0, 2, 3, 1).numpy())
    clip = next(iter(choose_clips(tmp_path, "fake", dataclasses.replace(load_protocol(DEMO), size=(10, 10), resize=resize))))[1]
    assert clip.shape == (3, 8, 10, 10) and clip.is_contiguous()
    if resize == "cover":
        expected = resize_crop(frames, (10, 10))
    else:
        small_frames = torch.nn.functional.interpolate(frames.float(), (10, 10), mode="bilinear", antialias=True)
        expected = small_frames.round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(clip, expected.transpose(0, 1))


def test_the_fingerprint_is_of_all_that_the_pixels_depend_on(tmp_path):
    root = write_videos(tmp_path / "a", {"v1": 20, "v2": 21})
    protocol = dataclasses.replace(load_protocol(DEMO), size=(2, 2), fake_count=2)
    base = choose_clips(root, "fake", protocol)
    assert base.fingerprint == choose_clips(root, "fake", dataclasses.replace(protocol, name="x", seed=9)).fingerprint
    changes = [{"frames": 9}, {"fake_stride": 2}, {"size": (2, 3)}, {"resize": "stretch"}, {"fake_start": "random", "seed": 2}]
    others = [choose_clips(root, "fake", dataclasses.replace(protocol, **each)).fingerprint for each in changes]
    others.append(choose_clips(write_videos(tmp_path / "b", {"v1": 20, "v2": 22}), "fake", protocol).fingerprint)
    assert len({base.fingerprint, *others}) == len(others) + 1


def numbered(number: int) -> torch.Tensor:
    """A clip of ten frames that says its number and theirs."""
    clip = torch.full((3, 10, 4, 4), number, dtype=torch.uint8)
    clip[1] = torch.arange(10, dtype=torch.uint8)[:, None, None]
    return clip


def test_a_generator_stands_in_for_files():
    protocol = small(DEMO, fake_count=5)
    made: list[int] = []

    def make(number: int) -> torch.Tensor:
        made.append(number)
        return numbered(number)

    clips = choose_clips(ClipGenerator(make, 12, "model of step 7, seed 3"), "fake", protocol)
    assert made == []  # chosen without making any
    assert clips.ids == tuple(f"sample {i}" for i in range(5)) and clips.origin["root"] == "model of step 7, seed 3"
    for (name, clip), number in zip(clips.read(2, 4), (2, 3), strict=True):
        assert name == f"sample {number}" and torch.equal(clip, numbered(number)[:, :8])
    assert made == [2, 3]
    strided = choose_clips(ClipGenerator(numbered, 12, "m"), "fake", dataclasses.replace(protocol, frames=5, fake_stride=2))
    assert next(iter(strided))[1][1, :, 0, 0].tolist() == [0, 2, 4, 6, 8]
    drawn = dataclasses.replace(protocol, fake_start="random", fake_selection="random")
    first, again = (choose_clips(ClipGenerator(numbered, 12, "m"), "fake", drawn) for _ in range(2))
    assert first.ids == again.ids and all(torch.equal(a, b) for (_, a), (_, b) in zip(first, again, strict=True))
    assert {int(clip[1, 0, 0, 0]) for _, clip in first} <= {0, 1, 2}
    assert first.fingerprint != choose_clips(ClipGenerator(numbered, 12, "n"), "fake", drawn).fingerprint


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda number: torch.zeros(3, 8, 4, 4), r"m: clip 0 is to be uint8 \(3, T, H, W\), got torch.float32 \(3, 8, 4, 4\)"),
        (lambda number: torch.zeros(8, 3, 4, 4, dtype=torch.uint8), r"got torch.uint8 \(8, 3, 4, 4\)"),
        (lambda number: None, "got NoneType"),
        (lambda number: torch.zeros(3, 7, 4, 4, dtype=torch.uint8), "m: clip 0 has 7 frames, the protocol needs 8"),
    ],
)
def test_what_a_generator_makes_is_checked(make, message):
    clips = choose_clips(ClipGenerator(make, 2, "m"), "fake", small(DEMO))
    with pytest.raises(ValueError, match=message):
        next(iter(clips))


def test_a_generator_is_no_real_data_and_makes_two_clips_or_more():
    with pytest.raises(ValueError, match="in the role 'fake'; got the role 'real'"):
        choose_clips(ClipGenerator(numbered, 9, "m"), "real", small(DEMO))
    with pytest.raises(ValueError, match="whose clips start 'all'"):
        choose_clips(ClipGenerator(numbered, 9, "m"), "fake", small(DEMO, fake_start="all"))
    with pytest.raises(ValueError, match="needs at least 2, got 1"):
        choose_clips(ClipGenerator(numbered, 1, "m"), "fake", small(DEMO))


def test_too_few_or_too_short_is_an_error(tmp_path):
    protocol = small(DEMO)
    root = write_videos(tmp_path, {"a": 8, "b": 7, "c": 9})
    with pytest.raises(
        ValueError, match="1 of 3 fake videos are shorter than the 8 frames .* 'b.npy' with 7; the longest .* 9"
    ):
        choose_clips(root, "fake", protocol)
    with pytest.raises(ValueError, match="3 of 3 real videos are shorter than the 29 frames"):
        choose_clips(root, "real", protocol)
    short = dataclasses.replace(protocol, frames=9, real_stride=1, real_count=5)
    with pytest.raises(
        ValueError, match="real clips: a score needs at least 2, got 1 from the 1 videos .* have 9 frames or more"
    ):
        choose_clips(root, "real", short)
    for limit, message in ((1, "count is at least 2"), (300, "count 300 is more than the 256 of protocol")):
        with pytest.raises(ValueError, match=message):
            choose_clips(root, "fake", protocol, limit=limit)


def test_videos_of_different_sizes_need_a_size(tmp_path):
    for name, width in (("a", 4), ("b", 6)):
        np.save(tmp_path / f"{name}.npy", np.zeros((8, 4, width, 3), np.uint8))
    with pytest.raises(ValueError, match="does not resize.*differ in size: 'a.npy' is 4x4, 'b.npy' is 6x4"):
        choose_clips(tmp_path, "fake", small(DEMO))


def test_a_gif_beside_a_video_of_its_name_is_no_further_sample(tmp_path):
    clip = numbered(7).repeat(1, 1, 4, 4)
    write_mp4(tmp_path / "0.mp4", clip, 6)
    write_gif(tmp_path / "0.gif", clip, 6)
    write_gif(tmp_path / "1.gif", clip, 6)
    assert choose_clips(tmp_path, "fake", load_protocol(DEMO)).ids == ("0.mp4@0", "1.gif@0")


def test_the_split_of_the_protocol_is_what_is_read(tmp_path):
    write_videos(tmp_path / "data", {f"train/v{i}": 20 for i in range(4)} | {f"test/v{i}": 20 for i in range(2)})
    card = tmp_path / "card.yaml"
    folders = "split: {rule: folders, folders: {train: [train], test: [test]}}"
    card.write_text(f"name: parts\nroot: {tmp_path / 'data'}\n{folders}\n", encoding="utf-8")
    protocol = small("stylegan-v/fvd2048_16f")
    for split, count in (("train", 4), ("test", 2), ("all", 6)):
        clips = choose_clips(card, "real", dataclasses.replace(protocol, split=split))
        assert len(clips) == count and (clips.origin["split"], clips.origin["warnings"]) == (split, [])
        assert split == "all" or all(name.startswith(split) for name in clips.ids)
    with pytest.raises(ValueError, match="no video is in split 'val'"):
        choose_clips(card, "real", dataclasses.replace(protocol, split="val"))
    with pytest.raises(ValueError, match="scores the training and the test split each by itself: choose clips of one"):
        choose_clips(card, "real", dataclasses.replace(protocol, split="both"))
    folder = choose_clips(tmp_path / "data" / "train", "real", dataclasses.replace(protocol, split="train"))
    assert folder.origin["split"] == "all"
    assert ["has no splits: all its videos are taken for split 'train'" in text for text in folder.origin["warnings"]] == [True]


def test_sources_that_are_not_there_are_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no folder of videos 'absent'.*demo"):
        choose_clips("absent", "fake", load_protocol(DEMO))
    with pytest.raises(ValueError, match="no usable video"):
        choose_clips(tmp_path, "fake", load_protocol(DEMO))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    with pytest.raises(ValueError, match="'demo' is a dataset card and a folder; .* absolute path"):
        choose_clips("demo", "fake", load_protocol(DEMO))
