"""The benchmark of decoders: what counts as right, and that what a decoder refuses, dies of or hangs on is a row."""

import json
import mmap
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from rich.markdown import Markdown
from videos.made import write_video
from videos.shown import TURNS, write_shown

from sparsevid.benchmark.decoders import (
    DECODER_COLUMNS,
    DECODER_LINES,
    SPAN,
    DecoderResult,
    Failure,
    decoder_rows,
    decoders_as_json,
    measure_accuracy,
    measure_decoders,
    measure_growth,
    measure_speed,
    open_decoder,
    reference,
)
from sparsevid.benchmark.report import as_markdown
from sparsevid.cli import run_tool
from sparsevid.videos.read import BACKENDS, DecodeError


@pytest.fixture
def video(tmp_path) -> Path:
    return write_video(tmp_path / "v.mp4", frames=50, movflags="faststart")


@pytest.fixture
def pipe(tmp_path) -> Path:
    """A file that nothing writes to: who opens it waits for ever."""
    os.mkfifo(tmp_path / "pipe.mp4")
    return tmp_path / "pipe.mp4"


def measuring() -> list[psutil.Process]:
    """Processes that measure for this one."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return found


def cut(path: Path, share: float) -> Path:
    """The first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def test_every_frame_of_an_intact_file_is_exact(video):
    found = measure_accuracy(open_decoder("pyav"), video)
    assert (found.frames, found.exact) == (50, 50)
    assert str(found) == "50/50 exact"


@pytest.mark.parametrize("matrix", ["clockwise", "mirrored"])
def test_stored_pixels_are_compared_whatever_a_player_shows(matrix, tmp_path):
    path = write_shown(tmp_path / "turned.mp4", matrix=TURNS[matrix][0])
    assert measure_accuracy(open_decoder("pyav"), path).exact == 8
    found = measure_accuracy(open_decoder("decord"), path)  # which turns by itself, to another shape
    assert found.frames == 8 and found.exact + found.other_colours + found.wrong + found.refused == 8


@pytest.mark.parametrize("name", ["v.mp4", "v.avi", "v.mkv"])
def test_of_a_file_that_breaks_off_what_came_before_counts(name, tmp_path):
    codec, muxing = ("mpeg4", "") if name.endswith("avi") else ("libx264", "faststart" if name.endswith("mp4") else "")
    path = cut(write_video(tmp_path / name, codec, frames=50, movflags=muxing), 0.6)
    found = measure_accuracy(open_decoder("pyav"), path)
    assert 0 < found.frames < 50 and not found.wrong and not found.other_colours
    assert found.exact + found.refused == found.frames and found.exact > found.frames / 2


def test_of_a_file_without_its_index_nothing_is_expected(tmp_path):
    path = cut(write_video(tmp_path / "v.mp4"), 0.6)
    assert reference(path) == []
    with pytest.raises(DecodeError):
        measure_accuracy(open_decoder("pyav"), path)
    found = measure_accuracy(lambda path, indices: np.zeros((len(indices), 4, 4, 3), np.uint8), path)
    assert str(found) == "opens and gives 1 frame, where FFmpeg decodes none"


def test_what_a_decoder_gets_wrong_is_told_apart(video):
    read = open_decoder("pyav")

    def refuse(path, indices):
        raise KeyError(path)

    readers = {
        "0/50 exact, 50 wrong": lambda path, indices: read(path, [i - 1 if i else 1 for i in indices]),
        "0/50 exact, 50 other colours": lambda path, indices: read(path, indices) // 2 * 2 + 1 - read(path, indices) % 2,
        "0/50 exact, 50 refused (KeyError)": refuse,
    }
    for text, reader in readers.items():
        assert str(measure_accuracy(reader, video)) == text
    assert measure_accuracy(lambda path, indices: read(path, indices)[:, :-1], video).wrong == 50


@pytest.mark.parametrize("decoder", BACKENDS)
def test_speed_and_growth_are_numbers(decoder, video):
    read = open_decoder(decoder)
    assert measure_speed(read, video, seconds=0.05).clips_per_second > 0
    assert str(measure_growth(read, video, opens=20)).endswith(" MB")


def test_growth_is_that_of_what_is_kept(video):
    """Of pages of its own: what an array takes may have been this process's before."""
    kept = []

    def read(path, indices):
        kept.append(mmap.mmap(-1, 1 << 20))
        kept[-1].write(bytes(1 << 20))

    assert measure_growth(read, video, opens=64).gained_bytes >= 32 << 20


def test_a_file_shorter_than_a_clip_has_no_speed(tmp_path):
    with pytest.raises(ValueError, match=f"a clip spans {SPAN} frames, and there are 5"):
        measure_speed(open_decoder("pyav"), write_video(tmp_path / "v.mp4", frames=5))


def test_a_decoder_that_hangs_is_a_row(pipe):
    (found,) = measure_decoders([pipe], ["pyav"], ["accuracy"], limit=0.1)
    assert found.found == Failure("hangs (> 0.1 s)")
    assert not measuring()


def test_a_decoder_that_dies_is_a_row_and_no_end(pipe, video):
    def kill():
        while not (found := measuring()):
            time.sleep(0.01)
        found[0].kill()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    measured = measure_decoders([pipe, video], ["pyav"], ["accuracy"])
    thread.join()
    rows = [["pyav", "accuracy", "pipe.mp4", "dies of SIGKILL"], ["pyav", "accuracy", "v.mp4", "50/50 exact"]]
    assert decoder_rows(measured) == rows


def test_table_and_json_say_the_same(video, tmp_path):
    read = open_decoder("pyav")
    numbers = [measure_accuracy(read, video), measure_speed(read, video, 0.05), measure_growth(read, video, 10)]
    failure = Failure("DECORDError: [10:00] a|b\nat c")
    measured = [DecoderResult("pyav", "any", video, found) for found in (*numbers, failure)]
    rows = decoder_rows(measured)
    table = as_markdown({"command": "here"}, DECODER_LINES, DECODER_COLUMNS, rows)
    assert [each.type for each in Markdown(table).parsed].count("td_open") == 4 * len(rows)
    values = json.loads(json.dumps(decoders_as_json({"command": "here"}, measured)))
    assert values["header"] == {"command": "here"}
    accuracy, speed, growth, failed = values["results"]
    assert all((each["decoder"], each["measure"], each["file"]) == ("pyav", "any", str(video)) for each in values["results"])
    assert [row[3] for row in rows] == [
        f"{accuracy['exact']}/{accuracy['frames']} exact",
        f"{speed['clips_per_second']:.1f} clips/s",
        f"{growth['gained_bytes'] / 1e6:+.1f} MB",
        "DECORDError: [10:00] a\\|b at c",
    ]
    assert failed["failure"] == failure.failure


def test_command(tmp_path, capsys):
    path = cut(write_video(tmp_path / "cut.mp4"), 0.6)
    arguments = ["decoders", str(path), "--backends", "pyav", "--measures", "accuracy", "--json", str(tmp_path / "d.json")]
    assert run_tool("benchmark", arguments) == 0
    printed = capsys.readouterr().out
    (found,) = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))["results"]
    assert found["failure"].startswith("DecodeError: ")
    assert "| pyav | accuracy | cut.mp4 | DecodeError: " in printed and "- decoders: PyAV " in printed


def test_bad_input_is_named(video, tmp_path, monkeypatch, capsys):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4 is no file"):
        measure_decoders([video, tmp_path / "nowhere.mp4"])
    with pytest.raises(ValueError, match="no measure 'size'; the measures are accuracy, speed, growth"):
        measure_decoders([video], measures=["size"])
    with pytest.raises(ValueError, match="no decoder 'cv2'; the decoders are pyav, decord"):
        measure_decoders([video], ["cv2"])
    for options in ({"limit": 0}, {"limit": float("nan")}, {"limit": float("inf")}, {"seconds": 0}, {"opens": 0}):
        with pytest.raises(ValueError, match="need limit and seconds above 0, and opens from 1"):
            measure_decoders([video], **options)
    monkeypatch.setitem(sys.modules, "decord", None)
    assert run_tool("benchmark", ["decoders", str(video)]) == 2
    assert "'decord' cannot be imported" in capsys.readouterr().err
