"""What a run runs on: the table that stands at its start."""

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby

from sparsevid.system.distributed import RankInfo, communication_backend

PACKAGES = ("torch", "deepspeed", "xformers", "av", "decord", "diffusers")


def describe_environment(ranks: list[RankInfo], attention: str, decoder: str) -> list[list[str]]:
    """What a run runs on, in rows of a table: versions, devices by host, and backends.

    Args:
        ranks: what `check_ranks` returned.
        attention: backend in use.
        decoder: of videos, in use.
    """
    rows = [["python", platform.python_version()]]
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # a package that is not needed is not in the table
            rows.append([package, version(package)])
    for host, group in groupby(ranks, key=lambda info: info.host):
        infos = list(group)
        devices = " + ".join(f"{len(list(same))} × {name}" for name, same in groupby(info.device for info in infos))
        name = f"rank {infos[0].rank}" if len(infos) == 1 else f"ranks {infos[0].rank}–{infos[-1].rank}"
        rows.append([name, f"{host}: {devices}, first pid {infos[0].pid}"])
    backend = communication_backend() if len(ranks) > 1 else "none: one process"
    return [*rows, ["communication", backend], ["attention", attention], ["decoder", decoder]]
