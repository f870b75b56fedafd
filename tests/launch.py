"""Training in processes of its own, and what its checkpoints hold."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def start(config_file: Path, processes: int = 1) -> subprocess.Popen:
    """Start training in processes of its own, one thread each."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "sparsevid.cli", "train", str(config_file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    """Wait for the end and return what was printed; the exit code must be 0."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Raw and averaged weights of a checkpoint, and its linear autoencoder's if it has one, by file and name."""
    files = ("model/model.safetensors", "ema/model.safetensors", "autoencoder/autoencoder.safetensors")
    there = [file for file in files if (checkpoint / file).is_file()]
    return {f"{file}:{name}": value for file in there for name, value in load_file(checkpoint / file).items()}
