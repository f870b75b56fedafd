"""Forwards with layers that are compiled one by one, against eager ones."""

from collections.abc import Iterator
from functools import partial

import torch

from sparsevid.benchmark.candidates import Candidate
from sparsevid.benchmark.gpu.machine import (
    candidates,
    first_line,
    inputs,
    middle_stage,
    open_device,
    relative_error,
    seconds_of,
)
from sparsevid.benchmark.gpu.parts import SKIPPED, Row, Settings
from sparsevid.benchmark.model import build_random_model
from sparsevid.models.compiled import BACKEND, with_compiled_layers

BATCHES, TINY_BATCHES, REPEATS = (1, 16), (1, 2), 5
TINY_BACKEND = "aot_eager"  # traces, and compiles nothing
TOLERANCE = 3e-2  # of bfloat16, over the largest magnitude
LEAST = 10.0  # seconds that compiling a model takes at least


class Compiled:
    """A model, and another of the same weights whose layers are compiled.

    Args:
        candidate: its sizes and token schedule, whose middle stage is taken.
        device: where it is.
        backend: of the compiler.
    """

    def __init__(self, candidate: Candidate, device: torch.device, backend: str) -> None:
        self.spec, self.grid, self.name, self.device = candidate.spec, None, candidate.name, device
        if candidate.schedule is not None:
            self.grid = middle_stage(candidate).grid
            self.name += f" {self.grid}"
        self.model = build_random_model(candidate.spec, torch.bfloat16, device)
        self.compiled = with_compiled_layers(self.model, backend)

    def compare(self, case: str, batch: int) -> Iterator[Row]:
        """The first call, the difference, and times."""
        x, t, labels = inputs(self.spec, batch, self.device, torch.bfloat16)
        eager, compiled = (partial(each, x, t, labels, grid=self.grid) for each in (self.model, self.compiled))
        with torch.inference_mode():
            expected = eager()
            yield Row(case, "first call", seconds_of(compiled, 1), "s", note="with compiling")
            error = relative_error(compiled(), expected)
            yield Row(case, "compiled against eager", error, ok=error <= TOLERANCE, note=f"at most {TOLERANCE:g}")
            times = [seconds_of(call, REPEATS) for call in (eager, compiled)]
        yield Row(case, "eager", 1e3 * times[0], "ms")
        yield Row(case, "compiled", 1e3 * times[1], "ms", note=f"eager / compiled {times[0] / times[1]:.2f}")


def rows(settings: Settings) -> Iterator[Row]:
    """Seconds of the first call, times beside eager ones, and the difference; smallest batch first."""
    device, backend = open_device(settings), TINY_BACKEND if settings.tiny else BACKEND
    yield Row("compiler", "backend", backend)
    models = [Compiled(each, device, backend) for each in candidates(settings)]
    for batch in TINY_BATCHES if settings.tiny else BATCHES:
        for model in models:
            case = f"{model.name}, B = {batch}"
            if not settings.fits(LEAST):
                yield Row(case, SKIPPED, note="no time left")
                continue
            try:
                yield from model.compare(case, batch)
            except torch.OutOfMemoryError as error:
                yield Row(case, SKIPPED, note=first_line(error))
