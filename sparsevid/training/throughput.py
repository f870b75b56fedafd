"""How fast a run is: clips, tokens and arithmetic a second, and what it waits for.

Dimensions: N = H·W dense tokens a frame, n = h·w sparse tokens a frame, k stills beside a clip.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from sparsevid.sparsity.cost import FREQUENCIES, fixed_macs, forward_macs, layer_macs, needed, prompt_macs
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.schedule import TokenSchedule
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.distributed import rank, sum_over_ranks, world_size

TRAINING_FLOPS = 6  # an operation more for each add beside its multiply, and a backward pass of two forwards


class Throughput:
    """Counts micro-batches and seconds of a rank; `read` gives rates of all ranks. Its clock starts at the first wait for data.

    Args:
        spec: of the model that is trained.
        schedule: its token schedule; None for a dense model.
        images: k, stills beside each clip.
        device: of this rank, for its memory.
        peak_tflops: what a device can do at best in the run's precision, in 10¹² operations a second; None: unknown.
        clock: seconds; a test brings its own.
    """

    def __init__(
        self,
        spec: ModelSpec,
        schedule: TokenSchedule | None,
        *,
        images: int = 0,
        device: torch.device | str = "cpu",
        peak_tflops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        grids = [None] if schedule is None else [stage.grid for stage in schedule.stages]
        self.dense_tokens = dense_tokens(spec, images)
        self.layer_tokens = [layer_tokens(spec, grid, images) for grid in grids]
        self.flops = [training_flops(spec, grid, images) for grid in grids]
        self.device, self.peak_tflops, self.clock = torch.device(device), peak_tflops, clock
        self.since: float | None = None
        self._reset()

    def count(self, stage: int, clips: int) -> None:
        """Count a micro-batch of this rank: the index of its stage, 0 for a dense model, and its clips."""
        self.clips += clips
        self.layered += clips * self.layer_tokens[stage]
        self.operations += clips * self.flops[stage]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        before = self.clock()
        self.since = before if self.since is None else self.since
        try:
            yield
        finally:
            self.waited += self.clock() - before

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Around what is no training, such as saving: its time is not counted."""
        before = self.clock()
        try:
            yield
        finally:
            self.paused += self.clock() - before

    def read(self) -> dict[str, float]:
        """Rates since the last call, or since the clock started. All ranks call it together and get the same.

        Returns:
            `clips_per_second` and `tokens_per_second`, dense tokens of these clips, of all ranks; `layer_tokens_per_second`,
            tokens that a layer works on, the mean over layers; `model_tflops`, 10¹² operations a second of a device, see
            `training_flops`; `peak_share`, of `peak_tflops`; `data_wait`, the share of time spent waiting for data;
            `memory_gib`, of the rank that needs most: the most that its GPU held, or its process on the CPU.
        """
        now = self.clock()
        assert self.since is not None  # a step waited for its data
        elapsed = now - self.since - self.paused
        mine = [self.clips, self.layered, self.operations, elapsed, self.waited, peak_memory(self.device)]
        table = torch.zeros(world_size(), len(mine), dtype=torch.float64)
        table[rank()] = torch.tensor(mine, dtype=torch.float64)
        table = sum_over_ranks(table)
        clips, layered, operations, elapsed, waited, _ = table.sum(dim=0).tolist()
        seconds = elapsed / world_size()
        values = {
            "clips_per_second": clips / seconds,
            "tokens_per_second": clips * self.dense_tokens / seconds,
            "layer_tokens_per_second": layered / seconds,
            "model_tflops": operations / elapsed / 1e12,
            "data_wait": waited / elapsed,
            "memory_gib": table[:, -1].max().item() / 2**30,
        }
        if self.peak_tflops is not None:
            values["peak_share"] = values["model_tflops"] / self.peak_tflops
        self._reset()
        self.since = now
        return values

    def _reset(self) -> None:
        self.clips, self.layered, self.operations = 0, 0.0, 0
        self.waited = self.paused = 0.0


def dense_tokens(spec: ModelSpec, images: int = 0) -> int:
    """Dense tokens of a clip and its stills."""
    grid = spec.dense_grid()
    return grid.tokens + images * grid.h * grid.w


def layer_tokens(spec: ModelSpec, grid: Sequence[int] | None, images: int = 0) -> float:
    """Tokens of a clip and its stills that come out of a layer, the mean over layers.

    Args:
        grid: sparse (t, h, w) of the stage; None for a dense model.
        images: k. Stills pass no temporal layer.
    """
    dense = spec.dense_grid()
    sparse = None if grid is None else Grid(*grid)
    total = 0
    for index, kind in enumerate(spec.parsed_layout.kinds):
        out = needed(sparse, spec, index) if kind in "MS" else dense
        total += out.tokens + (images * out.h * out.w if _takes_stills(spec, index) else 0)
    return total / spec.depth


def training_flops(spec: ModelSpec, grid: Sequence[int] | None, images: int = 0) -> int:
    """Operations of forward and backward pass for a clip and its stills, by the counts of `sparsity.cost`.

    A multiply-add is two operations, and a backward pass costs two forwards. What activation checkpointing computes again is
    not counted: it is no progress.

    Args:
        grid: sparse (t, h, w) of the stage; None for a dense model.
        images: k.
    """
    return TRAINING_FLOPS * (forward_macs(spec, grid=grid, naive_text=True) + images * still_macs(spec, grid))


def still_macs(spec: ModelSpec, grid: Sequence[int] | None) -> int:
    """Multiply-adds of a forward for one still beside a clip: no temporal layer, and the clip's time embedding."""
    dense, d = spec.dense_grid()._replace(t=1), spec.hidden_size
    sparse = None if grid is None else Grid(*grid)._replace(t=1)
    passed = [index for index in range(spec.depth) if _takes_stills(spec, index)]
    own_maps = 0 if spec.shared_modulation else spec.depth - len(passed)
    without = FREQUENCIES * d + d * d + own_maps * 6 * d * d
    layers = sum(layer_macs(spec, index, dense, sparse) for index in passed)
    return fixed_macs(spec, dense) - without + layers + prompt_macs(spec)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held: on its GPU, or in its resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _takes_stills(spec: ModelSpec, index: int) -> bool:
    return spec.parsed_layout.kinds[index] in "MR" or not spec.layer_is_temporal(index)
