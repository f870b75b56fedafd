"""A study of a few seconds: two classes of small clips that a program draws, a model of 32 channels, three steps."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from sparsevid.videos.write import write_ffv1

CLASSES = ("left", "right")
FRAMES, SIDE = 4, 32
PROTOCOL = """
name: short
detector: small
detector_options: {}
metrics: [frechet]
frames: 4
real_stride: 1
fake_stride: 1
real_start: random
fake_start: first
real_min_frames: null
fake_min_frames: null
size: [16, 16]
resize: cover
real_count: 4
fake_count: 4
clips_per_video: null
real_selection: spread
fake_selection: spread
seed: 0
covariance: unbiased
split: all
lossless: false
geometry: stored
"""
CARD = """
name: moving
trees: ["{train,test}/<class>/0.mkv"]
label_rule: folder
classes: [left, right]
split: {rule: folders, folders: {train: [train], test: [test]}, default: train}
clip: {frames: 4, stride: 1, size: [32, 32], flip: false}
"""


def moving_clips(count: int, seed: int) -> tuple[torch.Tensor, list[int]]:
    """Clips (N, 3, T, H, W) of a bright square that moves to the left (label 0) or to the right (1), in turns."""
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(0, 60, (count, 3, FRAMES, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    labels = [index % len(CLASSES) for index in range(count)]
    for clip, label in zip(clips, labels, strict=True):
        top, place = torch.randint(0, SIDE - 8, (2,), generator=generator).tolist()
        for frame in range(FRAMES):
            left = (place + 5 * frame * (1 if label else -1)) % SIDE
            columns = [(left + offset) % SIDE for offset in range(8)]
            clip[:, frame, top : top + 8, columns] = 220
    return clips, labels


def write_data(folder: Path, train: int = 6, test: int = 4) -> None:
    """The clips as a tree of two splits, with its card and a protocol of the tests' own detector."""
    for split, count, seed in (("train", train, 0), ("test", test, 1)):
        clips, labels = moving_clips(count, seed)
        for index, (clip, label) in enumerate(zip(clips, labels, strict=True)):
            path = folder / "videos" / split / CLASSES[label] / f"{index}.mkv"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_ffv1(path, clip, 8.0)
    (folder / "moving.yaml").write_text(CARD, encoding="utf-8")
    (folder / "short.yaml").write_text(PROTOCOL, encoding="utf-8")


def base_run(folder: Path) -> dict:
    """The run that rows are variants of."""
    return {
        "model": {"layout": "6D", "hidden_size": 32, "num_heads": 2, "patch_size": 1},
        "schedule": {"r_min": 0.3, "r_max": 0.75, "frames": 1},
        "data": {"card": str(folder / "moving.yaml"), "root": str(folder / "videos"), "cache_frames": True},
        "autoencoder": {"channels": 8, "fit_clips": 4},
        "objective": {"kind": "flow"},
        "train": {"steps": 3, "global_batch": 4, "lr": 1e-2, "log_every": 1, "checkpoint_every": 1},
    }


SPARSE = {"model.layout": "1P 1(1M1S1R1D) 1D"}
ROWS = {
    "pretrain": {"measured": False},
    "dense": {"start": "pretrain", "note": "the control"},
    "sparse": {"like": "dense", "note": "sparse", "overrides": SPARSE},
}


def write_study(folder: Path, name: str = "tiny", rows: dict | None = None, *, data: Path, **keys) -> Path:
    """A study's file, and the run that it is based on."""
    (folder / "base.yaml").write_text(yaml.safe_dump(base_run(data)), encoding="utf-8")
    study = {
        "study": name,
        "base": "base.yaml",
        "sample": {"clips": 4, "steps": 2, "guidance": 2.0, "batch": 2},
        "measure": {
            "clips": 3,
            "times": 2,
            "protocol": str(data / "short.yaml"),
            "bootstrap": 2,
            "repeats": 1,
            "batch": 2,
            "classifier_steps": 5,
        },
        "rows": ROWS if rows is None else rows,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study | keys, sort_keys=False), encoding="utf-8")
    return path


def start(*arguments: object, processes: int = 1, failing: str = "", dies_with: Path | None = None) -> subprocess.Popen:
    """The command in a process of its own, with the tests' own detector. On ranks such as `01` the row `dense` fails; once a
    file of the pattern `dies_with` is there, the process kills itself.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FAILING_RANKS": failing, "DIES_WITH": str(dies_with or "")}
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return subprocess.Popen(
        [sys.executable, *launcher, __file__, *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def know_small_detector() -> None:
    """Let the tests' detector of a few weights be known by its name in this process."""
    from evaluation.feature_ranks import SmallNetwork

    from sparsevid.evaluation.detectors import DETECTORS

    DETECTORS[SmallNetwork.name] = (SmallNetwork.__module__, SmallNetwork.__name__)


def fail(ranks: str) -> None:
    """Let what is measured of the row `dense` fail on these ranks."""
    from sparsevid.study import run

    measure = run.measure_row

    def measured(plan, circumstances):
        if plan.row.name == "dense" and os.environ.get("RANK", "0") in ranks:
            raise ValueError("planted")
        return measure(plan, circumstances)

    run.measure_row, run.ALIKE = measured, 5.0


def die_with(path: Path) -> None:
    """Kill this process once a file of this pattern is there, before anything else is written or renamed."""

    def hook(event: str, args: tuple) -> None:
        writes = event == "os.rename" or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and any(path.parents[-1].glob(str(path.relative_to(path.anchor)))):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    if os.environ["DIES_WITH"]:
        die_with(Path(os.environ["DIES_WITH"]))
    know_small_detector()
    fail(os.environ["FAILING_RANKS"])
    torch.set_num_threads(1)
    from sparsevid.cli import main

    raise SystemExit(main(["study", *sys.argv[1:]]))
