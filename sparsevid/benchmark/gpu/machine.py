"""What parts share: the device and what is known of it, the models that are measured, errors, times."""

import importlib.metadata
import statistics
import subprocess
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsevid.benchmark.candidates import Candidate
from sparsevid.benchmark.gpu.parts import Settings
from sparsevid.benchmark.report import describe_run
from sparsevid.benchmark.timing import time_turn
from sparsevid.models.presets import build_spec, preset_schedule
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.schedule import Stage, paper_schedule
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.distributed import check_device
from sparsevid.system.precision import set_float32

TINY = ModelSpec("1P 1(1M1S1R1D) 1D", 32, 2, (4, 8, 8), sparse_grid=(2, 2, 2))
TINY_RATES = (0.3, 0.8)
PACKAGES = ("torch", "triton", "deepspeed", "diffusers", "xformers", "av", "numpy", "einops", "omegaconf", "safetensors")
GIB = 2**30


def open_device(settings: Settings) -> torch.device:
    """The device of the settings, on which float32 is exact.

    Raises:
        ValueError: it is not there.
    """
    set_float32()
    if settings.tiny and settings.device == "cpu":
        torch.set_num_threads(1)  # more would only wait for each other
    return check_device(settings.device)


def describe(settings: Settings) -> dict[str, Any]:
    """What a reader has to know of this machine: as `describe_run`, with versions."""
    device = open_device(settings)
    return describe_run(settings.command, device) | {"versions": versions(device)}


def versions(device: torch.device) -> dict[str, str | None]:
    """Versions of packages, and of what PyTorch computes with; None where there is none."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["cuda"] = torch.version.cuda
    if device.type == "cuda":
        found["cudnn"] = str(torch.backends.cudnn.version())
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["driver"] = _driver()
    return found


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return next(iter(done.stdout.split()), None)


def candidates(settings: Settings) -> tuple[Candidate, Candidate]:
    """The dense and the sparse model that are measured."""
    if settings.tiny:
        schedule = paper_schedule(TINY.dense_grid(), 2, *TINY_RATES)
        return Candidate("tiny dense", TINY.dense(), None), Candidate("tiny sparse", TINY, schedule)
    dense, sparse = "Latte-XL/2", "SparseLatte-XL/2"
    return Candidate(dense, build_spec(dense), None), Candidate(sparse, build_spec(sparse), preset_schedule(sparse))


def three_stages(model: Candidate) -> list[Stage]:
    """The stage of the data end, that of the noise end, and one in the middle; fewer, if there are fewer."""
    stages = _stages(model)
    return [stages[index] for index in sorted({0, len(stages) // 2, len(stages) - 1})]


def middle_stage(model: Candidate) -> Stage:
    """The one in the middle of `three_stages`."""
    stages = _stages(model)
    return stages[len(stages) // 2]


def _stages(model: Candidate) -> tuple[Stage, ...]:
    if model.schedule is None:
        raise ValueError(f"{model.name} is dense: it has no stages")
    return model.schedule.stages


def cases(settings: Settings) -> list[tuple[str, Candidate, Grid | None]]:
    """The dense model, and the sparse one at three stages: a name, the model, the grid."""
    dense, sparse = candidates(settings)
    found = [(f"{sparse.name} {stage.grid}", sparse, stage.grid) for stage in three_stages(sparse)]
    return [(dense.name, dense, None), *found]


def inputs(spec: ModelSpec, batch: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """Random latents, times and labels."""
    x = torch.randn(batch, spec.in_channels, *spec.input_size, device=device, dtype=dtype)
    labels = torch.zeros(batch, dtype=torch.long, device=device) if spec.num_classes else None
    return x, torch.linspace(0, 999, batch, device=device), labels


def labelled(spec: ModelSpec, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """`inputs` in float32 on the CPU, of a model of classes."""
    x, t, labels = inputs(spec, batch, torch.device("cpu"), torch.float32)
    assert labels is not None
    return x, t, labels


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Maximal error over maximal magnitude, in float64 on the CPU."""
    actual, expected = (each.detach().cpu().double() for each in (actual, expected))
    if actual.shape != expected.shape:
        raise ValueError(f"shapes {tuple(actual.shape)} and {tuple(expected.shape)}")
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, the device waited for."""
    return statistics.median(time_turn({"call": call})["call"] for _ in range(repeats))


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
