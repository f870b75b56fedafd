"""Members of archives are read at any place, and what lies before it is inflated once and not for every read."""

import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsevid.data.tree.manifest import build_manifest
from sparsevid.data.whole import video_frames
from sparsevid.videos.archive_members import Member
from sparsevid.videos.array_files import archive_member
from sparsevid.videos.read import DecodeError, iter_frames, probe, read_frames

CLIP = (4, 64, 64, 3)  # 49,152 bytes
MEGABYTE = 2**20


def clips(count: int, seed: int = 0) -> np.ndarray:
    """uint8 (N,T,H,W,3) in stripes, which are compressed in no time."""
    stripes = np.random.default_rng(seed).integers(0, 256, (count, *CLIP[:2], 1, 3), dtype=np.uint8)
    return np.repeat(stripes, CLIP[2], axis=3)


def written(path: Path, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("before.txt", "something else")
        archive.writestr("content", content)
    return archive.getinfo("content")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_any_place_reads_as_it_was_written(tmp_path, compression):
    content = clips(400).tobytes()  # 19 MB, more than lies between two places that are remembered
    info = written(tmp_path / "a.zip", content, compression)
    draw = random.Random(0)
    with (tmp_path / "a.zip").open("rb") as file:
        member = Member(file, info)
        places = [(draw.randrange(len(content)), draw.randrange(200_000)) for _ in range(40)]
        for place, size in (*places, (0, 5), (len(content) - 3, 10), (len(content), 4), (0, 0)):
            assert member.read(file, place, size) == content[place : place + size]


def test_what_is_inflated_grows_with_the_file_and_not_with_its_square(tmp_path):
    """Forty clips one by one, as a run or an evaluation reads them: 2 MB, and not 20 times as much."""
    stack = clips(40)
    path = tmp_path / "stack.npz"
    np.savez_compressed(path, stack)
    videos = build_manifest(tmp_path).videos
    for video, clip in zip(videos, stack, strict=True):
        frames = read_frames(path, range(video.first, video.first + video.frames))
        assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), clip)
    assert inflated(path) <= stack.nbytes + MEGABYTE
    for video in videos:
        assert sum(len(part) for part in video_frames(tmp_path, video, (64, 64))) == video.frames
    assert torch.cat(list(iter_frames(path, 16))).shape == (160, 3, 64, 64)
    assert inflated(path) <= 4 * stack.nbytes + MEGABYTE


def test_a_place_before_the_last_one_is_near_one_that_is_remembered(tmp_path):
    """From the end to the beginning, the worst order: 20 MB of file, 4 MB at most on the way to each clip."""
    stack = clips(420)
    path = tmp_path / "stack.npz"
    np.savez_compressed(path, stack)
    backwards = range(4 * 419, -1, -80)
    for first in backwards:
        read_frames(path, [first])
    assert inflated(path) <= stack.nbytes + len(backwards) * 5 * MEGABYTE
    with path.open("rb") as file, zipfile.ZipFile(path) as archive:
        assert len(archive_member(path, file, archive.getinfo("arr_0.npy"))) < 500_000  # bytes that are remembered


def inflated(path: Path) -> int:
    with path.open("rb") as file, zipfile.ZipFile(path) as archive:
        return archive_member(path, file, archive.getinfo("arr_0.npy")).inflated


def test_a_file_that_was_changed_is_read_anew(tmp_path):
    path = tmp_path / "a.npz"
    for seed in range(3):
        stack = clips(2 + seed, seed)
        np.savez_compressed(path, stack)
        assert np.array_equal(read_frames(path, range(8)).permute(0, 2, 3, 1).numpy(), stack.reshape(-1, *CLIP[1:])[:8])


def damaged(path: Path, place: float) -> Path:
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0x55
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_damage_is_found_by_a_full_scan(tmp_path, place, save):
    """By the decoder, or where that takes other bytes for as good, by the checksum."""
    path = tmp_path / "a.npz"
    save(path, clips(8))
    damaged(path, place)
    assert probe(path).frames == 32
    with pytest.raises(ValueError, match="no usable video.*passed over: a frame cannot be decoded: 1"):
        build_manifest(tmp_path, full_scan=True)
    for _ in range(2):  # also when the way to it is remembered
        with pytest.raises(DecodeError, match="not readable as an array"):
            read_frames(path, range(32))


def test_what_cannot_be_read_at_any_place_is_refused_by_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_BZIP2) as archive, archive.open("x.npy", "w") as file:
        np.save(file, clips(1))
    with pytest.raises(DecodeError, match="x.npy is encrypted, or compressed in way 12; accepted: deflated"):
        read_frames(tmp_path / "a.npz", [0])
