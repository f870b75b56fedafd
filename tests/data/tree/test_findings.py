"""What was found in a tree's videos is used again for as long as it is true, whatever the rules are, and no longer."""

import hashlib
import json
import os
from dataclasses import replace

import pytest
from data.trees import numbered, plant_frames, plant_video
from videos.made import write_video

from sparsevid.data.tree.manifest import build_manifest, cache_folder, open_manifest
from sparsevid.data.tree.rules import SplitRules, TreeRules
from sparsevid.videos import decode_file
from sparsevid.videos.read import DecodeError
from sparsevid.videos.reading import SizedCache

FOLDER = TreeRules(label_rule="folder")
SPLIT = TreeRules(split=SplitRules("folders", {"train": ["train"], "test": ["test"]}))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Each test begins with nothing kept, and this process does not remember files either."""
    monkeypatch.setenv("SPARSEVID_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(decode_file, "_indexes", SizedCache(0))


def plant(root, *names):
    for name in names:
        plant_video(root / name)


def paths(manifest):
    return [video.path for video in manifest.videos]


def cache_files():
    folder = cache_folder()
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_a_manifest_is_used_again_while_nothing_changes(tmp_path, monkeypatch):
    """Looking into a video again would find that it is gone."""
    root = tmp_path / "data"
    plant(root, "train/1.mp4", "test/größe 2.mp4")
    first = open_manifest(root, SPLIT)
    assert first == build_manifest(root, SPLIT) and len(cache_files()) == 1
    read = []
    monkeypatch.setattr("sparsevid.data.tree.probing.probe", read.append)
    assert open_manifest(root, SPLIT) == first and not read
    os.symlink(root, tmp_path / "link")
    linked = open_manifest(tmp_path / "link", SPLIT)
    assert linked.videos == first.videos and linked.root == tmp_path / "link" and not read


@pytest.mark.parametrize("change", ["add", "remove", "rename", "touch", "grow", "empty folder"])
def test_any_change_of_the_tree_is_seen(tmp_path, change):
    plant(tmp_path, "train/1.mp4", "train/2.mp4", "train/3.mp4")
    before = open_manifest(tmp_path, SPLIT)
    path = tmp_path / "train" / "2.mp4"
    if change == "add":
        plant(tmp_path, "train/9.mp4")
    elif change == "remove":
        path.unlink()
    elif change == "rename":
        path.rename(tmp_path / "train" / "7.mp4")
    elif change == "touch":
        write_video(path, frames=9)
        os.utime(path, ns=(1, 1))
    elif change == "grow":
        path.write_bytes(path.read_bytes() + bytes(8))
    else:
        (tmp_path / "new").mkdir()
    after = open_manifest(tmp_path, SPLIT)
    assert after == build_manifest(tmp_path, SPLIT) and after != before


def test_lists_beside_the_tree_count_too(tmp_path):
    root = tmp_path / "root"
    plant(root, "1.mp4", "2.mp4")
    rules = TreeRules(split=SplitRules("lists", lists={"train": "train.txt"}))
    for name in ("1.mp4", "2.mp4"):
        (tmp_path / "train.txt").write_text(name)
        assert paths(open_manifest(root, rules).select("train")) == [name]


def test_rules_that_see_other_videos_share_nothing(tmp_path):
    plant(tmp_path, "train/1.mp4")
    assert open_manifest(tmp_path).splits == {} and open_manifest(tmp_path, SPLIT).splits == {"train": 1}
    assert open_manifest(tmp_path).splits == {} and len(cache_files()) == 1
    for rules in (TreeRules(ignore=["night"]), TreeRules(split_at_gaps=True)):
        before = len(cache_files())
        assert open_manifest(tmp_path, rules) == build_manifest(tmp_path, rules) and len(cache_files()) == before + 1
    with pytest.raises(ValueError, match="no usable video"):
        open_manifest(tmp_path, TreeRules(media="image"))


def damage(path):
    """Make a video one that cannot be read, of the same size and time: only who looks into it again sees that."""
    status = path.stat()
    path.write_bytes(path.read_bytes()[:64] + bytes(status.st_size - 64))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rules_of_lists(order, fold):
    lists = {"train": "train{fold}.txt"}
    return TreeRules("folder", order, "classes.txt", split=SplitRules("lists", lists=lists, fold=fold))


def test_other_labels_and_splits_make_nobody_look_again(tmp_path):
    root = tmp_path / "data"
    for name in ("b/1.mp4", "b/2.mp4", "a/3.mp4"):
        write_video(root / name, frames=6)
    plant_frames(root / "a" / "stills", numbered(5))
    broken = root / "a" / "stills" / "000003.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    (root / "classes.txt").write_text("b\na\n")
    (root / "train1.txt").write_text("b/1.mp4\n")
    (root / "train2.txt").write_text("b/2.mp4\na/3.mp4\n")
    scanned = open_manifest(root, rules_of_lists("official", 1), full_scan=True)
    assert scanned.classes == ("b", "a") and paths(scanned.select("train")) == ["b/1.mp4"]
    assert list(scanned.rejects.values()) == [["a/stills"]]
    damage(root / "b" / "1.mp4")
    other = open_manifest(root, rules_of_lists("sorted", 2))
    assert other.classes == ("a", "b") and [video.label for video in other.videos] == [0, 1, 1]
    assert paths(other) == paths(scanned) and paths(other.select("train")) == ["a/3.mp4", "b/2.mp4"]
    assert other.rejects == scanned.rejects and other.scanned
    assert open_manifest(root, replace(rules_of_lists("sorted", 2), fps=5)).videos == other.videos
    assert len(cache_files()) == 1
    rebuilt = open_manifest(root, rules_of_lists("official", 1), rebuild=True)
    assert paths(rebuilt) == ["a/3.mp4", "b/2.mp4"] and rebuilt.scanned, "looked at again, and as closely as before"


def test_what_a_rule_left_out_is_looked_into_when_another_takes_it(tmp_path):
    plant(tmp_path, "x/1.mp4", "loose.mp4")
    assert paths(open_manifest(tmp_path, FOLDER, full_scan=True)) == ["x/1.mp4"]
    damage(tmp_path / "x" / "1.mp4")
    both = open_manifest(tmp_path)
    assert paths(both) == ["loose.mp4", "x/1.mp4"] and both.scanned
    assert open_manifest(tmp_path) == both


@pytest.mark.parametrize("scan", [False, True])
def test_of_a_tree_that_changed_only_what_changed_is_looked_into(tmp_path, scan):
    plant(tmp_path, "1.mp4", "2.mp4")
    for name in ("kept", "grown", "broken"):
        plant_frames(tmp_path / name, numbered(3))
    first = open_manifest(tmp_path, full_scan=scan)
    damage(tmp_path / "1.mp4")
    write_video(tmp_path / "2.mp4", frames=9)
    plant_frames(tmp_path / "grown", numbered(4))
    broken = tmp_path / "broken" / "000001.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    frames = {video.path: video.frames for video in open_manifest(tmp_path).videos}
    assert frames == {"1.mp4": 6, "2.mp4": 9, "grown": 4, "kept": 3} | ({} if scan else {"broken": 3})
    assert open_manifest(tmp_path).scanned == first.scanned == scan
    assert "1.mp4" not in paths(open_manifest(tmp_path, rebuild=True))


def test_all_that_was_found_comes_back(tmp_path):
    """Rates, times of each frame, parts of folders, remarks and rejects, under any name."""
    times = [0, 1, 2, 3, 4, 8, 12, 16]
    write_video(tmp_path / "varying.mp4", frames=len(times), times=[time / 25 for time in times])
    plant(tmp_path, "größe #1.mp4")
    plant_frames(tmp_path / "gap", ["001.jpg", "002.jpg", "007.jpg", "008.jpg"])
    (tmp_path / "bad.mp4").write_bytes(bytes(50))
    (tmp_path / "hollow").mkdir()
    try:  # file systems may allow names that are no text
        plant_frames(tmp_path / os.fsdecode(b"caf\xe9"), numbered(2))
    except OSError:
        plant_frames(tmp_path / "cafe", numbered(2))
    rules = TreeRules(split_at_gaps=True, fps=10)
    made = open_manifest(tmp_path, rules)
    assert len(made.videos) == 5 and made.notes and len(made.rejects) == 2 and any(video.times for video in made.videos)
    for _ in range(2):
        assert open_manifest(tmp_path, rules) == build_manifest(tmp_path, rules) == made
    assert {video.fps for video in open_manifest(tmp_path, replace(rules, fps=5)).videos if video.path == "gap"} == {5}


def test_what_strict_refuses_it_refuses_every_time(tmp_path):
    plant(tmp_path, "good.mp4")
    (tmp_path / "bad.mp4").touch()
    assert paths(open_manifest(tmp_path)) == ["good.mp4"]
    for _ in range(2):
        with pytest.raises(DecodeError, match="bad.mp4"):
            open_manifest(tmp_path, strict=True)


def resign(file, changes):
    """Change the body of a kept file, with a checksum that is right."""
    head, body, _ = file.read_text().split("\n")
    body = json.dumps(json.loads(body) | changes)
    head = json.dumps(json.loads(head) | {"sha256": hashlib.sha256(body.encode()).hexdigest()})
    file.write_text(f"{head}\n{body}\n")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 1}', "half", "\ud800", "other body", "foreign"])
def test_a_damaged_cache_is_made_anew(tmp_path, content, caplog):
    root = tmp_path / "data"
    plant(root, "a.mp4")
    first = open_manifest(root)
    (file,) = cache_files()
    whole = file.read_bytes()
    if content == "half":
        file.write_bytes(whole[: len(whole) // 2])
    elif content == "other body":
        file.write_bytes(whole.replace(b"a.mp4", b"b.mp4"))
    elif content == "foreign":
        resign(file, {"videos": [["../a.mp4", 1, False, "", False, None]]})
    else:
        file.write_bytes(content.encode("utf-8", "surrogatepass"))
    assert open_manifest(root) == first and cache_files() == [file] and file.read_bytes() == whole
    assert "it is made anew" in caplog.text


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    plant(tmp_path / "data", "a.mp4")
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPARSEVID_CACHE", str(tmp_path / "file"))
    assert paths(open_manifest(tmp_path / "data")) == ["a.mp4"]


def test_what_a_full_scan_found_holds_for_all_later_runs(tmp_path):
    """Damage inside a file shows only when it is decoded; once it is known, runs that do not look so closely know it too."""
    path = write_video(tmp_path / "data" / "v.mp4", frames=120)
    write_video(tmp_path / "data" / "w.mp4", frames=30)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 800] = bytes(800)
    path.write_bytes(content)
    quick = open_manifest(tmp_path / "data")
    assert paths(quick) == ["v.mp4", "w.mp4"] and not quick.scanned
    scanned = open_manifest(tmp_path / "data", full_scan=True)
    assert paths(scanned) == ["w.mp4"] and scanned.scanned
    assert open_manifest(tmp_path / "data") == scanned
    with pytest.raises(DecodeError, match="v.mp4: a frame cannot be decoded"):
        open_manifest(tmp_path / "data", strict=True)
    assert open_manifest(tmp_path / "data", rebuild=True) == scanned, "a tree that was scanned is scanned again"
