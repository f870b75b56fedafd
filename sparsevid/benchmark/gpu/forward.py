"""Forwards of the dense model and of the sparse one at three stages, eager and as a graph, against the rate of a product."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from sparsevid.benchmark.gpu.environment import SIDE, TINY_SIDE, product_rate
from sparsevid.benchmark.gpu.machine import GIB, cases, first_line, inputs, open_device, seconds_of
from sparsevid.benchmark.gpu.parts import SKIPPED, Row, Settings
from sparsevid.benchmark.gpu.report import PROFILE
from sparsevid.benchmark.model import build_random_model, peak_memory
from sparsevid.models.graphs import GraphedModel
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.cost import forward_macs
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.spec import ModelSpec

BATCHES, TINY_BATCHES = (1, 4, 16, 32), (1, 2)
REPEATS, TINY_REPEATS = 7, 2
CALLS = 6  # beside the timed ones: warm-up, memory, and what a graph takes
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
    models: dict[str, DiffusionTransformer] = {}
    forwards = []
    for name, candidate, grid in cases(settings):
        model = models.setdefault(candidate.name, build_random_model(candidate.spec, torch.bfloat16, device))
        graphed = next((each.graphed for each in forwards if each.model is model), None) or GraphedModel(model)
        forwards.append(Forward(name, candidate.spec, grid, model, graphed))
    if device.type != "cuda":
        yield Row("graphs", SKIPPED, note="only on a GPU")
    clip_seconds: dict[str, float] = {}  # of the batch before, which tell how long the next takes
    with torch.inference_mode():
        for batch in TINY_BATCHES if settings.tiny else BATCHES:
            yield from measure(settings, forwards, batch, rate, device, clip_seconds)
            if batch <= PROFILED and settings.fits(10.0):
                yield write_profile(settings, forwards, batch, device)


def measure(
    settings: Settings, forwards: list[Forward], batch: int, rate: float, device: torch.device, clip_seconds: dict[str, float]
) -> Iterator[Row]:
    """All forwards of one batch."""
    repeats, dense_seconds = TINY_REPEATS if settings.tiny else REPEATS, {}
    for each in forwards:
        case = f"{each.name}, B = {batch}"
        needed = 2 * (repeats + CALLS) * batch * clip_seconds.get(each.name, 0.0)
        if not settings.fits(needed):
            yield Row(case, SKIPPED, note=f"no time left: it takes about {needed:.0f} s")
            continue
        x, t, labels = inputs(each.spec, batch, device, torch.bfloat16)
        calls: dict[str, Callable[[], Tensor]] = {"eager": lambda: each.model(x, t, labels, grid=each.grid)}  # noqa: B023
        if device.type == "cuda":
            calls["graph"] = lambda: each.graphed(x, t, labels, grid=each.grid)  # noqa: B023
        try:
            for mode, call in calls.items():
                for _ in range(2):  # a graph is recorded at the second call
                    call()
                seconds = seconds_of(call, repeats)
                yield from _speed(f"{case}, {mode}", batch * each.macs, seconds, rate)
                dense = dense_seconds.setdefault(mode, (seconds, each.macs))
                if each is not forwards[0]:
                    yield Row(f"{case}, {mode}", "time / dense", seconds / dense[0], note=f"counted {each.macs / dense[1]:.3f}")
                clip_seconds.setdefault(each.name, seconds / batch)
                if mode == "eager":
                    clip_seconds[each.name] = seconds / batch
                    memory = peak_memory(call, device)
                    if memory is not None:
                        yield Row(case, "memory beyond the weights", memory / GIB, "GiB")
            if "graph" in calls:
                equal = torch.equal(calls["graph"](), calls["eager"]())
                yield Row(case, "graph = eager", equal, ok=equal, note="bit for bit")
                recorded = len(each.graphed) > 0
                yield Row(case, "recorded", recorded, ok=recorded)
        except torch.OutOfMemoryError as error:
            yield Row(case, SKIPPED, note=first_line(error))
            torch.cuda.empty_cache()


def _speed(case: str, macs: int, seconds: float, rate: float) -> Iterator[Row]:
    yield Row(case, "time", 1e3 * seconds, "ms")
    yield Row(case, "rate", 2e-12 * macs / seconds, "TFLOP/s")
    yield Row(case, "share of the product's rate", macs / seconds / rate)


def write_profile(settings: Settings, forwards: list[Forward], batch: int, device: torch.device) -> Row:
    """Tables of the operators of an eager dense forward, and of the sparse one in the middle."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    sort = f"self_{device.type}_time_total"
    texts = []
    for each in (forwards[0], forwards[len(forwards) // 2]):
        x, t, labels = inputs(each.spec, batch, device, torch.bfloat16)
        with profile(activities=activities) as profiled:
            each.model(x, t, labels, grid=each.grid)
        texts.append(f"{each.name}, B = {batch}\n{profiled.key_averages().table(sort_by=sort, row_limit=PROFILE_ROWS)}")
    (settings.folder / PROFILE).write_text("\n".join(texts)[:MOST_PROFILE], encoding="utf-8")
    return Row("profile", "file", PROFILE, note=f"B = {batch}, eager, by time of each operator itself")
