"""Training in processes of its own, and what its checkpoints hold."""

import os
import socket
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


def run_all(script: Path, *arguments: object, processes: int) -> str:
    """Run a script of the tests in some ranks, one thread each, and return what was printed; the exit code must be 0.

    Args:
        script: run by each rank, and read once before under another name.
        arguments: of the script. After `NEXT_LAUNCH` those of another launch follow, for new processes.
        processes: of each launch.
    """
    paths = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])  # a script's own folder is not this one
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, str(Path(__file__).with_name("ranks.py")), str(processes), str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=580)
    assert done.returncode == 0, done.stdout
    return done.stdout


def train_on_two_nodes(config_file: Path) -> str:
    """Train with two launchers of one rank each, which meet on a free port of this machine as two nodes would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = []
    for node in range(2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        command += ["--node_rank", str(node), "--master_addr", "127.0.0.1", "--master_port", str(port)]
        command += ["-m", "sparsevid.cli", "train", str(config_file)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        nodes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return "".join(map(finish, nodes))


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
