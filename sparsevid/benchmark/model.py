"""Warm wall-clock time, memory and counted cost of models side by side, in one run."""

import ctypes
import gc
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsevid.benchmark.candidates import Candidate, name_of, spec_of
from sparsevid.benchmark.timing import Turns, time_turn
from sparsevid.generation.pipeline import DTYPES
from sparsevid.models.inputs import drawn_condition
from sparsevid.models.naive import check_naive, naive_forward, naive_macs
from sparsevid.models.presets import PRESETS, build_spec
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.cost import forward_macs
from sparsevid.sparsity.grid import Grid, check_sparse_grid
from sparsevid.sparsity.layout import parse_layout
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.distributed import check_device
from sparsevid.system.logging import get_logger, progress
from sparsevid.system.resident import resident_bytes

MATMUL_SIZES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}  # sides of the square matrices
TOLERANCE = 0.15  # a measured ratio this far from the counted one is marked
PEAK_METHOD = {
    "cuda": "torch.cuda.max_memory_allocated during one warm call, less what was allocated before it",
    "cpu": "high-water mark of the process's resident set (VmHWM) during one warm call, less its resident set before "
    "it (VmRSS), after the C library has given back what it kept",
}
logger = get_logger(__name__)


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `call` needs at its peak beyond what is held before it, by the method of `PEAK_METHOD`.

    Returns:
        The bytes; None, with a warning, on a CPU whose system does not tell them (they need Linux and glibc).
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # Freed blocks that the C library keeps would be used again without any growth of the resident set.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM back to VmRSS
    except (AttributeError, OSError) as error:
        logger.warning("peak memory is not measured, this system does not tell it: %s", error)
        return None
    before = resident_bytes()
    call()
    return resident_bytes("VmHWM") - before


@dataclass(frozen=True)
class Case:
    """One thing to time: a forward of `batch` clips of latents of the spec's input size.

    Attributes:
        preset: name of the preset that the spec comes from, for the reader: cases that differ in nothing else are equal.
        spec: sizes and layout. Cases with the same spec and dtype share one model.
        grid: sparse (t, h, w); None for a layout without sparse layers.
        batch: B.
        dtype: a key of `DTYPES`, of weights and activations.
        naive: time `naive_forward` in place of the model's own.
    """

    preset: str = field(compare=False)
    spec: ModelSpec
    grid: Grid | None
    batch: int
    dtype: str
    naive: bool = False

    @property
    def macs(self) -> int:
        """Counted multiply-adds of the forward, all clips together."""
        per_clip = naive_macs(self.spec) if self.naive else forward_macs(self.spec, grid=self.grid)
        return self.batch * per_clip

    @property
    def dense(self) -> "Case":
        """The case that this one is compared with: the dense model of the same sizes, in our form."""
        return Case(self.preset, self.spec.dense(), None, self.batch, self.dtype)


@dataclass(frozen=True)
class Result(Turns):
    """What was measured of a case, and of the dense case it is compared with.

    Attributes:
        turns: seconds of each timed forward.
        weight_bytes: the weights.
        peak_bytes: what a forward needs beyond weights and inputs (`peak_memory`); None if the system does not tell.
        matmul_rate: multiply-adds a second of the best square matmul of the same dtype in the same run.
        dense_seconds, dense_peak_bytes: those of `case.dense`.
    """

    case: Case
    turns: tuple[float, ...]
    weight_bytes: int
    peak_bytes: int | None
    matmul_rate: float
    dense_seconds: float
    dense_peak_bytes: int | None

    @property
    def seconds(self) -> float:
        """Median seconds of a forward."""
        return self.median

    @property
    def matmul_share(self) -> float:
        """Counted multiply-adds a second over the matmul rate."""
        return self.case.macs / self.seconds / self.matmul_rate

    @property
    def measured_ratio(self) -> float:
        """Seconds over those of the dense case."""
        return self.seconds / self.dense_seconds

    @property
    def counted_ratio(self) -> float:
        """Multiply-adds over those of the dense case."""
        return self.case.macs / self.case.dense.macs

    @property
    def memory_ratio(self) -> float | None:
        """Peak memory over that of the dense case; None if the system does not tell."""
        if self.peak_bytes is None or not self.dense_peak_bytes:
            return None
        return self.peak_bytes / self.dense_peak_bytes

    @property
    def excess(self) -> float:
        """How far the measured ratio lies above (or below, negative) the counted one, as a share of it."""
        return self.measured_ratio / self.counted_ratio - 1

    @property
    def differs(self) -> bool:
        """Whether measured and counted ratio differ by more than `TOLERANCE`."""
        return abs(self.excess) > TOLERANCE


@dataclass(frozen=True)
class Measurement:
    """All results of a run, and the multiply-adds a second of its matmuls by dtype and side."""

    results: tuple[Result, ...]
    matmul_rates: dict[str, dict[int, float]]


def plan_cases(
    presets: Sequence[str | Candidate],
    *,
    layouts: Sequence[str] = (),
    grids: Sequence[Sequence[int]] = (),
    batches: Sequence[int] = (1,),
    dtypes: Sequence[str] = ("float32",),
    input_size: tuple[int, int, int] | None = None,
    against_naive: bool = False,
) -> list[Case]:
    """Every combination of what is given, each preceded by the dense case it is compared with; no case twice.

    Args:
        presets: names of presets, and models of runs.
        layouts: layouts of the presets' depth; by default each preset's own.
        grids: sparse grids (t, h, w), for layouts with sparse layers; by default each preset's own.
        batches: clips of a forward.
        dtypes: keys of `DTYPES`.
        input_size: latent (frames, height, width); by default each preset's own.
        against_naive: time the naive form of each dense case too.

    Raises:
        KeyError: no such preset or dtype.
        ValueError: a layout, grid, size or batch that does not fit.
    """
    check_dtypes_and_batches(dtypes, batches)
    models = [each for name in presets for each in _models_of_preset(name, layouts, grids, input_size)]
    for _, spec, _ in models if against_naive else ():
        check_naive(spec.dense())
    cases: dict[Case, None] = {}
    for dtype in dtypes:
        for batch in batches:
            for name, spec, grid in models:
                case = Case(name, spec, grid, batch, dtype)
                dense = replace(case.dense, preset=dense_preset(name) if spec.is_sparse else name)
                naive = [replace(dense, naive=True)] if against_naive else []
                cases |= dict.fromkeys([dense, *naive, case])
    return list(cases)


def check_dtypes_and_batches(dtypes: Sequence[str], batches: Sequence[int]) -> None:
    """Raise KeyError for a dtype that is no key of `DTYPES`, ValueError for a batch without a clip."""
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise KeyError(f"no dtype {dtype!r}; accepted are {', '.join(DTYPES)}")
    if min(batches) < 1:
        raise ValueError(f"a batch has at least one clip, got batches {list(batches)}")


def measure_cases(
    cases: Sequence[Case],
    *,
    repeats: int = 5,
    warmup: int = 1,
    device: str | torch.device = "cpu",
    matmul_sizes: Sequence[int] | None = None,
) -> Measurement:
    """Time all cases and matmuls of their dtypes in turns, then the peak memory of each case.

    All models are held at once, one for each spec and dtype, with random weights.

    Args:
        cases: as `plan_cases` gives them: the dense case of each is among them.
        repeats: timed turns.
        warmup: untimed turns before.
        device: `cpu`, `cuda` or `cuda:N`.
        matmul_sizes: sides of the square matrices; by default those of `MATMUL_SIZES`.

    Raises:
        ValueError: a count out of range, no such device, or a case whose dense case is not among `cases`.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"there is at least one timed turn and no negative warm-up, got repeats={repeats}, warmup={warmup}")
    missing = [case.dense for case in cases if case.dense not in cases]
    if missing:
        raise ValueError(f"cases are compared with their dense case, but this one is missing: {missing[0]}")
    device = check_device(device)
    models: dict[tuple[ModelSpec, str], DiffusionTransformer] = {}
    for case in cases:
        if (case.spec, case.dtype) not in models:
            models[case.spec, case.dtype] = build_random_model(case.spec, DTYPES[case.dtype], device)
    forwards = {case: _forward_of(case, models[case.spec, case.dtype], device) for case in cases}
    matmuls = plan_matmuls(dict.fromkeys(case.dtype for case in cases), device, matmul_sizes)
    calls: dict[Any, Callable[[], Tensor]] = {**forwards, **matmuls}
    with torch.inference_mode():
        turns = [time_turn(calls) for _ in progress(range(warmup + repeats), desc="turns")][warmup:]
        peaks = {case: peak_memory(forward, device) for case, forward in forwards.items()}
    rates = matmul_rates(matmuls, turns)
    seconds = {case: tuple(turn[case] for turn in turns) for case in cases}
    weights = {case: _weight_bytes(models[case.spec, case.dtype]) for case in cases}
    return Measurement(tuple(compare(seconds, weights, peaks, rates)), rates)


def compare(
    seconds: dict[Case, tuple[float, ...]],
    weights: dict[Case, int],
    peaks: dict[Case, int | None],
    rates: dict[str, dict[int, float]],
) -> list[Result]:
    """Put each case beside its dense case and the best matmul of its dtype.

    Args:
        seconds: seconds of each turn, by case; the dense case of each is among them.
        weights, peaks: bytes by case.
        rates: multiply-adds a second of matmuls, by dtype and side.
    """
    return [
        Result(
            case,
            turns,
            weights[case],
            peaks[case],
            matmul_rate=max(rates[case.dtype].values()),
            dense_seconds=statistics.median(seconds[case.dense]),
            dense_peak_bytes=peaks[case.dense],
        )
        for case, turns in seconds.items()
    ]


def plan_matmuls(
    dtypes: Iterable[str], device: torch.device, sizes: Sequence[int] | None = None
) -> dict[tuple[str, int], Callable[[], Tensor]]:
    """Products of square matrices by dtype and side, to be timed.

    Args:
        dtypes: keys of `DTYPES`.
        device: where the matrices are.
        sizes: their sides; by default those of `MATMUL_SIZES`.

    Raises:
        ValueError: a side below 1.
    """
    sizes = sizes or MATMUL_SIZES[device.type]
    if min(sizes) < 1:
        raise ValueError(f"sides of the square matmuls are at least 1, got {list(sizes)}")
    return {(dtype, size): _matmul(size, DTYPES[dtype], device) for dtype in dtypes for size in sizes}


def matmul_rates(matmuls: Iterable[tuple[str, int]], turns: Sequence[Mapping]) -> dict[str, dict[int, float]]:
    """Multiply-adds a second of matmuls, by dtype and side.

    Args:
        matmuls: dtype and side of each.
        turns: seconds by (dtype, side), of each turn.
    """
    rates: dict[str, dict[int, float]] = {}
    for dtype, size in matmuls:
        rates.setdefault(dtype, {})[size] = size**3 / statistics.median(turn[dtype, size] for turn in turns)
    return rates


def build_random_model(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> DiffusionTransformer:
    """A model for timing: where the initialisation has zeros, small random values, so that no product is trivial."""
    with torch.device(device):
        model = DiffusionTransformer(spec)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.to(dtype).eval().requires_grad_(False).fuse_modulation()


def _models_of_preset(
    model: str | Candidate, layouts: Sequence[str], grids: Sequence[Sequence[int]], input_size: tuple[int, int, int] | None
) -> list[tuple[str, ModelSpec, Grid | None]]:
    """(preset, spec, grid) for each layout and grid."""
    preset, own = name_of(model), spec_of(model)
    found: list[tuple[str, ModelSpec, Grid | None]] = []
    changed = partial(build_spec, model) if isinstance(model, str) else partial(replace, own)
    size = tuple(input_size or own.input_size)
    for layout in layouts or (own.layout,):
        if not parse_layout(layout).is_sparse:
            found.append((preset, changed(layout=layout, input_size=size, sparse_grid=None), None))
            continue
        chosen = [Grid(*grid) for grid in grids or ([own.sparse_grid] if own.sparse_grid else [])]
        if not chosen:
            raise ValueError(f"layout {layout!r} has sparse layers, but preset {preset} has no sparse grid: give grids")
        spec = changed(layout=layout, input_size=size, sparse_grid=tuple(chosen[0]))
        for grid in chosen:
            check_sparse_grid(grid, spec.dense_grid())
            found.append((preset, spec, grid))
    return found


def dense_preset(preset: str) -> str:
    """The name of the preset that is this one made dense; its own name if there is none. Of another model, such as a run's,
    one that says so."""
    if preset not in PRESETS:
        return f"{preset}, dense"
    dense = PRESETS[preset].dense()
    return next((name for name, spec in PRESETS.items() if spec == dense), preset)


def _forward_of(case: Case, model: DiffusionTransformer, device: torch.device) -> Callable[[], Tensor]:
    spec, dtype = case.spec, DTYPES[case.dtype]
    x = torch.randn(case.batch, spec.in_channels, *spec.input_size, device=device, dtype=dtype)
    t = torch.linspace(0, 999, case.batch, device=device)
    told: dict[str, Any] = drawn_condition(spec, case.batch, device, dtype)
    if case.naive:
        return lambda: naive_forward(model, x, t, told.get("labels"))
    if "text" in told:  # once for all forwards, as they are counted
        told["text"] = model.prepare_text(told["text"])
    return lambda: model(x, t, grid=case.grid, **told)


def _matmul(size: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    return lambda: a @ b


def _weight_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
