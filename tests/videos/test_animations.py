"""Image files that hold several pictures are videos of all of them, never of the first alone; stills stay images, also AVIF."""

import struct

import numpy as np
import pytest
import torch
from data.trees import numbered, plant_frames
from einops import rearrange
from PIL import Image, features
from videos.made import moving_pictures

from sparsevid.data.tree.manifest import build_manifest
from sparsevid.data.tree.rules import TreeRules
from sparsevid.videos.kinds import kind_of
from sparsevid.videos.read import DecodeError, frame_times, iter_frames, probe, read_frames

SHOWN = [40, 40, 120, 40, 80, 40, 40]  # milliseconds
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
FORMATS = {
    "a.webp": {"lossless": True, "duration": SHOWN},
    "a.png": {"duration": SHOWN},
    "a.apng": {"format": "PNG", "duration": SHOWN},
    "a.tif": {},
    "packed.tiff": {"compression": "tiff_lzw"},
    "a.avif": {"duration": 40},
}
NAMES = [pytest.param(name, marks=needs_avif) if name == "a.avif" else name for name in FORMATS]


def pictures(count: int = len(SHOWN)) -> list[Image.Image]:
    """Neighbours that differ in some pixels alone, so that files keep the rest from the one before."""
    return [Image.fromarray(picture) for picture in moving_pictures(count, 32, 48)]


def write(path, count: int = len(SHOWN), **options):
    first, *others = pictures(count)
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=others, **(FORMATS[path.name] | options))
    return path


def as_array(frames):
    return rearrange(frames, "t c h w -> t h w c").numpy()


@pytest.mark.parametrize("name", NAMES)
def test_all_pictures_are_frames_in_any_order(tmp_path, name):
    path = write(tmp_path / name)
    assert kind_of(path) == "animation"
    info = probe(path)
    assert (info.frames, info.height, info.width) == (len(SHOWN), 32, 48)
    whole = as_array(torch.cat(list(iter_frames(path, chunk=3))))
    if name != "a.avif":  # which loses some
        assert np.array_equal(whole, np.stack([np.asarray(each) for each in pictures()]))
    for indices in ([6], [3, 0, 3], [5, 1], range(7)):
        assert np.array_equal(as_array(read_frames(path, indices)), whole[list(indices)])
    with pytest.raises(DecodeError, match="frame 7 does not exist: 7 frames can be read"):
        read_frames(path, [0, 7])


@pytest.mark.parametrize("name", ["a.webp", "a.png"])
def test_times_are_those_that_were_written(tmp_path, name):
    path = write(tmp_path / name)
    begins = [sum(SHOWN[:i]) / 1000 for i in range(len(SHOWN))]
    assert frame_times(path) == pytest.approx(begins)
    info = probe(path)
    assert info.variable_rate and info.fps == pytest.approx(6 / begins[-1]) and info.notes == ("variable frame rate",)
    constant = probe(write(path, duration=[33, 33, 34, 33, 33, 34, 33]))
    assert not constant.variable_rate and constant.fps == pytest.approx(30, rel=1e-2)


def test_pages_of_a_tiff_have_no_times(tmp_path):
    path = write(tmp_path / "a.tif")
    assert probe(path).fps is None
    with pytest.raises(DecodeError, match="no presentation times"):
        frame_times(path)
    (video,) = build_manifest(tmp_path, TreeRules(fps=10)).videos
    assert (video.frames, video.fps, video.seconds) == (7, 10, pytest.approx(0.6))


def test_a_picture_for_those_who_show_no_animation_is_no_frame(tmp_path):
    first, *others = pictures(4)
    first.save(tmp_path / "a.png", save_all=True, default_image=True, append_images=others, duration=40)
    assert np.array_equal(as_array(read_frames(tmp_path / "a.png", range(3))), np.stack([np.asarray(each) for each in others]))
    assert probe(tmp_path / "a.png").frames == 3


def mark_as_smaller_copy(path) -> None:
    """Say of the second page of a TIFF that it is a smaller copy of the first: another tag becomes NewSubfileType."""
    content = bytearray(path.read_bytes())
    (place,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, place)
    (place,) = struct.unpack_from("<I", content, place + 2 + 12 * entries)
    (entries,) = struct.unpack_from("<H", content, place)
    tags = [struct.unpack_from("<H", content, place + 2 + 12 * i)[0] for i in range(entries)]
    struct.pack_into("<HHII", content, place + 2 + 12 * tags.index(282), 254, 4, 1, 1)  # 282: the resolution in x
    path.write_bytes(content)


def test_a_smaller_copy_in_a_tiff_is_no_frame(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for i, picture in enumerate(pictures(2)):
        picture.save(folder / f"{i}.tif", save_all=True, append_images=[picture.resize((24, 16))], dpi=(72, 72))
        mark_as_smaller_copy(folder / f"{i}.tif")
        assert kind_of(folder / f"{i}.tif") == "image"
    (video,) = build_manifest(tmp_path).videos
    assert (video.path, video.frames, video.height) == ("clip", 2, 32)


@pytest.mark.parametrize("name", NAMES)
def test_a_set_of_animations_is_a_set_of_videos(tmp_path, name):
    for i in range(3):
        write(tmp_path / str(i) / name)
    manifest = build_manifest(tmp_path, full_scan=True, strict=True)
    assert [(video.path, video.frames) for video in manifest.videos] == [(f"{i}/{name}", 7) for i in range(3)]


@needs_avif
@pytest.mark.parametrize("media", ["video", "image"])
def test_stills_in_avif_are_images(tmp_path, media):
    plant_frames(tmp_path / "clip", numbered(3, pattern="{}.avif"))
    manifest = build_manifest(tmp_path, TreeRules(media=media))
    if media == "video":
        assert [(video.path, video.frames) for video in manifest.videos] == [("clip", 3)]
    else:
        assert [(video.path, video.frames) for video in manifest.videos] == [(f"clip/{i}.avif", 1) for i in range(3)]
    assert np.abs(as_array(read_frames(tmp_path / "clip", [1]))[0].astype(int) - moving_pictures(3, 32, 48)[1]).mean() < 8


@pytest.mark.parametrize("name", ["a.webp", "a.apng"])
def test_a_preview_beside_more_frames_is_no_frame_of_them(tmp_path, name):
    plant_frames(tmp_path / "clip", numbered(9))
    write(tmp_path / "clip" / name)
    manifest = build_manifest(tmp_path)
    assert [(video.path, video.frames) for video in manifest.videos] == [("clip", 9)]
    assert manifest.rejects == {"animation beside more images": [f"clip/{name}"]}


@pytest.mark.parametrize(("name", "media"), [("a.png", "video"), ("a.png", "image"), ("a.tif", "image"), ("a.webp", "image")])
def test_an_animation_where_a_still_is_read_is_refused(tmp_path, caplog, name, media):
    """Frames whose extension was believed, and sets of images: never the first picture alone."""
    folder = plant_frames(tmp_path / "clip", ["0.png", "1.png"])
    write(folder / name)
    manifest = build_manifest(tmp_path, TreeRules(media=media), full_scan=True) if media == "image" else None
    if manifest is not None:
        assert [video.path for video in manifest.videos] == ["clip/0.png", "clip/1.png"]
        assert list(manifest.rejects.values()) == [[f"clip/{name}"]]
    else:
        with pytest.raises(ValueError, match="a frame cannot be decoded: 1"):
            build_manifest(tmp_path, full_scan=True)
        assert "an animation where a still image is read, a.png holds 7 pictures" in caplog.text


def test_what_a_camera_puts_behind_a_jpeg_is_no_frame(tmp_path):
    """Phones store a map of brightness, or the other eye's picture, as a second JPEG in the file."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for i, picture in enumerate(pictures(2)):
        picture.save(folder / f"{i}.jpg", format="MPO", save_all=True, append_images=[picture.resize((24, 16))])
        assert kind_of(folder / f"{i}.jpg") == "image"
    (video,) = build_manifest(tmp_path, full_scan=True).videos
    assert (video.frames, video.height) == (2, 32)
