"""Tiny checkpoints of random weights, and `tools/sample.py` in processes of its own."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from parity import randomise

from sparsevid.autoencoder.linear import LinearAutoencoder
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import load_config, save_config
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.checksums import file_sha256

ROOT = Path(__file__).parents[2]
# Clips of 4 frames of 16×24 pixels.
SPEC = ModelSpec("1P 1(1M1S1R1D) 1D", 16, 2, (4, 4, 6), in_channels=4, patch_size=1, num_classes=3, sparse_grid=(2, 2, 3))
CLASSES = ["walk", "run", "jump"]


def write_checkpoint(folder: Path, spec: ModelSpec = SPEC, objective: str = "diffusion", settings: Sequence[str] = ()) -> Path:
    """A checkpoint laid out as training lays one out, with two sets of weights that differ."""
    for seed, name in enumerate(("ema", "model")):
        randomise(DiffusionTransformer(spec), seed).save_pretrained(folder / name)
    noise = torch.randint(0, 256, (4, 3, 2, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    LinearAutoencoder.fit(noise, patch=4, channels=spec.in_channels).save(folder / "autoencoder")
    schedule = ["schedule.frames=2", "schedule.r_min=0.3", "schedule.r_max=0.8"]
    config = load_config(None, [f"objective.kind={objective}", "sample.steps=3", *schedule, *settings])
    config.record.classes, config.record.fps = CLASSES[: spec.num_classes], 8.0
    config.record.versions = {"sparsevid": "0.0.9"}
    save_config(config, folder / "config.yaml")
    return folder


def command(*arguments: object, processes: int = 1, script: Path = ROOT / "tools" / "sample.py") -> list[str]:
    """The command line of `tools/sample.py`, or of another script with its arguments."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "--"]
    return [sys.executable, *(launcher if processes > 1 else []), str(script), *map(str, arguments)]


def start(line: list[str], environment: dict[str, str] | None = None, **options) -> subprocess.Popen:
    """Start a command with one thread a process, so that sums have a fixed order."""
    packages = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": packages, **(environment or {})}
    return subprocess.Popen(line, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def sample(*arguments: object, processes: int = 1, succeeds: bool = True, **options) -> str:
    """Run `tools/sample.py` to its end and return what it printed."""
    process = start(command(*arguments, processes=processes), **options)
    printed, _ = process.communicate(timeout=300)
    assert (process.returncode == 0) == succeeds, printed
    return printed


def sample_as_ranks(*ranks: tuple, options: Sequence[dict] = ({}, {})) -> list[str]:
    """Run `tools/sample.py` as ranks that a scheduler starts, each with arguments of its own; what each printed.

    No launcher is there to end the others with the first that fails.

    Args:
        ranks: arguments of each.
        options: of `subprocess.Popen`, for each.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": str(len(ranks)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for rank, (arguments, own) in enumerate(zip(ranks, options, strict=True)):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), **shared}
        processes.append(start(command(*arguments), place, **own))
    return [process.communicate(timeout=300)[0] for process in processes]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path there."""
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in folder.rglob("*") if path.is_file()}
