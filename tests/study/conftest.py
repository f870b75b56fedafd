"""A tiny study, done once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from study.tiny_study import know_small_detector, write_data, write_study

from sparsevid.evaluation.detectors import DETECTORS


@pytest.fixture(scope="session", autouse=True)
def small_detector() -> Iterator[None]:
    """The tests' detector is known by its name."""
    before = dict(DETECTORS)
    know_small_detector()
    yield
    DETECTORS.clear()
    DETECTORS.update(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder with clips, card and protocol."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture
def study_file(data, tmp_path):
    """A function that writes a study in this test's folder."""

    def write(name: str = "tiny", **keys) -> Path:
        return write_study(tmp_path, name, data=data, **keys)

    return write
