"""The hints of the library as those see them who have it installed, and the names that it gives."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sparsevid

ROOT = Path(__file__).parents[1]


def test_names_are_imported_for_hints_from_where_they_are_taken_when_they_are_used() -> None:
    tree = ast.parse(Path(sparsevid.__file__).read_text(encoding="utf-8"))
    hinted = {name.name: each.module for each in ast.walk(tree) if isinstance(each, ast.ImportFrom) for name in each.names}
    assert {name: hinted.get(name) for name in sparsevid._LAZY} == sparsevid._LAZY
    assert set(sparsevid.__all__) == {*sparsevid._LAZY, "__version__"}
    for name, module in sparsevid._LAZY.items():
        assert getattr(sparsevid, name).__module__ == module


def test_a_package_of_hints_says_so() -> None:
    assert (Path(sparsevid.__file__).parent / "py.typed").is_file()
    assert "py.typed" in (ROOT / "setup.cfg").read_text(encoding="utf-8")


@pytest.mark.slow  # mypy reads PyTorch first, for 20 seconds of a processor
def test_what_is_written_with_the_library_is_right_to_a_strict_reader(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # in place of site-packages, so that errors in there are not told
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "typed_user.py")], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
