"""A manifest lists exactly the readable videos, in one order, and says what it passed over and why."""

import multiprocessing
import os
import shutil
from dataclasses import replace
from datetime import timedelta

import pytest
import torch.distributed as dist
from data.trees import numbered, plant_frames
from videos.made import write_video

from sparsevid.data.tree import manifest as manifest_module
from sparsevid.data.tree.manifest import Video, build_manifest, open_manifest
from sparsevid.data.tree.rules import SplitRules, TreeRules
from sparsevid.videos.kinds import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, natural_key
from sparsevid.videos.read import DecodeError

FOLDER = TreeRules(label_rule="folder")
SPLIT = TreeRules(split=SplitRules("folders", {"train": ["train"], "test": ["test"]}))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("SPARSEVID_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """One small video to copy."""
    return write_video(tmp_path_factory.mktemp("source") / "v.mp4", frames=6)


def plant(video, root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, root / name)


def paths(manifest):
    return [video.path for video in manifest.videos]


def test_natural_order_at_any_depth(tmp_path, video):
    names = ["clip2.mp4", "clip10.mp4", "clip10/a.mp4", "clip9/b.mp4", "clip010.mp4", "a b/1.mp4", "A/1.mp4"]
    plant(video, tmp_path, *names)
    found = paths(build_manifest(tmp_path))
    assert sorted(found) == sorted(names) and found == sorted(names, key=natural_key)
    assert found.index("clip9/b.mp4") < found.index("clip10/a.mp4")
    assert found.index("clip2.mp4") < found.index("clip10.mp4")


def test_odd_names(tmp_path, video):
    names = ["-dash.mp4", "a#000261#000596.mp4", "größe 影.mp4", "two words.MP4", "[x]*?.mp4", "%03d.mp4"]
    plant(video, tmp_path, *names)
    assert sorted(paths(build_manifest(tmp_path))) == sorted(names)


def test_content_decides_not_the_extension(tmp_path, video):
    plant(video, tmp_path, "good.mp4", "mp4_named.avi", "list.txt", ".hidden.mp4", ".git/x.mp4", "__MACOSX/y.mp4")
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    (tmp_path / "list.txt").write_text("good.mp4\n")
    manifest = build_manifest(tmp_path)
    assert paths(manifest) == ["good.mp4", "mp4_named.avi"]
    rejected = {name: reason for reason, names in manifest.rejects.items() for name in names}
    assert set(rejected) == {"text.mp4", "empty.mp4", "cut.mp4"}
    assert "0 bytes" in rejected["empty.mp4"] and "not readable" in rejected["cut.mp4"]
    assert "content" in rejected["text.mp4"]


@pytest.mark.parametrize("content", [b"", b"text\n" * 50])
def test_strict_raises(tmp_path, video, content):
    plant(video, tmp_path, "good.mp4")
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(DecodeError, match="bad.mp4"):
        build_manifest(tmp_path, strict=True)


def test_broken_off_file_is_shortened_or_refused(tmp_path):
    path = write_video(tmp_path / "v.mp4", frames=120, movflags="faststart")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    manifest = build_manifest(tmp_path)
    (found,) = manifest.videos
    assert 10 < found.frames < 100 and manifest.notes["shorter than its header says"] == ["v.mp4"]
    with pytest.raises(DecodeError, match="shorter than its header says"):
        build_manifest(tmp_path, strict=True)


def test_symbolic_links_are_followed_without_cycles(tmp_path, video):
    plant(video, tmp_path / "elsewhere", "a.mp4")
    root = tmp_path / "root"
    plant(video, root, "sub/b.mp4")
    os.symlink(tmp_path / "elsewhere", root / "linked")
    os.symlink(video, root / "file.mp4")
    os.symlink(root, root / "sub" / "loop")
    os.symlink(tmp_path / "nowhere.mp4", root / "gone.mp4")
    manifest = build_manifest(root)
    assert paths(manifest) == ["file.mp4", "linked/a.mp4", "sub/b.mp4"]
    assert manifest.rejects == {"broken symbolic link": ["gone.mp4"]}


def test_what_is_no_regular_file_is_not_opened(tmp_path, video):
    """Opening a pipe would wait for ever."""
    plant(video, tmp_path, "a.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert build_manifest(tmp_path).rejects == {"no regular file": ["pipe.mp4"]}


def test_folder_labels(tmp_path, video):
    plant(video, tmp_path, "wren/1.mp4", "owl/night/2.mp4", "owl/10.mp4", "owl/9.mp4", "loose.mp4")
    manifest = build_manifest(tmp_path, FOLDER)
    assert manifest.classes == ("owl", "wren")
    assert {v.path: v.label for v in manifest.videos} == {
        "owl/9.mp4": 0, "owl/10.mp4": 0, "owl/night/2.mp4": 0, "wren/1.mp4": 1
    }  # fmt: skip
    assert manifest.rejects == {"not in a class folder": ["loose.mp4"]}


def test_file_labels(tmp_path, video):
    plant(video, tmp_path, "b.mp4", "x/a.mp4")
    manifest = build_manifest(tmp_path, TreeRules(label_rule="file"))
    assert manifest.classes == ("a", "b")
    assert {v.path: v.label for v in manifest.videos} == {"x/a.mp4": 0, "b.mp4": 1}
    plant(video, tmp_path, "y/a.mp4")
    assert build_manifest(tmp_path, TreeRules(label_rule="file")).classes == ("b.mp4", "x/a.mp4", "y/a.mp4")


def test_no_labels(tmp_path, video):
    plant(video, tmp_path, "x/a.mp4")
    manifest = build_manifest(tmp_path)
    assert manifest.classes == () and manifest.videos[0].label is None


def test_fingerprint_follows_the_data(tmp_path, video):
    plant(video, tmp_path / "one", "x/a.mp4", "y/b.mp4")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one = build_manifest(tmp_path / "one")
    assert one.fingerprint == build_manifest(tmp_path / "two", workers=1).fingerprint, "place and threads do not matter"
    assert one.fingerprint == replace(one, videos=one.videos[::-1]).fingerprint, "order does not matter"
    assert one.fingerprint != build_manifest(tmp_path / "one", FOLDER).fingerprint, "labels matter"
    for name, value in {"path": "z", "bytes": 1, "frames": 1, "first": 1, "label": 3, "split": "x"}.items():
        changed = replace(one.videos[0], **{name: value})
        assert one.fingerprint != replace(one, videos=(changed, one.videos[1])).fingerprint
    (tmp_path / "two" / "y" / "b.mp4").rename(tmp_path / "two" / "y" / "c.mp4")
    assert one.fingerprint != build_manifest(tmp_path / "two").fingerprint


def test_errors_name_what_was_found_and_what_is_accepted(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        build_manifest(tmp_path / "absent")
    with pytest.raises(ValueError, match="accepted: none, folder, file"):
        build_manifest(tmp_path, TreeRules(label_rule="folders"))
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    with pytest.raises(ValueError, match="0 bytes.*: 2") as caught:
        build_manifest(tmp_path)
    assert str(tmp_path) in str(caught.value) and all(
        extension in str(caught.value) for extension in VIDEO_EXTENSIONS + IMAGE_EXTENSIONS
    )


@pytest.mark.parametrize("full_scan", [False, True])
def test_a_full_scan_finds_the_frame_that_fails(tmp_path, full_scan):
    """Damage in the middle shows only when all frames are decoded."""
    plant_frames(tmp_path / "good", numbered(5))
    plant_frames(tmp_path / "bad", numbered(5))
    broken = tmp_path / "bad" / "000003.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    manifest = build_manifest(tmp_path, full_scan=full_scan)
    assert paths(manifest) == (["good"] if full_scan else ["bad", "good"])
    if full_scan:
        ((reason, found),) = manifest.rejects.items()
        assert found == ["bad"] and "a frame cannot be decoded" in reason
        with pytest.raises(DecodeError, match="a frame cannot be decoded"):
            build_manifest(tmp_path, full_scan=True, strict=True)


def test_selecting_a_split(tmp_path, video):
    plant(video, tmp_path, "train/1.mp4", "train/2.mp4", "test/3.mp4", "other/4.mp4")
    manifest = build_manifest(tmp_path, SPLIT)
    assert manifest.splits == {"test": 1, "train": 2} and manifest.select(None) is manifest
    train = manifest.select("train")
    assert paths(train) == ["train/1.mp4", "train/2.mp4"] and train.splits == {"train": 2} and train.root == manifest.root
    assert train.fingerprint != manifest.fingerprint and train.select("train") == train
    for or_all in (False, True):
        with pytest.raises(ValueError, match=r"no video is in split 'val'; splits: test \(1 videos\), train \(2 videos\)"):
            manifest.select("val", or_all=or_all)


def test_a_tree_without_splits_stands_in_only_where_that_is_allowed(tmp_path, video):
    plant(video, tmp_path, "1.mp4", "2.mp4")
    manifest = build_manifest(tmp_path, SPLIT)
    assert manifest.select("train", or_all=True) == manifest.select(None) == manifest.select("all") == manifest
    with pytest.raises(ValueError, match="no video is in split 'train'; the tree has no splits"):
        manifest.select("train")


def be_a_rank(rank, store, roots, said):
    """Open manifests as one of two ranks, and say what came of it."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(minutes=9))
    if rank:
        manifest_module.scan_tree = None  # only rank 0 looks at the tree
    for root in roots:
        try:
            said.put((root.name, open_manifest(root)))
        except Exception as error:
            said.put((root.name, (type(error), str(error))))
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_agree(tmp_path, video):
    """Every rank has rank 0's manifest, or raises rank 0's error; none waits for ever."""
    plant(video, tmp_path / "good", "a.mp4", "b.mp4")
    (tmp_path / "empty").mkdir()
    context = multiprocessing.get_context("spawn")  # another test of this process may have joined a group
    said = context.Queue()
    roots = [tmp_path / "empty", tmp_path / "absent", tmp_path / "good"]
    ranks = [context.Process(target=be_a_rank, args=(rank, tmp_path / "store", roots, said)) for rank in range(2)]
    for each in ranks:
        each.start()
    heard = [said.get(timeout=580) for _ in range(6)]
    for each in ranks:
        each.join(timeout=580)
    outcomes = {name: [outcome for at, outcome in heard if at == name] for name in ("empty", "absent", "good")}
    assert outcomes["good"] == [build_manifest(tmp_path / "good")] * 2
    for name, kind in (("empty", ValueError), ("absent", FileNotFoundError)):
        assert outcomes[name][0] == outcomes[name][1] and outcomes[name][0][0] is kind
        assert str(tmp_path / name) in outcomes[name][0][1]


def test_a_manifest_knows_all_of_a_video(tmp_path, video):
    plant(video, tmp_path, "a.mp4")
    (found,) = build_manifest(tmp_path).videos
    assert found == Video("a.mp4", video.stat().st_size, 6, 25.0, 112, 48, pytest.approx(0.2))
