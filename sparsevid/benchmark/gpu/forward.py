"""Forwards of the dense model and of the sparse one at three stages, eager and as a graph, against the rate of a product."""

import statistics
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from sparsevid.benchmark.candidates import Candidate
from sparsevid.benchmark.gpu.environment import SIDE, TINY_SIDE, product_rate
from sparsevid.benchmark.gpu.machine import GIB, cases, first_line, inputs, open_device
from sparsevid.benchmark.gpu.parts import SKIPPED, Row, Settings
from sparsevid.benchmark.gpu.report import PROFILE
from sparsevid.benchmark.model import build_random_model, peak_memory
from sparsevid.benchmark.timing import time_turn
from sparsevid.models.graphs import GraphedModel
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.cost import forward_macs
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.spec import ModelSpec

BATCHES, TINY_BATCHES = (1, 4, 16, 32), (1, 2)
REPEATS, TINY_REPEATS = 7, 2
CALLS = 24  # of a forward in all: warm-up, what a graph takes, timed ones, memory
PROFILED, PROFILE_ROWS, MOST_PROFILE = 4, 60, 2**20  # clips, rows of each table, characters of the file


@dataclass
class Forward:
    """A forward to measure, and the model that it is of, plain and by graphs."""

    name: str
    spec: ModelSpec
    grid: Grid | None
    model: DiffusionTransformer
    graphed: GraphedModel

    @property
    def macs(self) -> int:
        """Multiply-adds of a clip."""
        return forward_macs(self.spec, grid=self.grid)


def rows(settings: Settings) -> Iterator[Row]:
    """Times, rates, memory and ratios by batch, smallest first; one profile."""
    device = open_device(settings)
    rate = product_rate(device, "bfloat16", TINY_SIDE if settings.tiny else SIDE)
    yield Row("product", "rate", 2e-12 * rate, "TFLOP/s", note="bfloat16; shares below are of this")
    forwards = [
        Forward(name, spec, grid, model, graphed)
        for spec, own in _by_spec(cases(settings)).items()
        for model in [build_random_model(spec, torch.bfloat16, device)]
        for graphed in [GraphedModel(model)]
        for name, grid in own
    ]
    if device.type != "cuda":
        yield Row("graphs", SKIPPED, note="only on a GPU")
    clip_seconds: dict[str, float] = {}  # of the batch before, which tell how long the next takes
    with torch.inference_mode():
        for batch in TINY_BATCHES if settings.tiny else BATCHES:
            yield from measure(settings, forwards, batch, rate, device, clip_seconds)
            if batch <= PROFILED and settings.fits(10.0):
                yield write_profile(settings, forwards, batch, device)


def _by_spec(found: list[tuple[str, Candidate, Grid | None]]) -> dict[ModelSpec, list[tuple[str, Grid | None]]]:
    """Names and grids of each model."""
    grouped: dict[ModelSpec, list[tuple[str, Grid | None]]] = {}
    for name, candidate, grid in found:
        grouped.setdefault(candidate.spec, []).append((name, grid))
    return grouped


def measure(
    settings: Settings, forwards: list[Forward], batch: int, rate: float, device: torch.device, clip_seconds: dict[str, float]
) -> Iterator[Row]:
    """All forwards of one batch: of the dense model, then of the sparse one beside it."""
    dense: dict[str, float] = {}
    for each in forwards:
        case = f"{each.name}, B = {batch}"
        needed = CALLS * batch * clip_seconds.get(each.name, 0.0)
        if not settings.fits(needed):
            yield Row(case, SKIPPED, note=f"no time left: it takes about {needed:.0f} s")
            continue
        try:
            seconds = yield from time_modes(settings, each, case, batch, rate, device)
        except torch.OutOfMemoryError as error:
            yield Row(case, SKIPPED, note=first_line(error))
            torch.cuda.empty_cache()
            continue
        clip_seconds[each.name] = seconds["eager"] / batch
        if each.grid is None:
            dense = seconds
            continue
        counted = each.macs / forwards[0].macs
        for mode in dense:
            yield Row(f"{case}, {mode}", "time / dense", seconds[mode] / dense[mode], note=f"counted {counted:.3f}")


def time_modes(
    settings: Settings, each: Forward, case: str, batch: int, rate: float, device: torch.device
) -> Generator[Row, None, dict[str, float]]:
    """A forward, eager and on a GPU as a graph, in turns; returns the seconds of each."""
    x, t, labels = inputs(each.spec, batch, device, torch.bfloat16)
    calls: dict[str, Callable[[], Tensor]] = {"eager": partial(each.model, x, t, labels, grid=each.grid)}
    if device.type == "cuda":
        calls["graph"] = partial(each.graphed, x, t, labels, grid=each.grid)
    for _ in range(2):  # a graph is recorded at the second call
        time_turn(calls)
    turns = [time_turn(calls) for _ in range(TINY_REPEATS if settings.tiny else REPEATS)]
    seconds = {mode: statistics.median(turn[mode] for turn in turns) for mode in calls}
    for mode in calls:
        yield from _speed(f"{case}, {mode}", batch * each.macs, seconds[mode], rate)
    memory = peak_memory(calls["eager"], device)
    if memory is not None:
        yield Row(case, "memory beyond the weights", memory / GIB, "GiB", note="eager")
    if "graph" in calls:
        equal, recorded = torch.equal(calls["graph"](), calls["eager"]()), len(each.graphed) > 0
        yield Row(case, "recorded as a graph", recorded, ok=recorded)
        yield Row(case, "graph = eager", equal, ok=equal, note="bit for bit")
    return seconds


def _speed(case: str, macs: int, seconds: float, rate: float) -> Iterator[Row]:
    yield Row(case, "time", 1e3 * seconds, "ms")
    yield Row(case, "rate", 2e-12 * macs / seconds, "TFLOP/s")
    yield Row(case, "share of the product's rate", macs / seconds / rate)


def write_profile(settings: Settings, forwards: list[Forward], batch: int, device: torch.device) -> Row:
    """Tables of the operators of an eager dense forward, and of the sparse one in the middle stage."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    sort = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
    texts = []
    for each in (forwards[0], forwards[len(forwards) // 2]):
        x, t, labels = inputs(each.spec, batch, device, torch.bfloat16)
        with profile(activities=activities) as profiled:
            each.model(x, t, labels, grid=each.grid)
        texts.append(f"{each.name}, B = {batch}\n{profiled.key_averages().table(sort_by=sort, row_limit=PROFILE_ROWS)}")
    (settings.folder / PROFILE).write_text("\n".join(texts)[:MOST_PROFILE], encoding="utf-8")
    return Row("profile", "file", PROFILE, note=f"B = {batch}, eager, by time of each operator itself")
