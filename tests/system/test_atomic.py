"""Files and folders that appear whole, and what a kill leaves of them."""

import errno
import json
import math
import os
import signal
import subprocess
import sys

import av
import pytest

from sparsevid.system.atomic import filled, json_text, renamed, write_json
from sparsevid.system.errors import told

# Puts a folder in the place of another, and is killed before the rename of this number.
KILLED = """
import os, signal, sys
from pathlib import Path
from sparsevid.system.atomic import renamed

rename, left = os.replace, int(sys.argv[2])

def replace(source, target):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

os.replace = replace
with renamed(Path(sys.argv[1])) as draft:
    draft.mkdir()
    (draft / "new").touch()
"""


def content(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def put(path, name) -> None:
    with renamed(path) as draft:
        draft.mkdir()
        (draft / name).touch()


def test_a_folder_takes_the_place_of_another(tmp_path):
    for name in ("first", "second"):
        put(tmp_path / "folder", name)
        assert content(tmp_path / "folder") == [name] and content(tmp_path) == ["folder"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_folder_survives_a_kill_at_each_of_the_two_renames(number, tmp_path):
    """The old one is there at once, or when the folder is next written; it stays if that fails, and goes if it does not."""
    path = tmp_path / "folder"
    put(path, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(number)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert path.is_dir() == (number == 1)
    with pytest.raises(OSError, match="full"), renamed(path):
        raise OSError("the disk is full")
    assert content(path) == ["old"]
    put(path, "newer")
    assert content(path) == ["newer"]
    assert not [name for name in content(tmp_path) if name.endswith(".replaced")]


def test_what_a_kill_left_of_a_removal_is_not_brought_back(tmp_path):
    path, left = tmp_path / "folder", tmp_path / ".folder.replaced"
    put(path, "new")
    left.mkdir()
    (left / "half").touch()
    with pytest.raises(OSError, match="full"), renamed(path):
        raise OSError("the disk is full")
    assert content(path) == ["new"]
    put(path, "newer")
    assert content(path) == ["newer"] and os.listdir(tmp_path) == ["folder"]


def test_json_that_every_reader_takes(tmp_path):
    """There are no tokens that JSON lacks; the file's folder is made."""
    path = tmp_path / "new" / "file.json"
    values = {"score": math.nan, "parts": (math.inf, -math.inf, 1.5), "name": "ü"}
    write_json(path, values)
    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda token: pytest.fail(token))
    assert read == {"score": "nan", "parts": ["inf", "-inf", 1.5], "name": "ü"} == json.loads(json_text(values, None))


def of_python(number):
    raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("fail", [of_python, lambda number: av.error.err_check(-number)], ids=["python", "pyav"])
def test_an_error_of_writing_knows_its_file(tmp_path, fail):
    """That of a full disk comes without one."""
    with pytest.raises(OSError, match="No space") as found, renamed(tmp_path / "file"):
        fail(errno.ENOSPC)
    assert found.value.filename == str(tmp_path / "file") and "make room" in told(found.value)


def test_a_folder_is_filled_at_once_and_keeps_what_it_has(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(ValueError, match="half"), filled(folder) as draft:
        (draft / "weights").touch()
        raise ValueError("half of it")
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()
    (folder / "README.md").write_text("mine", encoding="utf-8")
    with filled(folder) as draft:
        assert draft.parent == folder  # which may be mounted: files move within a disk
        (draft / "part").mkdir()
        for each in ("README.md", "part/weights"):
            (draft / each).write_text("new", encoding="utf-8")
    assert (folder / "README.md").read_text(encoding="utf-8") == "mine" and (folder / "part" / "weights").is_file()
    assert content(tmp_path) == ["model"]


def test_an_error_names_the_file_that_was_asked_for_and_not_its_draft(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(IsADirectoryError) as found:
        write_json(tmp_path / "there", {})
    assert found.value.filename == str(tmp_path / "there")
