"""Archives of many images: what is held while they are written, read and scored does not grow with their pixels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation.archive_memory import GIVES_BACK

from sparsevid.system.resident import STATUS

SCRIPT = Path(__file__).with_name("archive_memory.py")

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="this system does not tell the peak of the resident set")


def measured(folder: Path, count: int, *sides: int) -> list[tuple[int, int, dict]]:
    """Peak in bytes, size of the archive and record for each size of images, in a process of its own."""
    paths = os.pathsep.join([str(Path.cwd()), str(Path.cwd() / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **GIVES_BACK, "PYTHONPATH": paths}
    command = [sys.executable, str(SCRIPT), str(folder), str(count), *map(str, sides)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def check_bounded(found: list[tuple[int, int, dict]], share: float) -> None:
    """Of two archives of as many images, the one of larger images takes more memory by a share of its pixels at most."""
    (small, little, _), (large, much, _) = found
    assert large - small < share * (much - little), [(peak, size) for peak, size, _ in found]


def test_memory_does_not_grow_with_the_pixels_of_an_archive(tmp_path):
    found = measured(tmp_path, 1200, 8, 64)
    check_bounded(found, 1 / 2)
    for *_, record in found:
        (warning,) = record["warnings"]
        assert "1200 clips, protocol adm/fid-50k" in warning and "intends 50000" in warning


@pytest.mark.slow
def test_fifty_thousand_images_take_no_more_memory_where_they_are_larger(tmp_path):
    found = measured(tmp_path, 50_000, 8, 32)
    check_bounded(found, 1 / 20)
    assert all(record["warnings"] == [] and record["fake"]["clips"] == 50_000 for *_, record in found)
    print([f"{peak / 2**20:.0f} MB for an archive of {size / 2**20:.0f} MB" for peak, size, _ in found])


@pytest.mark.slow
def test_one_image_too_few_is_a_warning_that_the_record_keeps(tmp_path):
    ((_, _, record),) = measured(tmp_path, 49_999, 8)
    (warning,) = record["warnings"]
    assert "49999 clips, protocol adm/fid-50k" in warning and "intends 50000" in warning and record["fake"]["clips"] == 49_999
