"""Whole files of clips are told from damaged ones."""

import av
import numpy as np
import pytest
import torch
from smooth import smooth_clip

from sparsevid.videos.check import clip_file_is_whole
from sparsevid.videos.write import FORMATS, write_clip, write_frames


@pytest.mark.parametrize("format", FORMATS)
def test_a_whole_file_is_told_from_one_that_is_not(tmp_path, format):
    path = write_clip(tmp_path / "c", smooth_clip(9, 47, 33), 8, format)
    assert clip_file_is_whole(path, format, 9, 47, 33)
    for wrong in ((8, 47, 33), (10, 47, 33), (9, 45, 33), (9, 47, 31)):
        assert not clip_file_is_whole(path, format, *wrong)
    assert not clip_file_is_whole(tmp_path / "missing", format, 9, 47, 33)
    file = path / "000004.png" if format == "frames" else path
    whole = file.read_bytes()
    for share in (0.0, 0.05, 0.5, 0.9):
        file.write_bytes(whole[: int(len(whole) * share)])
        assert not clip_file_is_whole(path, format, 9, 47, 33), share
    file.write_bytes(whole)
    assert clip_file_is_whole(path, format, 9, 47, 33)
    file.unlink()
    assert not clip_file_is_whole(path, format, 9, 47, 33)


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_bytes_are_an_answer_and_no_error(tmp_path, format):
    path = write_clip(tmp_path / "c", smooth_clip(3, 16, 24), 8, format)
    file = path / "000001.png" if format == "frames" else path
    whole = file.read_bytes()
    ends = {*range(64), *range(len(whole) - 160, len(whole))}  # where an archive has its methods and flags
    damaged = 0
    for position in sorted(ends | set(range(64, len(whole), 61))):
        changed = bytearray(whole)
        changed[position] ^= 0xFF
        file.write_bytes(changed)
        damaged += not clip_file_is_whole(path, format, 3, 16, 24)
    assert damaged > 0


def test_a_file_of_another_kind_under_the_name_is_not_whole(tmp_path):
    with (tmp_path / "c.npz").open("wb") as file:
        np.save(file, np.zeros((3, 16, 24, 3), np.uint8))
    assert not clip_file_is_whole(tmp_path / "c.npz", "npz", 3, 16, 24)
    for format, container in (("ffv1", "matroska"), ("mp4", "mp4")):
        path = tmp_path / f"c{FORMATS[format].suffix}"
        with av.open(str(path), "w", format=container) as output:  # sound alone
            stream = output.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        assert not clip_file_is_whole(path, format, 3, 16, 24)


@pytest.mark.parametrize("format", FORMATS)
def test_a_clip_that_stands_still_is_whole(tmp_path, format):
    """A GIF keeps equal neighbouring frames as one."""
    path = write_clip(tmp_path / "c", torch.full((3, 6, 16, 16), 7, dtype=torch.uint8), 8, format)
    assert clip_file_is_whole(path, format, 6, 16, 16) and not clip_file_is_whole(path, format, 5, 16, 16)


def test_a_folder_or_file_of_another_kind_is_not_whole(tmp_path):
    path = write_clip(tmp_path / "c", smooth_clip(3), 8, "mp4")
    write_frames(tmp_path / "frames", smooth_clip(3))
    for format in ("frames", "gif", "npz", "ffv1"):
        assert not clip_file_is_whole(path, format, 3, 48, 64)
    assert not clip_file_is_whole(tmp_path / "frames", "mp4", 3, 48, 64)
    with pytest.raises(ValueError, match="no clip format 'avi'; accepted are ffv1, mp4, gif, frames, npz"):
        clip_file_is_whole(path, "avi", 3, 48, 64)
    with pytest.raises(ValueError, match="no clip format 'avi'"):
        write_clip(path, smooth_clip(3), 8, "avi")
