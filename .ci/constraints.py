"""Print the constraints that `make install` gives to pip: the tested versions, but keep an installed PyTorch that fits.

    python .ci/constraints.py FILE

Rebuilding an environment around another PyTorch than the one that its machine came with costs gigabytes and may not fit its
driver. So that one is kept, and what belongs to it (torchvision, Triton, the CUDA libraries) follows it.
"""

import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    from packaging.requirements import Requirement
except ModuleNotFoundError:  # nothing is installed yet
    from pip._vendor.packaging.requirements import Requirement

BELONGS_TO_TORCH = ("torch==", "torchvision==", "triton==", "nvidia-", "cuda-")


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
        lines = [line for line in lines if not line.startswith(BELONGS_TO_TORCH)] + [f"torch=={torch}"]
    print("\n".join(lines))
