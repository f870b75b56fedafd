"""A run of two ranks, killed again and again, against the same run left alone: in the end they are equal, bit for bit.

    python tests/soak.py --kills 20 --folder FOLDER

All processes of the run are killed together: the launcher, its ranks, which have sessions of their own, and their loader's.
Every third kill waits for a checkpoint that is being written. Started by `make soak`, and in a short form by the tests.
"""

import argparse
import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from sparsevid.runs.checkpoints import checkpoint_path, list_checkpoints
from sparsevid.runs.config import RunConfig, load_config, save_config
from sparsevid.system.logging import read_metrics

OVERRIDES = (
    "model.layout=1P 1(1M1S1R1D) 1D", "model.hidden_size=32", "model.num_heads=2", "model.patch_size=1",
    "schedule.r_min=0.3", "schedule.r_max=0.8", "data.frames=4", "data.size=[32,32]", "data.workers=1",
    "autoencoder.channels=8", "objective.kind=flow", "train.global_batch=4", "train.lr=1e-2", "train.log_every=1",
    "train.checkpoint_every=5", "train.keep_checkpoints=3",
)  # fmt: skip
LIMIT = 300  # seconds for a launch


def launch(path: Path) -> subprocess.Popen:
    """Start two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with path.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([*command, "-m", "sparsevid.cli", "train", str(path)], env=environment, stdout=log, stderr=log)


def finish(process: subprocess.Popen, path: Path) -> None:
    if process.wait(timeout=LIMIT):
        sys.exit(f"a run ended with exit code {process.returncode}; its output is in {path.with_suffix('.log')}")


def kill_all(process: subprocess.Popen) -> int:
    """SIGKILL a process and all that came from it, and wait until they are gone; how many they were."""
    family = [psutil.Process(process.pid)]
    for each in family:  # it grows; what is stopped starts no further process while the others are looked for
        with contextlib.suppress(psutil.NoSuchProcess):
            each.suspend()
            family += each.children()
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait(timeout=LIMIT)
    end = time.monotonic() + LIMIT
    while left := [each for each in family if is_alive(each)]:
        if time.monotonic() > end:
            sys.exit(f"processes outlive SIGKILL: {left}")
        time.sleep(0.01)
    return len(family)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_saving(config: RunConfig, since: int) -> bool:
    """Whether a checkpoint is being written; a draft of a launch before `since` (ns) was left by a kill."""
    for draft in (config.folder / "checkpoints").glob(".step-*.partial/training"):
        with contextlib.suppress(FileNotFoundError):  # renamed or removed in between
            if draft.stat().st_mtime_ns > since:
                return True
    return False


def rows(config: RunConfig) -> list[int]:
    """Steps of the lines of metrics, in the order of the file."""
    return [row["step"] for row in read_metrics(config.folder)]


def kill_at_some_moment(path: Path, config: RunConfig, draw: random.Random, during_save: bool) -> str:
    """Start the run, wait for a moment of it, kill every process of it, and say when that was."""
    seen, since = len(rows(config)), time.time_ns()
    process, begin, steps = launch(path), time.monotonic(), draw.randrange(1, 8)
    while not (is_saving(config, since) if during_save else len(rows(config)) - seen >= steps):
        if process.poll() is not None:
            sys.exit(f"a run ended before it was killed, with exit code {process.returncode}; see {path.with_suffix('.log')}")
        if time.monotonic() - begin > LIMIT:
            kill_all(process)
            sys.exit(f"a run did not come to its moment within {LIMIT} s; see {path.with_suffix('.log')}")
        time.sleep(0.002)
    number = kill_all(process)
    newest, drafts = list_checkpoints(config.folder), (config.folder / "checkpoints").glob(".step-*.partial")
    when = f"during a save, which left {[each.name for each in drafts]}" if during_save else f"after {steps} steps"
    reached, kept = rows(config)[-1], newest[-1].name if newest else "none"
    return f"{number} processes, {when}; at step {reached}, newest checkpoint: {kept}"


def state(config: RunConfig) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint."""
    folder = checkpoint_path(config.folder, config.train.steps)
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.relative_to(folder)}:{name}": value for file in files for name, value in load_file(file).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--stage", type=int, default=2, help="of ZeRO")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, required=True, help="a new one, for the runs")
    args = parser.parse_args()
    if args.folder.exists():
        parser.error(f"--folder takes a new one, and {args.folder} is there already")
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
        moment = kill_at_some_moment(paths["killed"], config, draw, during_save=number % 3 == 2)
        print(f"kill {number + 1} of {args.kills}: {moment}", flush=True)
    finish(launch(paths["killed"]), paths["killed"])
    alone, killed = state(load_config(paths["alone"])), state(config)
    differing = [name for name in alone if name not in killed or not torch.equal(alone[name], killed[name])]
    if differing or alone.keys() != killed.keys():
        sys.exit(
            f"the killed run ended otherwise: {len(differing)} of {len(alone)} tensors differ, the first is {differing[:1]}"
        )
    repeated = sorted({step for step, times in Counter(rows(config)).items() if times > 1})
    if not repeated:
        sys.exit("no step was made twice: the kills did not set the run back")
    print(f"made again after a kill: steps {', '.join(map(str, repeated))}")
    print(f"killed {args.kills} times, and equal to the run left alone: {len(alone)} tensors, bit for bit")


if __name__ == "__main__":
    main()
