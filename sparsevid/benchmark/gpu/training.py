"""Training steps by the engine: ms of each phase, clips a second, memory, waits; and losses that fall at every stage.

Dimensions: B clips of a step.
"""

import gc
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sparsevid.benchmark.candidates import Candidate
from sparsevid.benchmark.gpu.machine import GIB, TINY, candidates, first_line, inputs, middle_stage, open_device
from sparsevid.benchmark.gpu.parts import SKIPPED, Row, Settings
from sparsevid.diffusion.samplers import Model
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import ConfigError, ObjectiveConfig, TrainConfig
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.training.objective import build_objective

BATCH, TINY_BATCH = 4, 2
STEPS, WARM_STEPS = 6, 2
LR, TINY_LR = 1e-4, 1e-3
TINY_STEPS = 12
NEEDED = 15.0  # seconds of a case of XL
PHASES = ("forward", "backward", "optimizer", "EMA")


@dataclass
class Marks:
    """Moments of a step: events on a GPU's stream, else the time of the host."""

    device: torch.device
    moments: list = field(default_factory=list)

    def set(self) -> None:
        """Note that all up to here is done when the device comes here."""
        if self.device.type != "cuda":
            self.moments.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.moments.append(event)

    def milliseconds(self) -> list[float]:
        """Between the moments; the device is waited for."""
        pairs = list(zip(self.moments, self.moments[1:], strict=False))
        if self.device.type != "cuda":
            return [1e3 * (after - before) for before, after in pairs]
        torch.cuda.synchronize(self.device)
        return [before.elapsed_time(after) for before, after in pairs]


class Training:
    """A model that learns one batch of random latents, with the same noise at every step: its losses fall.

    Args:
        spec: of the model.
        grid: of its sparse tokens.
        config: stage, precision and rate.
        batch: B.
        device: where it trains.
    """

    def __init__(self, spec: ModelSpec, grid: Grid | None, config: TrainConfig, batch: int, device: torch.device) -> None:
        from sparsevid.training.ema import EMA  # with DeepSpeed, which only those import who train
        from sparsevid.training.engine import Engine

        torch.manual_seed(0)
        self.objective = build_objective(ObjectiveConfig(kind="flow"))
        with torch.device(device):
            model = DiffusionTransformer(replace(spec, learn_sigma=False))
        self.engine, self.config, self.device = Engine(model, config, batch, 1), config, device
        self.ema = EMA(self.engine, 0.999, None)
        self.x, _, labels = inputs(spec, batch, device, torch.float32)
        self.u, self.noise = torch.linspace(0.1, 0.9, batch, device=device), torch.randn_like(self.x)
        self.cond = ({} if labels is None else {"labels": labels}) | ({} if grid is None else {"grid": grid})

    def step(self, marks: Marks) -> tuple[Tensor, bool]:
        """One step: its loss, and whether it was applied."""
        marks.set()
        called: Model = self.engine
        loss = self.objective.loss(called, self.x, self.u, self.noise, **self.cond).mean()
        marks.set()
        applied = self.engine.step(loss, self.config.lr, marks.set)
        marks.set()
        if applied:
            self.ema.update()
        marks.set()
        return loss.detach(), applied


def rows(settings: Settings) -> Iterator[Row]:
    """Small models at stages 0 to 2, then the large ones, then stage 3, which leaves layers of its own in a process."""
    device = open_device(settings)
    yield from small(device, (0, 1, 2))
    dense, sparse = candidates(settings)
    for stage in (0, 2):  # DeepSpeed keeps what was sharded in memory, so these come last
        for candidate in (sparse, dense):
            case = f"{candidate.name}, ZeRO {stage}, bfloat16"
            if not settings.fits(0.0 if settings.tiny else NEEDED):
                yield Row(case, SKIPPED, note="no time left")
                continue
            try:
                yield from large(settings, candidate, stage, device)
            except torch.OutOfMemoryError as error:
                yield Row(case, SKIPPED, note=first_line(error))
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    yield from small(device, (3,))


def small(device: torch.device, stages: tuple[int, ...]) -> Iterator[Row]:
    """Losses of a small sparse model at some stages of ZeRO, in every precision that is there."""
    from sparsevid.training.engine import PRECISIONS

    for stage in stages:
        for precision in PRECISIONS:
            case = f"small, ZeRO {stage}, {precision}"
            config = TrainConfig(lr=TINY_LR, precision=precision, zero_stage=stage)
            try:
                training = Training(TINY, None, config, TINY_BATCH, device)
            except ConfigError as error:
                yield Row(case, SKIPPED, note=first_line(error))
                continue
            steps = TINY_STEPS if precision != "float16" else 3 * TINY_STEPS  # the first ones look for a loss scale
            found = [training.step(Marks(device)) for _ in range(steps)]
            yield falling(case, [float(loss) for loss, _ in found])


def falling(case: str, losses: list[float]) -> Row:
    """The last loss, which is to be below the first."""
    return Row(case, "loss", losses[-1], ok=losses[-1] < losses[0], note=f"falls from {losses[0]:.4f} in {len(losses)} steps")


def large(settings: Settings, candidate: Candidate, stage: int, device: torch.device) -> Iterator[Row]:
    """Phases, speed, memory and waits of a model, in bfloat16, in the middle stage of its token schedule."""
    grid, batch = None, TINY_BATCH if settings.tiny else BATCH
    if candidate.schedule is not None:
        grid = middle_stage(candidate).grid
    case = f"{candidate.name}{'' if grid is None else f' {grid}'}, ZeRO {stage}, bfloat16, B = {batch}"
    config = TrainConfig(lr=TINY_LR if settings.tiny else LR, precision="bfloat16", zero_stage=stage)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    start = time.monotonic()
    training = Training(candidate.spec, grid, config, batch, device)
    yield Row(case, "building", time.monotonic() - start, "s")
    losses = [training.step(Marks(device))[0] for _ in range(WARM_STEPS)]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start, marks = time.perf_counter(), [Marks(device) for _ in range(STEPS)]
    losses += [training.step(each)[0] for each in marks]
    phases = torch.tensor([each.milliseconds() for each in marks]).median(dim=0).values.tolist()
    seconds = (time.perf_counter() - start) / STEPS
    for phase, milliseconds in zip(PHASES, phases, strict=True):
        yield Row(case, phase, milliseconds, "ms")
    yield Row(case, "step", 1e3 * seconds, "ms", note="by the host's time")
    yield Row(case, "speed", batch / seconds, "clips/s")
    if device.type == "cuda":
        yield Row(case, "memory at the peak", (torch.cuda.max_memory_allocated(device) - before) / GIB, "GiB")
        yield waits(case, training, device)
    else:
        yield Row(case, SKIPPED, note="memory and waits: only on a GPU")
    yield falling(case, [float(loss) for loss in losses])


def waits(case: str, training: Training, device: torch.device) -> Row:
    """How often the host waits for the device in a step, as PyTorch says."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            training.step(Marks(device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [
        f"{warning.filename.rpartition('/')[2]}:{warning.lineno}" for warning in said if "synchroniz" in str(warning.message)
    ]
    return Row(case, "waits of a step", len(found), note=", ".join(dict.fromkeys(found))[:300])
