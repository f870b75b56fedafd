"""What is written reads back, and only whole files appear."""

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from sparsevid.data.decode import probe, read_frames
from sparsevid.video import GAP, contact_sheet, write_contact_sheet, write_frames, write_gif, write_mp4


def smooth_clip(frames=9, height=48, width=64):
    """uint8 (C,T,H,W): gradients that move."""
    axes = (torch.arange(frames) / frames, torch.linspace(0, 1, height), torch.linspace(0, 1, width))
    t, y, x = torch.meshgrid(*axes, indexing="ij")
    waves = [torch.sin(2 * torch.pi * (x + t)), torch.cos(2 * torch.pi * (y - t)), torch.sin(torch.pi * (x + y + t))]
    return (127.5 + 110 * torch.stack(waves)).round().to(torch.uint8)


def psnr(one, other):
    return float(10 * torch.log10(255**2 / (one.double() - other.double()).square().mean()))


@pytest.mark.parametrize("fps", [8, 25, 30000 / 1001, 7.5])
def test_mp4_round_trip(tmp_path, fps):
    clip = smooth_clip()
    write_mp4(tmp_path / "c.mp4", clip, fps)
    info = probe(tmp_path / "c.mp4")
    assert (info.frames, info.height, info.width) == (9, 48, 64)
    assert info.fps == pytest.approx(fps, rel=1e-4)
    assert psnr(rearrange(read_frames(tmp_path / "c.mp4", range(9)), "t c h w -> c t h w"), clip) > 30


@pytest.mark.parametrize(("height", "width"), [(47, 63), (48, 63), (47, 64), (33, 35)])
def test_mp4_pads_odd_sides_by_their_edge(tmp_path, height, width):
    clip = smooth_clip(4, height, width)
    write_mp4(tmp_path / "c.mp4", clip, 10)
    frames = rearrange(read_frames(tmp_path / "c.mp4", range(4)), "t c h w -> c t h w")
    assert frames.shape == (3, 4, height + height % 2, width + width % 2)
    assert psnr(frames[..., :height, :width], clip) > 30
    assert psnr(frames[..., -1, :width], clip[..., -1, :]) > 25


def test_lower_crf_is_nearer(tmp_path):
    clip = torch.randint(256, (3, 4, 32, 32), dtype=torch.uint8)
    quality = []
    for crf in (5, 40):
        write_mp4(tmp_path / "c.mp4", clip, 10, crf=crf)
        quality.append(psnr(rearrange(read_frames(tmp_path / "c.mp4", range(4)), "t c h w -> c t h w"), clip))
    assert quality[0] > quality[1]


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


def test_gif_is_near_the_clip(tmp_path):
    clip = smooth_clip(5)
    write_gif(tmp_path / "c.gif", clip, 10)
    assert psnr(rearrange(read_frames(tmp_path / "c.gif", range(5)), "t c h w -> c t h w"), clip) > 25


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


WRITERS = {
    "mp4": lambda path, clip: write_mp4(path, clip, 10),
    "gif": lambda path, clip: write_gif(path, clip, 10),
    "png": write_frames,
    "sheet": lambda path, clip: write_contact_sheet(path, [clip]),
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
