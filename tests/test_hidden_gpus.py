"""Tests that are not for a GPU see none; those that are can be collected without libraries that only others need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OTHERS = ("decord", "cdfvd", "xformers")
COLLECT = f"""
import sys

class Without:
    "A finder of modules that does not find some."
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {OTHERS} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""
PROBE = """
import os, subprocess, sys
import pytest

SAID = "import os; print(repr(os.environ.get('CUDA_VISIBLE_DEVICES')))"

@pytest.mark.gpu
def test_shown():
    pass

def test_hidden():
    child = subprocess.run([sys.executable, "-c", SAID], capture_output=True, text=True)
    print("here", repr(os.environ.get("CUDA_VISIBLE_DEVICES")), "child", child.stdout.strip())
"""


def collect(*paths: str) -> str:
    done = subprocess.run([sys.executable, "-c", COLLECT, *paths], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_collecting_gpu_tests_needs_no_library_of_others():
    """The files that use these libraries, and one with tests for a GPU."""
    detectors = tuple(f"evaluation/detectors/test_{name}.py" for name in ("i3d", "videomae"))
    paths = ("data/test_loader.py", *detectors, "videos/test_display.py")
    assert "test_backends_agree_on_a_gpu" in collect("tests/models/test_execution.py", *(f"tests/{path}" for path in paths))


@pytest.mark.slow
def test_all_gpu_tests_are_collected():
    assert "test_bfloat16_on_a_gpu_trains_and_resumes" in collect()


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        ("not slow", "''"),
        ("not slow or gpu", "'0'"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("", "''"), ("not gpu", "''"), ("gpu or not gpu", "'0'"))),
    ],
)
def test_a_gpu_is_hidden_unless_it_is_asked_for(tmp_path, chosen, seen):
    """From the tests, and from the processes that they start."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "test_probe.py").write_text(PROBE, encoding="utf-8")
    markers = ["-o", "markers=gpu: needs one\nslow: takes long"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-s",
        "-c",
        os.devnull,
        "-p",
        "no:cacheprovider",
        *markers,
        "-m",
        chosen,
        ".",
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and f"here {seen} child {seen}" in done.stdout, done.stdout + done.stderr
