"""Print the constraints that `make install` gives to pip: the tested versions, but keep an installed PyTorch that fits.

    python .ci/constraints.py FILE

Rebuilding an environment around another PyTorch than the one that its machine came with costs gigabytes and may not fit its
driver. So that one is kept, and what it needs (Triton, the CUDA libraries …) and torchvision follow it.
"""

import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

try:
    from packaging.requirements import Requirement
except ModuleNotFoundError:  # nothing is installed yet
    from pip._vendor.packaging.requirements import Requirement

CUDA_LIBRARIES = ("nvidia-", "cuda-")  # some are needed by others of them


def kept_torch() -> str | None:
    """The version of an installed PyTorch that `setup.cfg` admits; None if there is none."""
    config = ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
    wanted = {need.name: need.specifier for need in map(Requirement, config["options"]["install_requires"].split())}
    try:
        found = version("torch")
    except PackageNotFoundError:
        return None
    return found if wanted["torch"].contains(found, prereleases=True) else None


if __name__ == "__main__":
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    if (torch := kept_torch()) is not None:
        follow = {"torch", "torchvision", *(Requirement(need).name for need in requires("torch") or ())}
        free = (*CUDA_LIBRARIES, *(f"{name.replace('_', '-')}==" for name in follow))
        lines = [line for line in lines if not line.startswith(free)] + [f"torch=={torch}"]
    print("\n".join(lines))
