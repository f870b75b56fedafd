"""Folders of images and single images are videos: order, depth, alpha, damage, and what is opened at all."""

import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from sparsevid.videos.frame_folder import frame_names, numbering_gaps
from sparsevid.videos.read import DecodeError, count_decoded, frame_times, iter_frames, probe, read_frames
from sparsevid.videos.reading import SizedCache

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)  # (H,W,C)
DEEP = np.random.default_rng(1).integers(0, 65536, (6, 8, 4), dtype=np.uint16)
PNG_KINDS = {0: 1, 4: 2, 2: 3, 6: 4}  # colour type of a PNG → channels


def write_folder(folder, names, pixels=PIXELS):
    """Each frame's corner pixel holds its position in `names`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        frame = pixels.copy()
        frame[0, 0] = i
        Image.fromarray(frame).save(folder / name)
    return folder


def order(folder):
    return read_frames(folder, range(probe(folder).frames))[:, 0, 0, 0].tolist()


def write_deep_png(path, pixels, kind):
    """A PNG of 16 bits a channel, which Pillow does not write in colour; `pixels` uint16 (H,W,C)."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def as_pixels(frames):
    return rearrange(frames, "1 c h w -> h w c").numpy()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["frame2.png", "frame10.png", "frame1.png"], [2, 0, 1]),
        (["0000001.png", "0000000.png"], [1, 0]),
        (["b.png", "a.png", "c.png"], [1, 0, 2]),
        (["x_frames_00086553.png", "x_frames_00086552.png"], [1, 0]),
        (["intro.png", "2.png", "11.png"], [1, 2, 0]),
    ],
)
def test_frames_are_in_natural_order_and_all_there(tmp_path, names, expected):
    assert order(write_folder(tmp_path / "v", names)) == expected


def test_reading_gives_the_frames_asked_for_and_opens_no_others(tmp_path):
    folder = write_folder(tmp_path / "v", [f"{i}.png" for i in range(50)])
    for i in (*range(0, 20), *range(40, 50)):
        (folder / f"{i}.png").write_bytes(b"damaged")
    with count_decoded() as count:
        frames = read_frames(folder, [30, 25, 39, 25, 25])
    assert frames[:, 0, 0, 0].tolist() == [30, 25, 39, 25, 25] and count.frames == 3
    assert frames.dtype == torch.uint8 and frames.shape == (5, 3, 6, 8) and frames.is_contiguous()


def test_chunks_make_the_whole(tmp_path):
    folder = write_folder(tmp_path / "v", [f"{i}.png" for i in range(10)])
    chunks = list(iter_frames(folder, chunk=4))
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    assert torch.equal(torch.cat(chunks), read_frames(folder, range(10)))


def test_a_folder_may_be_named_like_a_video_and_hold_other_things(tmp_path):
    folder = write_folder(tmp_path / "-a #000261 größe 影.mp4", ["0.png", "1.png", ".hidden.png"])
    (folder / "Thumbs.db").write_bytes(b"\xff\xd8\xff")
    (folder / "notes.txt").write_text("no frame")
    (folder / "deeper.png").mkdir()
    (folder / "2.dat").write_bytes((folder / "1.png").read_bytes())  # an image, whatever its name says
    assert frame_names(folder) == ("0.png", "1.png", "2.dat")
    info = probe(folder)
    assert (info.frames, info.width, info.height, info.fps, info.seconds) == (3, 8, 6, None, None)
    assert not info.variable_rate and info.notes == ()
    with pytest.raises(DecodeError, match="images hold no times"):
        frame_times(folder)


def test_names_are_taken_literally(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-i", "a #1 b", "%03d", "[x]*", "pipe:1"):
        write_folder(tmp_path / name, ["-1 #.png", "%d.png"])
        assert read_frames(name, [0, 1]).shape == (2, 3, 6, 8)


def test_a_listing_is_renewed_when_the_folder_changes(tmp_path):
    folder = write_folder(tmp_path / "v", ["0.png"])
    assert frame_names(folder) is frame_names(folder)
    Image.fromarray(PIXELS).save(folder / "1.png")
    assert frame_names(folder) == ("0.png", "1.png")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm"])
def test_lossless_formats_come_back_exactly(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(PIXELS).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(as_pixels(read_frames(path, [0])), PIXELS)
    assert probe(path).frames == 1


def test_jpeg_is_what_pillow_decodes_turned_unless_stored_pixels_are_wanted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(PIXELS).save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as image:
        stored = as_pixels(read_frames(tmp_path / "turned.jpg", [0], display=False))
        assert np.array_equal(stored, np.asarray(image))
        assert np.array_equal(as_pixels(read_frames(tmp_path / "turned.jpg", [0])), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(PIXELS).convert(mode)
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    image.save(path)
    assert np.array_equal(as_pixels(read_frames(path, [0])), np.asarray(image.convert("RGB")))


def test_alpha_is_dropped_and_not_composited(tmp_path):
    """Pixels that cannot be seen keep their colour."""
    Image.fromarray(np.dstack([PIXELS, np.zeros_like(PIXELS[..., :1])])).save(tmp_path / "clear.png")
    assert np.array_equal(as_pixels(read_frames(tmp_path / "clear.png", [0])), PIXELS)
    palette = Image.fromarray(PIXELS).convert("P")
    palette.save(tmp_path / "palette.png", transparency=bytes(256))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(as_pixels(read_frames(tmp_path / "palette.png", [0])), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("kind", PNG_KINDS)
def test_16_bits_are_scaled_in_every_kind_of_png(tmp_path, kind):
    deep = DEEP[..., : PNG_KINDS[kind]].copy()
    deep[0, 0], deep[0, 1] = 0, 65535
    write_deep_png(tmp_path / "deep.png", deep, kind)
    colours = deep[..., :3] if kind in (2, 6) else deep[..., :1]
    expected = np.broadcast_to(np.rint(colours / 257).astype(np.uint8), (6, 8, 3))
    assert np.array_equal(as_pixels(read_frames(tmp_path / "deep.png", [0])), expected)


@pytest.mark.parametrize("suffix", ["tiff", "pgm"])
def test_16_bits_of_grey_are_scaled(tmp_path, suffix):
    grey = np.ascontiguousarray(DEEP[..., 0])
    Image.fromarray(grey).save(tmp_path / f"deep.{suffix}")
    frame = as_pixels(read_frames(tmp_path / f"deep.{suffix}", [0]))
    assert np.array_equal(frame, np.repeat(np.rint(grey / 257).astype(np.uint8)[..., None], 3, axis=-1))


def test_16_bits_of_colour_in_a_tiff_are_at_most_one_level_off(tmp_path):
    av = pytest.importorskip("av")
    deep = np.random.default_rng(2).integers(0, 65536, (16, 16, 3), dtype=np.uint16)
    encoder = av.CodecContext.create("tiff", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.framerate = 16, 16, "rgb48le", 25
    packets = [*encoder.encode(av.VideoFrame.from_ndarray(deep, format="rgb48le")), *encoder.encode(None)]
    (tmp_path / "deep.tiff").write_bytes(b"".join(map(bytes, packets)))
    frame = as_pixels(read_frames(tmp_path / "deep.tiff", [0])).astype(int)
    assert np.abs(frame - np.rint(deep / 257)).max() <= 1


def test_32_bits_are_refused(tmp_path):
    Image.fromarray(np.ones((6, 8), np.float32)).save(tmp_path / "depth.tiff")
    with pytest.raises(DecodeError, match="32 bits"):
        read_frames(tmp_path / "depth.tiff", [0])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff"])
def test_a_damaged_frame_is_named(tmp_path, suffix):
    folder = write_folder(tmp_path / "v", [f"{i}.{suffix}" for i in range(3)], np.tile(PIXELS, (20, 20, 1)))
    path = folder / f"1.{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DecodeError, match=rf"not readable as an image \(frame 1\.{suffix}: ") as caught:
        read_frames(folder, [0, 1, 2])
    assert caught.value.path == folder and str(tmp_path) not in caught.value.reason
    assert len(read_frames(folder, [0, 2])) == 2


def test_text_and_nothing_are_no_images(tmp_path):
    folder = write_folder(tmp_path / "v", ["0.png"])
    for name, content in (("1.png", b""), ("2.png", b"text"), ("3.png", b"%!PS-Adobe-3.0 EPSF-3.0\n")):
        (folder / name).write_bytes(content)
    for i in (1, 2, 3):
        with pytest.raises(DecodeError, match=rf"not readable as an image \(frame {i}\.png: cannot identify") as caught:
            read_frames(folder, [i])
        assert str(tmp_path) not in caught.value.reason


def test_a_changing_size_names_the_frame(tmp_path):
    folder = write_folder(tmp_path / "v", ["0.png", "1.png"])
    Image.fromarray(PIXELS[:4]).save(folder / "2.png")
    with pytest.raises(DecodeError, match=r"frame 2 \(2\.png\) is 8x4, frame 1 \(1\.png\) is 8x6"):
        read_frames(folder, [1, 2])
    with pytest.raises(DecodeError, match=r"2\.png"):
        list(iter_frames(folder))


def test_huge_images_are_refused(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "v", ["0.png"])
    for limit in (PIXELS.size // 3 - 1, 10):  # Pillow warns from its limit on and refuses from twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DecodeError, match=r"frame 0\.png: .*pixels"), warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            probe(folder)


def test_missing_frames_and_empty_folders(tmp_path):
    folder = write_folder(tmp_path / "v", ["0.png"])
    with pytest.raises(DecodeError, match="frame 1 does not exist: 1 frames can be read"):
        read_frames(folder, [0, 1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DecodeError, match="no image in the folder"):
        probe(tmp_path / "empty")
    with pytest.raises(DecodeError, match="cannot be listed"):
        frame_names(tmp_path / "absent")


@pytest.mark.parametrize(
    ("names", "gaps"),
    [
        (["0.png", "1.png", "2.png"], ()),
        (["7.png", "8.png", "10.png", "11.png", "20.png"], (2, 4)),
        (["f0005.jpg", "f0010.jpg", "f0015.jpg", "f0025.jpg"], (3,)),
        (["1.png", "2.png", "4.png"], (2,)),
        (["a_1_256.png", "a_2_256.png", "a_4_256.png"], (2,)),
        (["9v2.png", "10v2.png", "11v2.png"], ()),
        (["a.png", "b.png"], ()),
        (["1.png"], ()),
        ([], ()),
        (["100.png", "133.png", "167.png", "251.png"], ()),
        (["1.mp4.png", "2.mp4.png", "3.mp4.png"], ()),
    ],
)
def test_numbering_gaps(names, gaps):
    assert numbering_gaps(names) == gaps


def test_notes_tell_of_gaps_and_missing_numbers(tmp_path):
    assert probe(write_folder(tmp_path / "a", ["1.png", "2.png", "9.png"])).notes == ("numbering has gaps",)
    assert probe(write_folder(tmp_path / "b", ["x.png", "y.png"])).notes == ("frames without numbers in their names",)
    assert probe(write_folder(tmp_path / "c", ["1.png", "2.png", "3.png"])).notes == ()


def test_the_cache_is_bounded_by_items_and_drops_what_was_used_first():
    cache, made = SizedCache(10), []

    def get(key, length):
        return cache.get(key, lambda: made.append(key) or (key,) * length)

    for i in range(5):
        get(i, 2)
    assert get(0, 9) == (0, 0) and made == [0, 1, 2, 3, 4] and cache.items == 10
    get("new", 3)
    assert cache.items == 9 and get(0, 9) == (0, 0) and get("new", 9) == ("new",) * 3 and made[5:] == ["new"]
    get(1, 1)
    get(2, 0)
    assert made[6:] == [1, 2]  # both had been dropped
    get("long", 11)
    assert cache.items == 0 and get("long", 11) == ("long",) * 11 and made[8:] == ["long", "long"]
