"""Notebooks run from the first cell to the last, and are kept without what they printed."""

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_its_code_compiles(notebook):
    code = [cell for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    for cell in code:
        compile(re.sub(r"^!.*$", "", "".join(cell["source"]), flags=re.MULTILINE), notebook.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_a_cpu(notebook, real_videos, monkeypatch, tmp_path):
    pytest.importorskip("ale_py", reason="needs ale-py (extra `atari`)")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = nbclient.NotebookClient(nbformat.read(notebook, as_version=4), timeout=600, kernel_name="python3").execute()
    outputs = [output for cell in done.cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert sum("image/gif" in output.get("data", {}) for output in outputs) == 3  # clips, shown where they are made
    assert "| 7D |" in str(outputs) and "sparse: " in str(outputs[-1])
