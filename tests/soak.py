"""A run of two ranks, killed again and again, against the same run left alone: in the end they are equal, bit for bit.

    python tests/soak.py --kills 20 --folder FOLDER

Every third kill waits for a checkpoint that is being written. Started by `make soak`, and in a short form by the tests.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from sparsevid.checkpoints import checkpoint_path, list_checkpoints
from sparsevid.config import RunConfig, load_config, save_config

OVERRIDES = (
    "model.layout=1P 1(1M1S1R1D) 1D", "model.hidden_size=32", "model.num_heads=2", "model.patch_size=1",
    "schedule.r_min=0.3", "schedule.r_max=0.8", "data.frames=4", "data.size=[32,32]", "data.cache_frames=true",
    "autoencoder.channels=8", "objective.kind=flow", "train.global_batch=4", "train.lr=1e-2", "train.log_every=1",
    "train.checkpoint_every=5", "train.keep_checkpoints=3",
)  # fmt: skip
LIMIT = 300  # seconds for a launch


def launch(path: Path) -> subprocess.Popen:
    """Two ranks in a session of their own, so that all of it can be killed at once."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with path.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [*command, "-m", "sparsevid.cli", "train", str(path)],
            env=environment,
            start_new_session=True,
            stdout=log,
            stderr=log,
        )


def finish(process: subprocess.Popen, path: Path) -> None:
    if process.wait(timeout=LIMIT):
        sys.exit(f"a run ended with exit code {process.returncode}; its output is in {path.with_suffix('.log')}")


def kill_at_some_moment(process: subprocess.Popen, config: RunConfig, draw: random.Random, during_save: bool) -> str:
    """Wait for a moment of the run, kill every process of it, and say when that was."""
    metrics, begin = config.folder / "metrics.jsonl", time.monotonic()
    size = metrics.stat().st_size if metrics.is_file() else 0
    steps = draw.randrange(1, 12)  # to be seen before the kill
    while process.poll() is None and time.monotonic() - begin < LIMIT:
        if during_save:
            if any((config.folder / "checkpoints").glob(".step-*.partial/training")):
                break
        elif metrics.is_file() and metrics.read_bytes()[size:].count(b"\n") >= steps:
            break
        time.sleep(0.002)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    newest = list_checkpoints(config.folder)
    when = "during a save" if during_save else f"after {steps} steps"
    return f"{when}; newest checkpoint: {newest[-1].name if newest else 'none'}"


def state(config: RunConfig) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint."""
    folder = checkpoint_path(config.folder, config.train.steps)
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.relative_to(folder)}:{name}": value for file in files for name, value in load_file(file).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--stage", type=int, default=2, help="of ZeRO")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, required=True, help="a new one, for the runs")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    paths = {}
    for name in ("alone", "killed"):
        fixed = [
            *OVERRIDES,
            f"name={name}",
            f"output={args.folder}",
            f"train.steps={args.steps}",
            f"train.zero_stage={args.stage}",
        ]
        paths[name] = args.folder / f"{name}.yaml"
        save_config(load_config(None, fixed), paths[name])
    config, draw = load_config(paths["killed"]), random.Random(args.seed)
    finish(launch(paths["alone"]), paths["alone"])
    for number in range(args.kills):
        moment = kill_at_some_moment(launch(paths["killed"]), config, draw, during_save=number % 3 == 2)
        print(f"kill {number + 1} of {args.kills}: {moment}", flush=True)
    finish(launch(paths["killed"]), paths["killed"])
    alone, killed = state(load_config(paths["alone"])), state(config)
    differing = [name for name in alone if name not in killed or not torch.equal(alone[name], killed[name])]
    if differing or alone.keys() != killed.keys():
        sys.exit(
            f"the killed run ended otherwise: {len(differing)} of {len(alone)} tensors differ, the first is {differing[:1]}"
        )
    print(f"killed {args.kills} times, and equal to the run left alone: {len(alone)} tensors, bit for bit")


if __name__ == "__main__":
    main()
