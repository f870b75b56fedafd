"""Input as it should not be: each kind is passed over, bent or refused, as documented, and never silently."""

import os
import shutil

import numpy as np
import pytest
import torch
from data.trees import numbered, plant_frames, plant_video
from einops import rearrange
from PIL import Image
from videos.made import moving_pictures, sequential, write_video

from sparsevid.data.clips import ClipDataset
from sparsevid.data.sources import VideoFrames
from sparsevid.data.tree.clip_rule import ClipRule
from sparsevid.data.tree.manifest import build_manifest, open_manifest
from sparsevid.data.tree.rules import SplitRules, TreeRules
from sparsevid.videos.read import DecodeError, read_frames
from sparsevid.videos.write import write_gif

SIZE = (16, 16)


def dataset(root, rule, rules=None, **options):
    manifest = build_manifest(root, rules or TreeRules())
    return ClipDataset(manifest, rule, VideoFrames(manifest.root, SIZE), **options)


def paths(manifest):
    return [video.path for video in manifest.videos]


def rejected(manifest):
    return {path: reason for reason, found in manifest.rejects.items() for path in found}


def test_empty_root(tmp_path):
    with pytest.raises(
        ValueError, match=r"no usable video; accepted: video files \(\.mp4 .*folders of images \(\.jpg"
    ) as caught:
        build_manifest(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_nothing_usable_is_counted_by_reason(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "c.avi").write_text("text")
    (tmp_path / "d").mkdir()
    with pytest.raises(
        ValueError, match=r"passed over: empty folder: 1, empty file \(0 bytes\): 2, no video by its content: 1"
    ):
        build_manifest(tmp_path)


def test_no_usable_clip(tmp_path):
    plant_video(tmp_path / "a.mp4", frames=6)
    with pytest.raises(ValueError, match="none of 1 videos is as long as a clip: .* the longest video has 6"):
        dataset(tmp_path, ClipRule(16, 3))


def test_empty_leaf_folders_are_counted(tmp_path):
    plant_video(tmp_path / "a" / "1.mp4")
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".DS_Store").touch()
    manifest = build_manifest(tmp_path)
    assert paths(manifest) == ["a/1.mp4"] and manifest.rejects == {"empty folder": ["b/c", "d"]}


@pytest.mark.parametrize("kind", ["truncated", "text", "0 bytes"])
def test_files_that_are_no_videos(tmp_path, kind):
    good = plant_video(tmp_path / "good.mp4", frames=30)
    content = {"truncated": good.read_bytes()[:-200], "text": b"not a video\n" * 50, "0 bytes": b""}[kind]
    (tmp_path / "bad.mp4").write_bytes(content)
    manifest = build_manifest(tmp_path)
    assert paths(manifest) == ["good.mp4"] and set(rejected(manifest)) == {"bad.mp4"}
    with pytest.raises(DecodeError, match="bad.mp4"):
        build_manifest(tmp_path, strict=True)


@pytest.mark.parametrize(("name", "movflags"), [("v.avi", ""), ("v.mp4", "faststart")])
def test_headers_are_not_trusted(tmp_path, name, movflags):
    """A file that breaks off is as long as what is left of it, and every clip of that can be read."""
    path = plant_video(tmp_path / name, 120, movflags)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    manifest = build_manifest(tmp_path)
    (video,) = manifest.videos
    assert 10 < video.frames < 120
    if video.frames < 115:
        assert manifest.notes["shorter than its header says"] == [name]
    clips = dataset(tmp_path, ClipRule(video.frames, 1))
    assert clips[0]["redraws"] == 0 and clips[0]["clip"].shape == (3, video.frames, *SIZE)
    assert paths(build_manifest(tmp_path, full_scan=True)) == [name]
    with pytest.raises(DecodeError, match="shorter than its header says"):
        build_manifest(tmp_path, strict=True)


def test_variable_frame_rate(tmp_path):
    """Noted; frames are counted as they are, or, with `target_fps`, found by their times."""
    times = [0, 1, 2, 3, 4, 8, 12, 16, 20, 24, 25, 26]  # in 1/25 s
    write_video(tmp_path / "v.mp4", frames=len(times), times=[time / 25 for time in times])
    plant_video(tmp_path / "w.mp4", frames=12)
    manifest = build_manifest(tmp_path)
    assert manifest.notes == {"variable frame rate": ["v.mp4"]}
    varying, constant = manifest.videos
    assert varying.times == pytest.approx([time / 25 for time in times]) and constant.times is None
    assert open_manifest(tmp_path) == open_manifest(tmp_path) == manifest
    assert varying.seconds == pytest.approx(26 / 25) and varying.fps == pytest.approx(11 / (26 / 25))
    pictures = rearrange(torch.from_numpy(np.stack(sequential(tmp_path / "v.mp4"))), "t h w c -> t c h w")
    for rule, expected in ((ClipRule(12, 1), range(12)), (ClipRule(4, 1, target_fps=3.125), [0, 5, 7, 9])):
        (tmp_path / "w.mp4").unlink(missing_ok=True)
        clips = dataset(tmp_path, rule)
        clips.source = VideoFrames(tmp_path, tuple(pictures.shape[-2:]))
        assert torch.equal(rearrange(clips[0]["clip"], "c t h w -> t c h w"), pictures[list(expected)])


@pytest.mark.parametrize(("short", "usable"), [("exclude", 1), ("reduce_stride", 2), ("repeat_last", 3)])
def test_shorter_than_the_span(tmp_path, short, usable):
    for name, frames in (("long", 20), ("middle", 9), ("short", 3)):
        plant_frames(tmp_path / name, numbered(frames))
    clips = dataset(tmp_path, ClipRule(5, 4, short=short))
    assert len(clips) == usable and clips.excluded == 3 - usable
    assert all(clips[i]["clip"].shape == (3, 5, *SIZE) for i in range(usable)), "never fewer frames than asked"


def test_litter_is_ignored(tmp_path):
    plant_frames(tmp_path / "clip", numbered(3))
    plant_video(tmp_path / "a.mp4")
    for folder in (tmp_path, tmp_path / "clip"):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._a.mp4", "list.txt", "notes.md", "cache.npy"):
            (folder / name).write_bytes(b"litter")
        plant_video(folder / "__MACOSX" / "b.mp4")
        plant_video(folder / ".hidden" / "b.mp4")
    manifest = build_manifest(tmp_path)
    assert [(v.path, v.frames) for v in manifest.videos] == [("a.mp4", 6), ("clip", 3)] and not manifest.rejects


def test_a_folder_named_like_a_video(tmp_path):
    plant_frames(tmp_path / "x#0#9.mp4", numbered(4, pattern="{:07d}.png"))
    (video,) = build_manifest(tmp_path).videos
    assert (video.path, video.frames) == ("x#0#9.mp4", 4)


@pytest.mark.parametrize("media", ["video", "image"])
def test_images_and_videos_in_one_folder(tmp_path, media):
    plant_video(tmp_path / "a" / "v.mp4")
    plant_frames(tmp_path / "a", ["1.png", "2.png"])
    manifest = build_manifest(tmp_path, TreeRules(media=media))
    if media == "video":
        assert paths(manifest) == ["a/v.mp4"] and manifest.rejects == {"image beside videos": ["a/1.png", "a/2.png"]}
    else:
        assert paths(manifest) == ["a/1.png", "a/2.png"] and rejected(manifest) == {"a/v.mp4": "a video, where images are read"}


@pytest.mark.parametrize("other", [None, "clip/0.png", "v.mp4"])
def test_images_in_the_root(tmp_path, other):
    """They are a video if there is no other, and else in the way."""
    plant_frames(tmp_path, numbered(3))
    if other == "v.mp4":
        plant_video(tmp_path / other)
    elif other:
        plant_frames((tmp_path / other).parent, ["0.png"])
    manifest = build_manifest(tmp_path)
    if other is None:
        (video,) = manifest.videos
        assert (video.path, video.frames) == (".", 3)
        assert read_frames(manifest.root / video.path, [2]).shape[0] == 1
    else:
        assert len(manifest.videos) == 1 and manifest.rejects == {"image beside videos": numbered(3)}


def test_what_a_file_is_its_content_says(tmp_path):
    """A PNG called .jpg is an image, an AVI called .bin a video, and text called .png neither."""
    plant_frames(tmp_path / "clip", ["1.png", "2.png"])
    (tmp_path / "clip" / "1.png").rename(tmp_path / "clip" / "1.jpg")
    plant_video(tmp_path / "v.avi").rename(tmp_path / "v.bin")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("no image")
    assert [(v.path, v.frames) for v in build_manifest(tmp_path).videos] == [("clip", 2), ("v.bin", 6)]


def test_mixed_sizes_across_videos(tmp_path):
    for i, size in enumerate([(20, 30), (30, 20), (17, 64), (16, 16)]):
        plant_frames(tmp_path / str(i), numbered(3), size)
    clips = dataset(tmp_path, ClipRule(3, 1))
    assert {clips[i]["clip"].shape for i in range(4)} == {(3, 3, *SIZE)}


def test_mixed_sizes_inside_one_video(tmp_path, caplog):
    plant_frames(tmp_path / "clip", numbered(4))
    Image.new("RGB", (20, 20)).save(tmp_path / "clip" / "000002.jpg")
    with pytest.raises(DecodeError, match=r"size changes inside the video: frame 2 \(000002.jpg\) is 20x20"):
        dataset(tmp_path, ClipRule(4, 1))[0]
    plant_frames(tmp_path / "good", numbered(2))
    assert build_manifest(tmp_path, full_scan=True).rejects == {"the size changes inside the video": ["clip"]}
    assert "frame 2 is 20x20, frame 0 is" in caplog.text


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "I;16"])
def test_all_images_become_rgb(tmp_path, mode):
    """Grey, palettes, alpha and 16 bits; alpha is dropped, 16 bits are scaled."""
    grey = np.full((16, 16), 77, np.uint8)
    folder = tmp_path / "clip"
    folder.mkdir()
    for i in range(2):
        if mode == "I;16":
            Image.fromarray(grey.astype(np.uint16) * 257).save(folder / f"{i}.png")
        else:
            image = Image.fromarray(grey).convert(mode)
            if "A" in mode:
                image.putalpha(3)
            image.save(folder / f"{i}.png")
    clip = dataset(tmp_path, ClipRule(2, 1))[0]["clip"]
    assert clip.shape == (3, 2, *SIZE) and clip.dtype == torch.uint8 and (clip == 77).all()


@pytest.mark.parametrize(
    "name", ["größe 影", "a#b", "two words", "-dash", "[x]*?", "%03d", "file:x", "$HOME;ls", "a\nb", "'q\""]
)
def test_odd_names(tmp_path, name):
    plant_video(tmp_path / name / f"{name}.mp4", frames=4)
    plant_frames(tmp_path / name / "frames", [f"{name}_1.png", f"{name}_2.png"])
    clips = dataset(tmp_path, ClipRule(2, 1), TreeRules(label_rule="folder"))
    assert {video.path for video in clips.videos} == {f"{name}/{name}.mp4", f"{name}/frames"}
    assert clips.manifest.classes == (name,) and all(clips[i]["redraws"] == 0 for i in range(2))


def test_names_that_are_no_text(tmp_path):
    """File systems allow bytes that are no UTF-8."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system allows UTF-8 alone")
    plant_frames(tmp_path / os.fsdecode(b"caf\xe9"), numbered(2))
    manifest = build_manifest(tmp_path)
    assert open_manifest(tmp_path) == open_manifest(tmp_path) == manifest and len(manifest.fingerprint) == 64


def test_symbolic_links(tmp_path):
    root = tmp_path / "root"
    plant_frames(tmp_path / "elsewhere" / "clip", numbered(3))
    plant_video(root / "a.mp4")
    os.symlink(tmp_path / "elsewhere", root / "linked")
    os.symlink(root, tmp_path / "elsewhere" / "back")
    os.symlink("nowhere", root / "gone")
    os.symlink("itself", root / "itself")
    manifest = build_manifest(root)
    assert paths(manifest) == ["a.mp4", "linked/clip"]
    assert manifest.rejects == {"broken symbolic link": ["gone", "itself"]}


@pytest.mark.parametrize("split", [False, True])
def test_numbering_gaps(tmp_path, split):
    """Order is kept and the gap noted; a folder can be split there, and clips never cross it."""
    names = numbered(4, 7) + numbered(3, 20)
    plant_frames(tmp_path / "clip", names)
    manifest = build_manifest(tmp_path, TreeRules(fps=10, split_at_gaps=split))
    assert manifest.notes == {"numbering has gaps": ["clip"]}
    runs = [(v.first, v.frames, v.seconds) for v in manifest.videos]
    assert runs == ([(0, 4, pytest.approx(0.3)), (4, 3, pytest.approx(0.2))] if split else [(0, 7, pytest.approx(0.6))])
    clips = dataset(tmp_path, ClipRule(3, 1), TreeRules(split_at_gaps=split))
    clips.source = VideoFrames(tmp_path, (32, 48))
    whole = read_frames(tmp_path / "clip", range(7))
    for index, video in enumerate(clips.videos):
        for epoch in range(8):
            item = clips[epoch, index]
            first = video.first + item["start"]
            assert torch.equal(rearrange(item["clip"], "c t h w -> t c h w"), whole[first : first + 3])
            assert first + 3 <= video.first + video.frames


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["f1.png", "f2.png", "f9.png", "f10.png", "f11.png"], "numbering has gaps"),
        (["8.png", "9.png", "10.png", "11.png"], None),
        (["a.png", "b.png", "c.png"], "frames without numbers in their names"),
    ],
)
def test_frames_are_in_natural_order(tmp_path, names, note):
    plant_frames(tmp_path / "clip", names)
    manifest = build_manifest(tmp_path)
    assert manifest.videos[0].frames == len(names) and list(manifest.notes) == ([note] if note else [])
    expected = torch.from_numpy(moving_pictures(len(names), 32, 48))
    assert torch.equal(rearrange(read_frames(tmp_path / "clip", range(len(names))), "t c h w -> t h w c"), expected)


def test_lists_of_another_system(tmp_path):
    """Windows line ends, blank lines, another case, and entries that are missing."""
    plant_video(tmp_path / "c" / "a.mp4")
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf\r\nC/A.mp4\r\n\r\n  \r\nc/gone.mp4\r\n")
    rules = TreeRules(split=SplitRules("lists", lists={"train": "train.txt"}, max_missing=0.5))
    manifest = build_manifest(tmp_path, rules)
    assert manifest.splits == {"train": 1} and manifest.notes == {"listed in train.txt, not in the tree": ["c/gone.mp4"]}


def test_extra_class_folders(tmp_path):
    """An error, unless the folder is a class of the list or ignored; also if it is only of another case."""
    for name in ("owl", "wren", "OWL", "new"):
        plant_video(tmp_path / name / "1.mp4")
    rules = TreeRules(label_rule="folder", classes=["wren", "owl"])
    with pytest.raises(ValueError, match="class 'new' is not among the 2"):
        build_manifest(tmp_path, rules)
    manifest = build_manifest(tmp_path, TreeRules(label_rule="folder", classes=["wren", "owl"], ignore=["ne?"]))
    assert {video.path: video.label for video in manifest.videos} == {"OWL/1.mp4": 1, "owl/1.mp4": 1, "wren/1.mp4": 0}


def test_one_corrupt_frame(tmp_path, caplog):
    """Another clip is drawn in its place, the same one every time; if nothing can be read, that is an error."""
    plant_frames(tmp_path / "bad", numbered(4))
    broken = tmp_path / "bad" / "000002.jpg"
    broken.write_bytes(broken.read_bytes()[:150])
    with pytest.raises(DecodeError, match="others in its place failed"):
        dataset(tmp_path, ClipRule(4, 1))[0]
    plant_frames(tmp_path / "good", numbered(4))
    first, second = (dataset(tmp_path, ClipRule(4, 1), seed=3)[0] for _ in range(2))
    assert first["redraws"] == second["redraws"] > 0 and first["video"] == 1 and torch.equal(first["clip"], second["clip"])
    plant_frames(tmp_path / "worse", numbered(4))
    (tmp_path / "worse" / "000001.jpg").write_bytes(broken.read_bytes())
    assert build_manifest(tmp_path, full_scan=True).rejects == {"a frame cannot be decoded": ["bad", "worse"]}
    assert (
        "bad: a frame cannot be decoded (frame 2: " in caplog.text
        and "worse: a frame cannot be decoded (frame 1: " in caplog.text
    )


def test_images_of_which_none_is_one(tmp_path):
    """Pages of an error instead of frames, or nothing: reported, not passed over in silence."""
    plant_frames(tmp_path / "good", numbered(3))
    for name, content in (("page", b"<html>404</html>"), ("nothing", b"")):
        (tmp_path / name).mkdir()
        for i in range(2):
            (tmp_path / name / f"{i}.jpg").write_bytes(content)
    manifest = build_manifest(tmp_path)
    assert paths(manifest) == ["good"]
    assert manifest.rejects == {
        "empty file (0 bytes)": ["nothing/0.jpg", "nothing/1.jpg"], "no image by its content": ["page/0.jpg", "page/1.jpg"]
    }  # fmt: skip
    with pytest.raises(DecodeError, match=r"nothing/0\.jpg"):
        build_manifest(tmp_path, strict=True)


def test_preview_beside_frames(tmp_path):
    """A GIF beside more images is a preview of them; beside fewer it is a video, and they are previews of it."""
    for folder, images in (("frames", 6), ("previews", 1)):
        plant_frames(tmp_path / folder, numbered(images))
    for path in ("frames/preview.gif", "previews/a.gif", "previews/b.gif"):
        write_gif(tmp_path / path, torch.randint(0, 255, (3, 4, 16, 16), dtype=torch.uint8), 8)
    manifest = build_manifest(tmp_path)
    assert paths(manifest) == ["frames", "previews/a.gif", "previews/b.gif"]
    assert manifest.rejects == {
        "GIF beside more images": ["frames/preview.gif"],
        "image beside videos": ["previews/000000.jpg"],
    }


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_reported(tmp_path, what):
    plant_video(tmp_path / "good.mp4")
    shutil.copytree(plant_frames(tmp_path / "x" / "clip", numbered(2)).parent, tmp_path / "locked")
    target = tmp_path / "locked" if what == "folder" else plant_video(tmp_path / "locked.mp4")
    target.chmod(0)
    try:
        assert any("Permission" in reason for reason in build_manifest(tmp_path).rejects)
    finally:
        target.chmod(0o755)
