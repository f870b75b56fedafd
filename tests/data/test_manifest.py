"""A manifest lists exactly the readable videos, in one order, and says what it passed over and why."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from data.videos import write_video

from sparsevid.data.decode import DecodeError
from sparsevid.data.manifest import EXTENSIONS, Manifest, build_manifest, natural_key


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
    assert all(reason in manifest.summary() for reason in manifest.rejects)


@pytest.mark.parametrize("content", [b"", b"text\n" * 50])
def test_strict_raises(tmp_path, video, content):
    plant(video, tmp_path, "good.mp4")
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(DecodeError, match="bad.mp4"):
        build_manifest(tmp_path, strict=True)


def test_broken_off_file_is_shortened_or_refused(tmp_path):
    path = write_video(tmp_path / "v.mp4", frames=120, movflags="faststart")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    (found,) = build_manifest(tmp_path).videos
    assert 10 < found.frames < 100
    with pytest.raises(DecodeError, match="of 120 frames can be read"):
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
    assert build_manifest(tmp_path).rejects == {"no such file": ["pipe.mp4"]}


def test_folder_labels(tmp_path, video):
    plant(video, tmp_path, "wren/1.mp4", "owl/night/2.mp4", "owl/10.mp4", "owl/9.mp4", "loose.mp4")
    manifest = build_manifest(tmp_path, label_rule="folder")
    assert manifest.classes == ("owl", "wren")
    assert {v.path: v.label for v in manifest.videos} == {
        "owl/9.mp4": 0, "owl/10.mp4": 0, "owl/night/2.mp4": 0, "wren/1.mp4": 1
    }  # fmt: skip
    assert manifest.rejects == {"not in a class folder": ["loose.mp4"]}


def test_file_labels(tmp_path, video):
    plant(video, tmp_path, "b.mp4", "x/a.mp4")
    manifest = build_manifest(tmp_path, label_rule="file")
    assert manifest.classes == ("a", "b")
    assert {v.path: v.label for v in manifest.videos} == {"x/a.mp4": 0, "b.mp4": 1}
    plant(video, tmp_path, "y/a.mp4")
    assert build_manifest(tmp_path, label_rule="file").classes == ("b.mp4", "x/a.mp4", "y/a.mp4")


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
    assert one.fingerprint != build_manifest(tmp_path / "one", label_rule="folder").fingerprint, "labels matter"
    for name, value in {"path": "z", "bytes": 1, "frames": 1, "label": 3}.items():
        changed = replace(one.videos[0], **{name: value})
        assert one.fingerprint != replace(one, videos=(changed, one.videos[1])).fingerprint
    (tmp_path / "two" / "y" / "b.mp4").rename(tmp_path / "two" / "y" / "c.mp4")
    assert one.fingerprint != build_manifest(tmp_path / "two").fingerprint


def test_save_and_load_round_trip(tmp_path, video):
    plant(video, tmp_path / "data", "größe/a.mp4", "b/c.mp4")
    (tmp_path / "data" / "b" / "bad.mp4").touch()
    manifest = build_manifest(tmp_path / "data", label_rule="folder")
    manifest.save(tmp_path / "m.json")
    assert Manifest.load(tmp_path / "m.json") == manifest
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["m.json"]


@pytest.mark.parametrize("change", [{"videos": []}, {"format": 0}, {"classes": 3}])
def test_load_refuses_what_save_did_not_write(tmp_path, video, change):
    plant(video, tmp_path / "data", "a.mp4")
    path = tmp_path / "m.json"
    build_manifest(tmp_path / "data").save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"m\.json is no manifest"):
        Manifest.load(path)


def test_load_stays_below_the_root(tmp_path, video):
    plant(video, tmp_path / "data", "a.mp4")
    manifest = build_manifest(tmp_path / "data")
    replace(manifest, videos=(replace(manifest.videos[0], path="../a.mp4"),)).save(tmp_path / "m.json")
    with pytest.raises(ValueError, match="does not lie below the root"):
        Manifest.load(tmp_path / "m.json")


def test_errors_name_what_was_found_and_what_is_accepted(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        build_manifest(tmp_path / "absent")
    with pytest.raises(ValueError, match="accepted: none, folder, file"):
        build_manifest(tmp_path, label_rule="folders")
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    with pytest.raises(ValueError, match="0 bytes.*: 2") as caught:
        build_manifest(tmp_path)
    assert str(tmp_path) in str(caught.value) and all(extension in str(caught.value) for extension in EXTENSIONS)
