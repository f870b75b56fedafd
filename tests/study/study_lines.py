"""A study of known numbers: what its rows cost and lose is written here, and what is drawn and said of it follows."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HOSTILE = "<script>document.title='taken'</script>\"'&"  # a row's name, which has to stay one
# name: multiply–adds of a clip, seconds, loss, distance, accuracy, sparse tokens by (u, tokens) or None
ROWS = {
    "dense": (9.5e9, 0.42, 0.240, 180.0, 0.72, None),
    "sparse": (5.6e9, 0.26, 0.252, 186.0, 0.70, [[0.4, 128], [0.75, 64], [1.0, 32]]),
    "residual": (5.6e9, 0.265, 0.246, 176.0, 0.73, [[0.4, 128], [0.75, 64], [1.0, 32]]),
    "teacher, output": (5.6e9, 0.26, 0.244, 171.0, 0.74, [[0.4, 128], [0.75, 64], [1.0, 32]]),
    "teacher, features": (5.6e9, 0.27, 0.243, 169.0, 0.745, [[0.4, 128], [0.75, 64], [1.0, 32]]),
    "scratch, equal steps": (5.6e9, 0.26, 0.310, 195.0, 0.61, [[0.4, 128], [0.75, 64], [1.0, 32]]),
    "sparse, 5 steps": (1.4e9, 0.066, 0.252, 215.0, 0.58, [[0.4, 128], [0.75, 64], [1.0, 32]]),
    "fixed tokens": (5.5e9, 0.255, 0.257, 190.0, 0.69, [[1.0, 96]]),
}
STAGES = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0))
SHAPE_OF_LOSS = (2.1, 0.9, 0.6, 0.55, 0.85)  # of the stages, around one


def lines(rows: Sequence[str] = tuple(ROWS), seeds: int = 3, study: str = "paper", clips: int = 48) -> list[dict]:
    """A line of results for each row and seed."""
    return [line(row, seed, study, clips) for row in rows for seed in range(seeds)]


def line(row: str, seed: int, study: str = "paper", clips: int = 48) -> dict:
    """What was measured of a row and a seed. Clips differ much from each other and alike in all rows, as real ones do."""
    macs, seconds, loss, distance, accuracy, schedule = ROWS.get(row, ROWS["sparse"])
    of_clips = np.random.default_rng(7).normal(0, 0.05, clips)
    own = np.random.default_rng([seed, len(row), ord(row[0])])
    shift = own.normal(0, 0.0006)
    losses = loss + shift + of_clips + own.normal(0, 0.002, clips)
    distance += own.normal(0, 3)
    steps = 5 if "steps" in row and "equal" not in row else 20
    return {
        "study": study,
        "row": row,
        "seed": seed,
        "loss": float(losses.mean()),
        "losses": [round(float(each), 5) for each in losses],
        "stages": [{"u": list(span), "loss": float(losses.mean() * shape * own.normal(1, 0.004))}
                   for span, shape in zip(STAGES, SHAPE_OF_LOSS, strict=True)],
        "distance": distance,
        "distance_interval": [distance - 7.5, distance + 8.1],
        "accuracy": accuracy + own.normal(0, 0.012),
        "accuracy_real": 0.93,
        "clips": 512,
        "control": None if row == "dense" else "dense",
        "macs": macs * steps,
        "seconds": seconds * (1 + own.normal(0, 0.01)),
        "training_seconds": 900.0 * (0.6 if schedule else 1.0) + seed,
        "training_macs": 3e14 * (0.6 if schedule else 1.0),
        "parameters": 2_894_112,
        "steps": 400,
        "note": "from the dense model, W1 = 0" if row == "sparse" else "",
        "commit": "e6848bd2d0c1f3a4b5968778695a4b3c2d1e0f9a",
        "hardware": {"cpu": "AMD EPYC", "cores": 2, "threads": 1},
        "date": f"2026-11-2{7 + seed % 2}",
        "versions": {"torch": "2.9.0", "python": "3.11.7"},
        "command": f"sparsevid study configs/study/{study}.yaml --rows {json.dumps(row)}",
        "settings": "5f1c0f7be2",
        **({"schedule": schedule} if schedule else {}),
    }  # fmt: skip


def write(path: Path, written: Sequence[dict]) -> Path:
    """A file of results."""
    path.write_text("".join(json.dumps(each) + "\n" for each in written), encoding="utf-8")
    return path


def moving(classes: int, frames: int = 6, size: tuple[int, int] = (16, 24), shift: int = 0) -> np.ndarray:
    """Clips uint8 (N, 3, T, H, W), a bright bar that moves over another colour in each class."""
    height, width = size
    found = np.zeros((classes, 3, frames, height, width), np.uint8)
    for number in range(classes):
        found[number, :, :, :, :] = np.array([40 + 30 * number % 200, 90, 200 - 25 * number % 200]).reshape(3, 1, 1, 1)
        for frame in range(frames):
            left = (shift + 3 * frame) % (width - 3)
            found[number, :, frame, :, left : left + 3] = 255
    return found


def write_clips(folder: Path, name: str, clips: np.ndarray) -> str:
    """A file of clips in a folder; its name, as a line of results says it."""
    np.savez_compressed(folder / name, clips=clips)
    return name
