"""Clips in .npy and .npz files: read as written, a stack cut into its clips, and nothing else taken for a video."""

import io
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsevid.data.tree.manifest import build_manifest
from sparsevid.data.whole import video_frames
from sparsevid.videos.array_files import clip_cuts
from sparsevid.videos.kinds import kind_of
from sparsevid.videos.read import DecodeError, count_decoded, frame_times, iter_frames, probe, read_frames

WRITERS = {
    "clip.npy": np.save,
    "clip.npz": lambda path, array: np.savez(path, array),
    "packed.npz": lambda path, array: np.savez_compressed(path, samples=array),
}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def channels_first(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", WRITERS)
def test_frames_are_read_as_they_were_written(tmp_path, name):
    path, array = tmp_path / name, draw(7, 5, 6, 3)
    WRITERS[name](path, array)
    info = probe(path)
    assert (info.frames, info.height, info.width, info.fps) == (7, 5, 6, None)
    wanted = [6, 0, 3, 3]
    with count_decoded() as count:
        assert torch.equal(read_frames(path, wanted), channels_first(array[wanted]))
    assert count.frames == 3
    assert torch.equal(torch.cat(list(iter_frames(path, chunk=3))), channels_first(array))
    with pytest.raises(DecodeError, match="hold no times"):
        frame_times(path)


@pytest.mark.parametrize("name", WRITERS)
def test_a_stack_becomes_a_video_for_each_clip(tmp_path, name):
    stack = draw(3, 4, 5, 6, 3)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    path = tmp_path / "deep" / "er" / name
    WRITERS[name](path, stack)
    assert clip_cuts(path) == (4, 8)
    videos = build_manifest(tmp_path).videos
    assert [(video.path, video.first, video.frames) for video in videos] == [(f"deep/er/{name}", 4 * i, 4) for i in range(3)]
    for video, clip in zip(videos, stack, strict=True):
        assert torch.equal(torch.cat(list(video_frames(tmp_path, video, (5, 6)))), channels_first(clip))


def test_one_frame_of_a_file_larger_than_memory_is_read_alone(tmp_path):
    path, shape = tmp_path / "large.npy", (2**20, 16, 256, 256, 3)  # 3 TiB, of which the disk holds nothing
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    frames = shape[0] * shape[1]
    with path.open("wb") as file:
        file.write(header.getvalue())
        file.truncate(len(header.getvalue()) + frames * 256 * 256 * 3)
        file.seek(-1, io.SEEK_END)
        file.write(b"\x07")
    last = read_frames(path, [frames - 1])
    assert last.shape == (1, 3, 256, 256) and last.sum() == last[0, 2, 255, 255] == 7


def test_labels_and_features_beside_videos_are_no_videos(tmp_path):
    """An archive may hold labels, and a frame folder keeps its frames whatever arrays lie among them."""
    np.savez(tmp_path / "samples.npz", arr_0=draw(2, 3, 4, 4, 3), arr_1=np.arange(2))
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(draw(3, 4, 4, 3)):
        Image.fromarray(frame).save(folder / f"{i}.png")
    others = {
        "labels": np.arange(4),
        "flow": np.zeros((3, 4, 4, 2), np.float32),
        "grey": draw(3, 4, 4),
        "chw": draw(2, 3, 9, 4, 4),
    }
    for name, array in others.items():
        np.save(folder / f"{name}.npy", array)
        assert kind_of(folder / f"{name}.npy") is None
    manifest = build_manifest(tmp_path, strict=True)
    assert [(video.path, video.frames) for video in manifest.videos] == [("frames", 3), ("samples.npz", 3), ("samples.npz", 3)]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), r"an array float32 \(2, 4, 4, 3\); accepted: uint8 clips"),
        (np.zeros((2, 0, 4, 3), np.uint8), r"an array uint8 \(2, 0, 4, 3\)"),
        (np.asfortranarray(draw(2, 4, 5, 3)), "Fortran order"),
    ],
)
def test_clips_of_another_kind_are_refused_with_what_was_found(tmp_path, array, reason):
    np.save(tmp_path / "clip.npy", array)
    with pytest.raises(DecodeError, match=reason):
        read_frames(tmp_path / "clip.npy", [0])
    with pytest.raises(ValueError, match="passed over: (an array in )?" + reason):
        build_manifest(tmp_path)


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    trap = np.empty((1, 2, 2, 3), object)
    trap.fill(Trap())
    np.save(tmp_path / "object.npy", trap, allow_pickle=True)
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="no usable video.*an array object"):
        build_manifest(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_ends_early_is_an_error_and_reported(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path, draw(6, 16, 16, 3))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DecodeError, match="ends before frame 5 of 6|not readable as an array"):
        read_frames(path, [5])
    path.write_bytes(whole[:40])
    with pytest.raises(ValueError, match="no usable video.*passed over: not readable as an array"):
        build_manifest(tmp_path)


def test_a_missing_frame_is_an_error(tmp_path):
    np.save(tmp_path / "clip.npy", draw(4, 4, 4, 3))
    with pytest.raises(DecodeError, match="frame 4 does not exist: the array holds 4"):
        read_frames(tmp_path / "clip.npy", [0, 4])


def test_an_archive_of_several_clips_arrays_is_refused_with_their_names(tmp_path):
    np.savez(tmp_path / "two.npz", a=draw(2, 4, 4, 3), b=draw(2, 4, 4, 3))
    with pytest.raises(DecodeError, match=r"holds one array of uint8 clips.*found: a\.npy, b\.npy"):
        probe(tmp_path / "two.npz")


def test_archives_of_something_else_are_no_videos(tmp_path):
    np.savez(tmp_path / "labels.npz", labels=np.arange(3))
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    (tmp_path / "damaged.zip").write_bytes((tmp_path / "text.zip").read_bytes()[:30])
    for path in tmp_path.iterdir():
        assert kind_of(path) is None


def ragged() -> np.ndarray:
    clips = np.empty(2, object)
    clips[:] = [draw(3, 4, 4, 3), draw(5, 4, 4, 3)]
    return clips


OTHER_LAYOUTS = {
    "(N,C,T,H,W)": draw(2, 3, 4, 5, 6),
    "(N,T,C,H,W)": draw(2, 4, 3, 5, 6),
    "(C,T,H,W)": draw(3, 4, 5, 6),
    "RGBA": draw(2, 4, 5, 6, 4),
    "grey with an axis": draw(2, 4, 5, 6, 1),
    "grey": draw(4, 5, 6),
    "objects": ragged(),
}


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
@pytest.mark.parametrize("extension", [".npy", ".npz"])
def test_arrays_in_another_layout_are_told_with_their_shape(tmp_path, layout, extension):
    """Alone, and beside clips that can be read; nothing is guessed, and nothing unpickled."""
    array = OTHER_LAYOUTS[layout]
    for i in range(3):
        if extension == ".npy":
            np.save(tmp_path / f"{i}.npy", array, allow_pickle=True)
        else:
            np.savez_compressed(tmp_path / f"{i}.npz", allow_pickle=True, samples=array)
    np.save(tmp_path / "labels.npy", np.arange(3))
    said = re.escape(f"an array {array.dtype} {array.shape}; accepted: uint8 clips (T,H,W,3) or (N,T,H,W,3)")
    with pytest.raises(ValueError, match=f"no usable video.*passed over: {said}: 3; no video or image: .npy: 1"):
        build_manifest(tmp_path)
    np.save(tmp_path / "good.npy", draw(4, 5, 6, 3))
    manifest = build_manifest(tmp_path)
    assert [video.path for video in manifest.videos] == ["good.npy"]
    assert [len(paths) for paths in manifest.others.values()] == [3, 1]
    with pytest.raises(DecodeError, match="an array|an archive holds one array"):
        read_frames(tmp_path / f"0{extension}", [0])
