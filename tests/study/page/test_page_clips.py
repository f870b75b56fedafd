"""Clips on their way to the page: files, pictures of all frames, what a line is."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from study_lines import line, moving, write, write_clips

from sparsevid.study.measurements import read_studies
from sparsevid.study.page.clips import (
    SIDE,
    ShownClips,
    clips_of,
    columns_of,
    encode,
    lines_of,
    read_clips,
    sprite,
    trimmed,
)


def frame_at(picture: np.ndarray, clips: np.ndarray, number: int, frame: int) -> np.ndarray:
    """A frame cut out as `page.js` does."""
    _, _, frames, height, width = clips.shape
    columns = columns_of(frames, width)
    top = (number * -(-frames // columns) + frame // columns) * height
    left = frame % columns * width
    return picture[top : top + height, left : left + width].transpose(2, 0, 1)


@pytest.mark.parametrize("shape", [(3, 5, 8, 12), (2, 70, 4, 400)])  # 70 frames of 400 pixels: two lines of frames
def test_frames_come_back_from_the_picture_as_they_were(shape):
    count, frames, height, width = shape
    clips = np.random.default_rng(0).integers(0, 255, (count, 3, frames, height, width), dtype=np.uint8)
    picture = sprite(clips)
    assert max(picture.size) <= SIDE
    uris, quality = encode({"row": picture}, 10**9)
    head, _, data = uris["row"].partition(",")
    assert (head, quality) == ("data:image/webp;base64", None)
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    for number in range(count):
        for frame in range(frames):
            assert (frame_at(decoded, clips, number, frame) == clips[number, :, frame]).all()


def test_quality_falls_until_all_pictures_fit():
    drawn = np.random.default_rng(0)
    pictures = {name: Image.fromarray(drawn.integers(0, 255, (64, 96, 3), dtype=np.uint8)) for name in "ab"}
    sizes, qualities = [], []
    for budget in (10**9, 25_000, 12_000, 0):
        uris, quality = encode(pictures, budget)
        sizes.append(sum(map(len, uris.values())))
        qualities.append(quality)
        assert sizes[-1] <= budget + 100 or quality == 40
    assert qualities[0] is None
    assert qualities[-1] == 40
    assert sizes == sorted(sizes, reverse=True)
    assert encode({}, 10) == ({}, None)


def test_clips_are_read_from_either_kind_of_file(tmp_path):
    clips = moving(2)
    np.save(tmp_path / "a.npy", clips)
    np.savez(tmp_path / "b.npz", other=np.zeros(3), clips=clips)
    np.savez(tmp_path / "c.npz", anything=clips)
    for name in ("a.npy", "b.npz", "c.npz"):
        read, names = read_clips(tmp_path / name)
        assert (read == clips).all()
        assert names == ()
    np.savez_compressed(tmp_path / "d.npz", classes=np.array(["pong", "qbert"]), clips=clips)
    assert read_clips(tmp_path / "d.npz")[1] == ("pong", "qbert")


def test_other_files_are_refused_by_name(tmp_path):
    np.save(tmp_path / "float.npy", moving(1).astype(np.float32))
    np.save(tmp_path / "last.npy", moving(1).transpose(0, 2, 3, 4, 1))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "none.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "none.npz").read_bytes()[:9])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "float.npy").read_bytes()[:90])
    (tmp_path / "empty.npy").touch()
    (tmp_path / "clips.mp4").touch()
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=path.name):
            read_clips(path)


def test_clips_that_cannot_be_read_are_named_and_another_seed_stands_in(tmp_path):
    written = [
        line("dense", 0) | {"shown": "gone.npz"},
        line("dense", 1) | {"shown": write_clips(tmp_path, "one.npz", moving(2)), "classes": ["pong", "qbert"]},
        {"study": "paper", "row": "real", "seed": 0, "shown": "one.npz"},
        line("sparse", 0),
    ]
    (study,), _ = read_studies([write(tmp_path / "paper.jsonl", written)])
    problems: list[str] = []
    found = clips_of(study, problems)
    assert [(each.row, each.seed) for each in found] == [("real", 0), ("dense", 1)]
    assert study.rows == ["dense", "sparse"]  # real clips are nobody's measurement
    (problem,) = problems
    assert "gone.npz" in problem


def test_real_clips_are_those_that_lines_name_beside_their_own(tmp_path):
    np.savez_compressed(tmp_path / "real.npz", clips=moving(2), classes=np.array(["qbert", "pong"]))
    own = write_clips(tmp_path, "own.npz", moving(1))
    written = [line("sparse", 0) | {"shown": own, "shown_real": "real.npz", "classes": ["pong"]}]
    (study,), _ = read_studies([write(tmp_path / "paper.jsonl", written)])
    found = clips_of(study, [])
    assert [(each.row, each.classes) for each in found] == [("real", ("qbert", "pong")), ("sparse", ("pong",))]


def test_a_line_is_of_a_class_whatever_the_order_in_a_row():
    shape = (4, 3, 2, 4, 4)
    a = ShownClips("a", 0, ("x", "y", "x"), np.zeros(shape, np.uint8))  # its last clip has no name
    b = ShownClips("b", 0, ("y", "z", "x", "x"), np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1, 1) * np.ones(shape, np.uint8))
    lines = lines_of([a, b], None)
    assert lines == [("x", 1), ("y", 1), ("x", 2), ("", 1), ("z", 1)]
    few = trimmed(b, lines_of([a, b], 3))
    assert few.keys == [("y", 1), ("x", 1), ("x", 2)]
    assert few.clips[:, 0, 0, 0, 0].tolist() == [0, 2, 3]
    tall = trimmed(ShownClips("tall", 0, (), np.zeros((9, 3, 1, 4000, 4), np.uint8)), [("", n) for n in range(1, 10)])
    assert len(tall.clips) == 4
    sprite(tall.clips).save(io.BytesIO(), format="WEBP")
