"""A process of its own, for the peak counts for all of it: the bytes that training steps take above what was there before."""

import gc
import json
import os
import sys
from pathlib import Path

import torch

from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import ObjectiveConfig, TrainConfig
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.resident import resident_bytes
from sparsevid.training.ema import EMA
from sparsevid.training.engine import Engine
from sparsevid.training.objective import build_objective

# Blocks from 64 KiB on go back to the system when they are freed: what is resident is then what is held.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


def steps(spec: ModelSpec, train: TrainConfig, clips: int, accumulation: int, checkpoint_layers: str) -> None:
    """Two optimizer steps on noise, as the trainer makes them."""
    torch.manual_seed(0)
    engine = Engine(DiffusionTransformer(spec, checkpoint_layers=checkpoint_layers), train, clips, accumulation)
    average, objective = EMA(engine, 0.9), build_objective(ObjectiveConfig())
    for _ in range(2):
        for _ in range(accumulation):
            x0 = torch.randn(clips, spec.in_channels, *spec.input_size)
            loss = objective.loss(engine, x0, torch.rand(clips).double(), torch.randn_like(x0)).mean()
            engine.step(loss, 1e-4)
            del loss, x0
        average.update()


def peak(case: dict) -> int:
    """The most bytes that a case takes at one time."""
    gc.collect()
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    train = TrainConfig(**case.get("train", {}))
    steps(ModelSpec(**case["spec"]), train, case["clips"], case.get("accumulation", 1), case.get("checkpoint_layers", ""))
    return resident_bytes("VmHWM") - before


if __name__ == "__main__":
    assert os.environ.items() >= GIVES_BACK.items()
    torch.set_num_threads(1)
    steps(ModelSpec("1D", 8, 2, input_size=(1, 2, 2)), TrainConfig(), 1, 1, "")  # what all cases share is there from now on
    for each in json.loads(sys.argv[1]):
        print(json.dumps(peak(each)), flush=True)
