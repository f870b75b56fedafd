"""What is written reads back, and only whole files appear."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from smooth import smooth_clip

from sparsevid.videos.check import clip_file_is_whole
from sparsevid.videos.read import frame_times, probe, read_frames
from sparsevid.videos.sheets import (
    CAPTION_HEIGHT,
    GAP,
    board,
    clip_grid,
    contact_sheet,
    write_board,
    write_contact_sheet,
    write_grid,
)
from sparsevid.videos.write import FORMATS, write_clip, write_ffv1, write_frames, write_gif, write_mp4, write_npz


def read_clip(path, frames):
    """uint8 (C,T,H,W), decoded as data sets are."""
    return rearrange(read_frames(path, range(frames)), "t c h w -> c t h w")


def psnr(one, other):
    return float(10 * torch.log10(255**2 / (one.double() - other.double()).square().mean()))


@pytest.mark.parametrize("fps", [8, 25, 30000 / 1001, 7.5])
def test_mp4_round_trip(tmp_path, fps):
    clip = smooth_clip()
    write_mp4(tmp_path / "c.mp4", clip, fps)
    info = probe(tmp_path / "c.mp4")
    assert (info.frames, info.height, info.width) == (9, 48, 64)
    assert info.fps == pytest.approx(fps, rel=1e-4)
    assert psnr(read_clip(tmp_path / "c.mp4", 9), clip) > 30


@pytest.mark.parametrize(("height", "width"), [(47, 63), (48, 63), (47, 64), (33, 35)])
def test_mp4_pads_odd_sides_by_their_edge(tmp_path, height, width):
    clip = smooth_clip(4, height, width)
    write_mp4(tmp_path / "c.mp4", clip, 10)
    frames = read_clip(tmp_path / "c.mp4", 4)
    assert frames.shape == (3, 4, height + height % 2, width + width % 2)
    assert psnr(frames[..., :height, :width], clip) > 30
    assert psnr(frames[..., -1, :width], clip[..., -1, :]) > 25


def test_lower_crf_is_nearer(tmp_path):
    clip = torch.randint(256, (3, 4, 32, 32), dtype=torch.uint8)
    quality = []
    for crf in (5, 40):
        write_mp4(tmp_path / "c.mp4", clip, 10, crf=crf)
        quality.append(psnr(read_clip(tmp_path / "c.mp4", 4), clip))
    assert quality[0] > quality[1]


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63), (1, 1), (7, 2), (64, 33)])
def test_ffv1_gives_the_same_bytes(tmp_path, height, width):
    clip = torch.randint(256, (3, 5, height, width), dtype=torch.uint8)
    write_ffv1(tmp_path / "c.mkv", clip, 7.5)
    assert torch.equal(read_clip(tmp_path / "c.mkv", 5), clip)
    info = probe(tmp_path / "c.mkv")
    assert (info.frames, info.height, info.width) == (5, height, width) and info.fps == pytest.approx(7.5)


def test_npz_round_trip(tmp_path):
    clip = torch.randint(256, (3, 5, 7, 9), dtype=torch.uint8)
    write_npz(tmp_path / "c.npz", clip, 29.97)
    with np.load(tmp_path / "c.npz", allow_pickle=False) as archive:
        assert archive["fps"] == 29.97
        assert torch.equal(rearrange(torch.from_numpy(archive["frames"]), "t h w c -> c t h w"), clip)


@pytest.mark.parametrize("format", FORMATS)
def test_same_clip_gives_the_same_bytes_and_another_one_replaces_it(tmp_path, format):
    clip = smooth_clip(4, 35, 33)
    (tmp_path / "b").mkdir()
    one, other = write_clip(tmp_path / "a.0", clip, 8, format), write_clip(tmp_path / "b" / "c", clip, 8, format)
    assert one.name == f"a.0{FORMATS[format].suffix}"
    assert content(one) == content(other)
    write_clip(tmp_path / "a.0", 255 - clip, 8, format)
    assert content(one) != content(other) and clip_file_is_whole(one, format, 4, 35, 33)
    assert {entry.name for entry in tmp_path.iterdir()} == {one.name, "b"}


def content(path):
    return [file.read_bytes() for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from sparsevid.videos.write import FORMATS, write_clip

folder = Path(sys.argv[1])
clip = torch.randint(256, (3, 4, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
free = resource.RLIM_INFINITY
for format in FORMATS:
    path = write_clip(folder / "whole", clip, 8, format)
    size = max(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
    for limit in (100, size // 2, size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, free))
        try:
            write_clip(folder / "out", clip, 8, format)
            caught = None
        except OSError as error:
            caught = error
        resource.setrlimit(resource.RLIMIT_FSIZE, (free, free))
        assert caught is not None, (format, limit)
names = ["whole" + each.suffix for each in FORMATS.values()]
assert sorted(entry.name for entry in folder.iterdir()) == sorted(names)
print("nothing left")
"""


def test_where_no_more_can_be_written_nothing_is_left(tmp_path):
    """In a process of its own, whose files may not grow beyond a limit, as on a full disk."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "nothing left" in done.stdout, done.stderr


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_that_cannot_be_written_to(tmp_path, format):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        write_clip(tmp_path / "file" / "clip", smooth_clip(2), 8, format)


@pytest.mark.parametrize("fps", [7, 8, 25, 30])
def test_gif_lasts_as_long_as_the_clip(tmp_path, fps):
    clip = smooth_clip(20)
    write_gif(tmp_path / "c.gif", clip, fps, scale=2)
    with Image.open(tmp_path / "c.gif") as image:
        assert image.size == (128, 96) and image.n_frames == 20 and image.info["loop"] == 0
        total = 0
        for i in range(20):
            image.seek(i)
            total += image.info["duration"]
    assert total == pytest.approx(20 / fps * 1000, abs=5)


@pytest.mark.parametrize("held", ["some", "all"])
@pytest.mark.parametrize("format", FORMATS)
def test_frames_that_are_held_are_read_as_often_as_they_were_written(tmp_path, format, held):
    """Frame by frame: no format makes one of equal neighbours, or one that lasts longer."""
    order = [0, 0, 1, 1, 1, 2, 3, 0, 0, 4, 4, 4, 4, 5, 5, 5] if held == "some" else [3] * 16
    clip = smooth_clip(6)[:, order]
    path = write_clip(tmp_path / "c", clip, 8, format)
    assert probe(path).frames == 16 and clip_file_is_whole(path, format, 16, *clip.shape[2:])
    read = read_clip(path, 16)
    assert psnr(read, clip) > 25
    if format in ("gif", "frames", "npz", "ffv1"):
        equal = [torch.equal(read[:, i], read[:, i - 1]) for i in range(1, 16)]
        assert equal == [a == b for a, b in pairwise(order)]


@pytest.mark.parametrize("fps", [7, 50, 60, 95, 100])
def test_frames_of_a_gif_begin_when_they_are_shown(tmp_path, fps):
    write_gif(tmp_path / "c.gif", smooth_clip(20), fps)
    assert frame_times(tmp_path / "c.gif") == pytest.approx([i / fps for i in range(20)], abs=0.0051)


def test_gif_is_near_the_clip(tmp_path):
    clip = smooth_clip(5)
    write_gif(tmp_path / "c.gif", clip, 10)
    assert psnr(read_clip(tmp_path / "c.gif", 5), clip) > 25


def test_png_frames_are_exact(tmp_path):
    clip = torch.randint(256, (3, 5, 7, 9), dtype=torch.uint8)
    write_frames(tmp_path / "new" / "folder", clip)
    names = sorted(entry.name for entry in (tmp_path / "new" / "folder").iterdir())
    assert names == [f"{i:06d}.png" for i in range(5)]
    read = torch.stack([torch.from_numpy(np.array(Image.open(tmp_path / "new" / "folder" / name))) for name in names])
    assert torch.equal(rearrange(read, "t h w c -> c t h w"), clip)


def test_frames_of_two_clips_do_not_mix(tmp_path):
    clip = torch.zeros(3, 5, 4, 4, dtype=torch.uint8)
    write_frames(tmp_path, clip)
    write_frames(tmp_path, clip + 9)
    assert (np.array(Image.open(tmp_path / "000004.png")) == 9).all()
    with pytest.raises(FileExistsError, match=r"000003\.png, not of this clip of 3 frames"):
        write_frames(tmp_path, clip[:, :3])


def test_a_folder_of_frames_stays_as_it_was_if_the_new_one_fails(tmp_path, monkeypatch):
    clip = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    write_frames(tmp_path / "c", clip)
    save, saved = Image.Image.save, []

    def fail_at_second(image, path, **options):
        saved.append(path)
        if len(saved) == 2:
            raise OSError("disk full")
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", fail_at_second)
    with pytest.raises(OSError, match="disk full"):
        write_frames(tmp_path / "c", clip + 9)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]
    assert clip_file_is_whole(tmp_path / "c", "frames", 3, 4, 4)
    assert (np.array(Image.open(tmp_path / "c" / "000000.png")) == 0).all()


def test_contact_sheet_shows_clips_in_rows_and_frames_in_columns():
    clips = torch.randint(256, (3, 3, 5, 6, 8), dtype=torch.uint8)
    sheet = torch.from_numpy(np.array(contact_sheet(clips)))
    assert sheet.shape == (3 * 6 + 2 * GAP, 5 * 8 + 4 * GAP, 3)
    for n in range(3):
        for t in range(5):
            top, left = n * (6 + GAP), t * (8 + GAP)
            assert torch.equal(sheet[top : top + 6, left : left + 8], rearrange(clips[n, :, t], "c h w -> h w c"))
    assert (sheet[6 : 6 + GAP] == 255).all()


def test_contact_sheet_spaces_frames_evenly_with_both_ends():
    clip = torch.arange(29, dtype=torch.uint8).reshape(1, 1, 29, 1, 1).expand(1, 3, 29, 4, 4)
    sheet = np.array(contact_sheet(clip, max_frames=8))
    assert [int(sheet[0, i * (4 + GAP), 0]) for i in range(8)] == [0, 4, 8, 12, 16, 20, 24, 28]


def test_contact_sheet_scale_and_captions(tmp_path):
    clips = torch.zeros(2, 3, 4, 32, 32, dtype=torch.uint8)
    plain, captioned = contact_sheet(clips, scale=2), contact_sheet(clips, ["owl", "größe"], scale=2)
    assert plain.size == (4 * 64 + 3 * GAP, 2 * 64 + GAP)
    assert captioned.width == plain.width and captioned.height > plain.height
    assert np.array(captioned)[:10].min() < 128, "the caption is drawn"
    write_contact_sheet(tmp_path / "s.png", clips, ["owl", "größe"], scale=2)
    assert np.array_equal(np.array(Image.open(tmp_path / "s.png")), np.array(captioned))


def test_a_caption_that_is_too_wide_is_cut():
    clips = torch.zeros(1, 3, 2, 16, 16, dtype=torch.uint8)
    long = "a very long name of a class that does not fit"
    cut = np.array(contact_sheet(clips, [long]))
    assert cut.shape == np.array(contact_sheet(clips, ["a"])).shape
    assert not np.array_equal(cut, np.array(contact_sheet(clips, ["a ver"])))
    for longer in (long + " at all", long + " at all" * 5000):  # which is not measured letter by letter
        assert np.array_equal(cut, np.array(contact_sheet(clips, [longer])))  # cut at the same place, with the same mark


def test_board_shows_blocks_under_their_captions(tmp_path):
    blocks = [Image.new("RGB", (40, 20 + i), (i, 0, 0)) for i in range(3)]
    sheet = np.array(board(blocks, ["ddim 5", "ddim 10", "ddim 20: with more than fits"], columns=2))
    cells = [(0, 0), (0, 1), (1, 0)]
    height, width = sheet.shape[0] // 2, sheet.shape[1] // 2
    for i, (row, column) in enumerate(cells):
        part = sheet[row * height :, column * width :]
        assert (part == [i, 0, 0]).all(axis=-1).sum() >= 40 * (20 + i) - 40
    assert sheet[:CAPTION_HEIGHT, :40].min() < 128, "the caption is drawn"
    write_board(tmp_path / "b.png", blocks, ["a", "b", "c"], columns=5)
    assert Image.open(tmp_path / "b.png").width > 3 * 40
    for wrong in ((blocks, ["a"], 1), ([], [], 1), (blocks, ["a", "b", "c"], 0)):
        with pytest.raises(ValueError, match="a caption for each"):
            board(*wrong)


@pytest.mark.parametrize(("columns", "scale"), [(None, 1), (3, 2), (9, 1)])
def test_grid_plays_clips_side_by_side(columns, scale):
    clips = torch.randint(255, (5, 3, 4, 6, 8), dtype=torch.uint8)
    grid = clip_grid(clips, columns, scale)
    across = min(columns or 3, 5)
    assert grid.shape[:2] == (3, 4)
    for n, clip in enumerate(clips):
        top, left = n // across * (6 * scale + GAP), n % across * (8 * scale + GAP)
        assert torch.equal(grid[..., top : top + 6 * scale : scale, left : left + 8 * scale : scale], clip)
    assert (grid == 255).sum() == grid.numel() - clips.numel() * scale**2  # all else is white


def test_names_stand_beside_their_rows():
    clips = [smooth_clip(3, 16, 24).roll(shift, dims=-1) for shift in range(4)]
    plain, named = (
        np.array(contact_sheet(clips, each, beside=True)) for each in (None, ["owl", "a longer name", "elk", "yak"])
    )
    width = named.shape[1] - plain.shape[1]
    assert np.array_equal(named[:, width:], plain) and named.shape[0] == plain.shape[0]
    rows = [named[top : top + 16, :width] for top in range(0, named.shape[0], 16 + GAP)]
    assert all((row < 128).any() for row in rows) and not np.array_equal(rows[0], rows[2])
    grid, with_names = (clip_grid(clips, 2, names=names) for names in (None, ["owl", "elk"]))
    left = with_names.shape[-1] - grid.shape[-1]
    assert torch.equal(with_names[..., left:], grid)
    assert (with_names[..., :left] < 128).any() and torch.equal(with_names[:, 0, :, :left], with_names[:, 2, :, :left])
    with pytest.raises(ValueError, match="3 names for 2 rows"):
        clip_grid(clips, 2, names=["owl", "elk", "yak"])


@pytest.mark.parametrize("name", ["g.mp4", "g.gif", "g.mkv", "g.MKV"])
def test_grid_as_a_file(tmp_path, name):
    clips = torch.stack([smooth_clip(4), 255 - smooth_clip(4)])
    write_grid(tmp_path / name, clips, 8, columns=2)
    assert psnr(read_clip(tmp_path / name, 4), clip_grid(clips, 2)) > 18
    with pytest.raises(ValueError, match=r"written as \.mkv, \.mp4, \.gif, \.npz, got the name 'g\.avi'"):
        write_grid(tmp_path / "g.avi", clips, 8)


WRITERS = {
    "mp4": lambda path, clip: write_mp4(path, clip, 10),
    "gif": lambda path, clip: write_gif(path, clip, 10),
    "ffv1": lambda path, clip: write_ffv1(path, clip, 10),
    "npz": lambda path, clip: write_npz(path, clip, 10),
    "png": write_frames,
    "sheet": lambda path, clip: write_contact_sheet(path, [clip]),
    "board": lambda path, clip: write_board(path, [contact_sheet([clip])], [""], 1),
}
NOT_CLIPS = {
    "float": torch.zeros(3, 2, 4, 4),
    "frames first": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
    "batch": torch.zeros(1, 3, 2, 4, 4, dtype=torch.uint8),
    "no frame": torch.zeros(3, 0, 4, 4, dtype=torch.uint8),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("wrong", NOT_CLIPS)
def test_what_is_no_clip_is_refused_and_leaves_nothing(tmp_path, writer, wrong):
    with pytest.raises(ValueError, match=r"a clip is uint8 \(3,T,H,W\)"):
        WRITERS[writer](tmp_path / "out", NOT_CLIPS[wrong])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", WRITERS)
def test_no_temporary_file_stays(tmp_path, writer):
    WRITERS[writer](tmp_path / "out", smooth_clip(3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    write_mp4(tmp_path / "c.mp4", smooth_clip(), 10)
    before = (tmp_path / "c.mp4").read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_mp4(tmp_path / "c.mp4", smooth_clip(3), 10)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.mp4"]
    assert (tmp_path / "c.mp4").read_bytes() == before


def test_numbers_out_of_range(tmp_path):
    clip = smooth_clip(3)
    for write in (
        lambda: write_mp4(tmp_path / "x", clip, 0),
        lambda: write_mp4(tmp_path / "x", clip, 10, crf=60),
        lambda: write_ffv1(tmp_path / "x", clip, -1),
        lambda: write_npz(tmp_path / "x", clip, 0),
        lambda: clip_grid([clip], columns=0),
        lambda: clip_grid([clip, smooth_clip(4)]),
        lambda: write_gif(tmp_path / "x", clip, 0),
        lambda: write_gif(tmp_path / "x", clip, 200),
        lambda: write_gif(tmp_path / "x", clip, 10, scale=0),
        lambda: contact_sheet([clip], max_frames=0),
        lambda: contact_sheet([]),
        lambda: contact_sheet([clip], ["one", "two"]),
        lambda: contact_sheet([clip, smooth_clip(4)]),
    ):
        with pytest.raises(ValueError, match="got|captions for"):
            write()
    assert list(tmp_path.iterdir()) == []
