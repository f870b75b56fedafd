"""The tested versions and those that `setup.cfg` admits, and which of them an installation keeps to."""

import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
TESTED = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def needs() -> list[Requirement]:
    """What the project and the extras of its tests need."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    sections = (
        config["options"]["install_requires"],
        *(
            config["options.extras_require"][name]
            for name in ("atari", "demo", "docs", "fid", "motion", "parity", "test", "text")
        ),
    )
    lines = [line for section in sections for line in section.splitlines() if line and not line.startswith("sparsevid[")]
    return list(map(Requirement, lines))


@pytest.mark.parametrize("need", needs(), ids=str)
def test_every_need_has_a_lower_bound_and_tested_versions_within_it(need):
    assert any(each.operator == ">=" for each in need.specifier), "tests of the oldest versions have nothing to start at"
    tested = [each for each in TESTED if canonicalize_name(each.name) == canonicalize_name(need.name)]
    assert tested
    for each in tested:
        (pin,) = each.specifier
        assert pin.operator == "==" and need.specifier.contains(pin.version), f"{each}; make constraints writes the file anew"


def test_an_installed_pytorch_is_kept_with_what_belongs_to_it():
    command = [sys.executable, str(ROOT / ".ci" / "constraints.py"), str(ROOT / "constraints.txt")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    kept = [line for line in printed if line and not line.startswith("#")]
    names = {Requirement(line).name for line in kept}
    follow = {canonicalize_name(Requirement(need).name) for need in requires("torch")}
    assert f"torch=={version('torch')}" in kept and not names & {"torchvision", *follow}
    assert names - {"torch"} < {each.name for each in TESTED} and {"numpy", "av", "deepspeed"} < names
