"""Forwards with layers that are compiled one by one, against eager ones."""

from collections.abc import Iterator

import torch

from sparsevid.benchmark.gpu.machine import (
    candidates,
    first_line,
    inputs,
    open_device,
    relative_error,
    seconds_of,
    three_stages,
)
from sparsevid.benchmark.gpu.parts import SKIPPED, Row, Settings
from sparsevid.benchmark.model import build_random_model
from sparsevid.models.compiled import BACKEND, with_compiled_layers

BATCHES, TINY_BATCHES, REPEATS = (1, 16), (1, 2), 5
TINY_BACKEND = "aot_eager"  # traces, and compiles nothing
TOLERANCE = 3e-2  # of bfloat16, over the largest magnitude
LEAST = 10.0  # seconds that compiling a model takes at least


def rows(settings: Settings) -> Iterator[Row]:
    """Seconds of the first call, times beside eager ones, and the difference; smallest batch first."""
    device, dense_and_sparse = open_device(settings), candidates(settings)
    backend = TINY_BACKEND if settings.tiny else BACKEND
    yield Row("compiler", "backend", backend)
    for batch in TINY_BATCHES if settings.tiny else BATCHES:
        for candidate in dense_and_sparse:
            case, grid = f"{candidate.name}, B = {batch}", None
            if candidate.schedule is not None:
                stages = three_stages(candidate.schedule)
                grid = stages[len(stages) // 2].grid
                case = f"{candidate.name} {grid}, B = {batch}"
            if not settings.fits(LEAST):
                yield Row(case, SKIPPED, note="no time left")
                continue
            try:
                yield from _compare(case, candidate.spec, grid, batch, device, backend)
            except torch.OutOfMemoryError as error:
                yield Row(case, SKIPPED, note=first_line(error))


def _compare(case, spec, grid, batch: int, device: torch.device, backend: str) -> Iterator[Row]:
    model = build_random_model(spec, torch.bfloat16, device)
    compiled = with_compiled_layers(model, backend)
    x, t, labels = inputs(spec, batch, device, torch.bfloat16)
    with torch.inference_mode():
        expected = model(x, t, labels, grid=grid)
        yield Row(case, "first call", seconds_of(lambda: compiled(x, t, labels, grid=grid), 1), "s")
        error = relative_error(compiled(x, t, labels, grid=grid), expected)
        yield Row(case, "compiled against eager", error, ok=error <= TOLERANCE, note=f"at most {TOLERANCE:g}")
        eager = seconds_of(lambda: model(x, t, labels, grid=grid), REPEATS)
        seconds = seconds_of(lambda: compiled(x, t, labels, grid=grid), REPEATS)
    yield Row(case, "eager", 1e3 * eager, "ms")
    yield Row(case, "compiled", 1e3 * seconds, "ms", note=f"eager / compiled {eager / seconds:.2f}")
