"""One process writes into a folder at a time; who comes second is told of the first, and takes nothing of its."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from data.caches import write
from evaluation.feature_ranks import DrawnClips, SmallNetwork
from videos.made import write_video

from sparsevid.data.tree.manifest import build_manifest
from sparsevid.evaluation.features import compute_features
from sparsevid.generation.folder import ClipFolder, JobRecord
from sparsevid.system.locks import LOCK, FolderLock, LockedError, folder_locked


@contextmanager
def holding(*folders: object) -> Iterator[int]:
    """Another process has the folders; its pid."""
    command = [sys.executable, Path(__file__).with_name("holds.py"), *map(str, folders)]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})
    try:
        assert process.stdout.readline() == "held\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> Iterator[tuple[Path, int]]:
    """A folder in which another process writes samples, a cache, features `f` and features `g`; and its pid."""
    root = tmp_path_factory.mktemp("held")
    parts = [f"beside:{root}/.{name}.safetensors.parts" for name in "fg"]
    with holding(root / "samples", root / "cache", *parts) as pid:
        yield root, pid


def test_the_second_is_told_of_the_first_until_that_one_is_gone(tmp_path):
    """However it went. Nothing is left in the folder by a process that could clear up."""
    folder = tmp_path / "a" / "b"
    with holding(folder) as pid:
        for _ in range(2):
            with pytest.raises(LockedError, match=rf"{folder} is being written by pid {pid} on \S+: wait for its end"):
                FolderLock(folder)
    assert [path.name for path in folder.iterdir()] == [LOCK]
    with folder_locked(folder):
        pass
    assert not list(folder.iterdir())


def test_a_lock_beside_its_folder_needs_none(tmp_path):
    with FolderLock(tmp_path / "x", beside=True):
        assert [path.name for path in tmp_path.iterdir()] == [f"x{LOCK}"]
    assert not list(tmp_path.iterdir())


def test_a_lock_of_a_folder_that_is_removed_ends_quietly(tmp_path):
    with FolderLock(tmp_path / "x") as lock:
        lock.path.unlink()
        (tmp_path / "x").rmdir()
    with FolderLock(tmp_path / "x"):
        pass


def test_samples_in_the_works_are_left_alone(held, tmp_path):
    """Drafts of the first job stay."""
    root, pid = held
    draft = root / "samples" / ".000000.mp4.0123abcd.partial"
    draft.touch()
    record = JobRecord(1, {}, [{}])
    with pytest.raises(LockedError, match=f"samples is being filled by pid {pid}"):
        ClipFolder(root / "samples", ["mp4"], (4, 16, 24), 8.0).begin(record)
    assert draft.exists()
    free = ClipFolder(tmp_path, ["mp4"], (4, 16, 24), 8.0)
    free.begin(record)
    free.end()
    assert [path.name for path in tmp_path.iterdir()] == ["samples.json"]


def test_a_cache_in_the_works_is_left_alone(held, tmp_path):
    root, pid = held
    write_video(tmp_path / "long.mp4", frames=8)
    with pytest.raises(LockedError, match=f"cache is being written by pid {pid}"):
        write(root / "cache", build_manifest(tmp_path))
    assert [path.name for path in (root / "cache").iterdir()] == [LOCK]


def test_features_in_the_works_are_left_alone(held):
    """Also by who finds finished ones there: the parts beside them are another's."""
    root, pid = held
    with pytest.raises(LockedError, match=f"is being written by pid {pid}"):
        compute_features(DrawnClips(4), SmallNetwork(), batch_size=2, out=root / "f.safetensors")
    done = compute_features(DrawnClips(4), SmallNetwork(), batch_size=2, out=root / "h.safetensors")
    (root / "h.safetensors").rename(root / "g.safetensors")
    (root / ".g.safetensors.parts").mkdir()
    again = compute_features(DrawnClips(4), SmallNetwork(), batch_size=2, out=root / "g.safetensors")
    assert torch.equal(again.features, done.features) and (root / ".g.safetensors.parts").is_dir()


@pytest.mark.slow
def test_a_second_lock_of_one_process_takes_nothing_from_the_first(tmp_path):
    script = f"from pathlib import Path; from sparsevid.system.locks import FolderLock; FolderLock(Path({str(tmp_path)!r}))"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    run = [sys.executable, "-c", script]
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    for lock in (second, first):
        done = subprocess.run(run, env=environment, capture_output=True, text=True)
        assert done.returncode != 0 and f"is being written by pid {os.getpid()}" in done.stderr, done.stderr
        lock.release()
    assert not list(tmp_path.iterdir())
    assert subprocess.run(run, env=environment).returncode == 0
