"""How fast clips are read, how much is decoded for them, and how fast a model in training takes them, in one run.

Dimensions: B clips of a micro-batch, T frames, H height, W width.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparsevid.benchmark.model import build_random_model, time_turn
from sparsevid.build import schedule_from_config
from sparsevid.config import ScheduleConfig
from sparsevid.data.clips import ClipDataset, ClipRule
from sparsevid.data.decode import count_decoded
from sparsevid.data.latents import LatentCache, LatentFrames
from sparsevid.data.loader import SampleOrder, build_loader
from sparsevid.data.manifest import Manifest
from sparsevid.data.sources import VideoFrames
from sparsevid.logging import progress
from sparsevid.models.presets import build_spec
from sparsevid.sparsity.spec import ModelSpec

LATENTS = "latents"  # the source that is no decoder
LATENT_FACTOR = 8  # pixels of a latent's side, in the autoencoder that the presets are made for
# A loader asks each worker for two batches ahead; those were begun before the clock and are not counted.
WARM_BATCHES = 3  # of each worker
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class ReadRate:
    """Clips a second of one source with some worker processes.

    Attributes:
        source: a decoder's name, or `latents`.
        workers: processes that read; 0 reads in the process that measures.
        turns: clips a second of each timed turn.
        decoded: frames decoded for a clip, mean.
    """

    source: str
    workers: int
    turns: tuple[float, ...]
    decoded: float

    @property
    def clips_per_second(self) -> float:
        """Median over the turns."""
        return statistics.median(self.turns)

    @property
    def spread(self) -> float:
        """Fastest less slowest turn, as a share of the median."""
        return (max(self.turns) - min(self.turns)) / self.clips_per_second


@dataclass(frozen=True)
class DataMeasurement:
    """Rates of all sources, and that of the model beside them.

    Attributes:
        rates: in the order of sources, then of workers.
        step_turns: seconds of a training step in each turn.
        step_batch: clips of a training step.
    """

    rates: tuple[ReadRate, ...]
    step_turns: tuple[float, ...]
    step_batch: int

    @property
    def consumed_per_second(self) -> float:
        """Clips a second that the model takes in training: of the median step."""
        return self.step_batch / statistics.median(self.step_turns)

    def feeds(self, rate: ReadRate) -> float:
        """How many times over this way of reading feeds the model; below 1 the model waits."""
        return rate.clips_per_second / self.consumed_per_second


def open_sources(
    manifest: Manifest, rule: ClipRule, size: tuple[int, int], decoders: Sequence[str], latents: str | Path | None = None
) -> dict[str, ClipDataset]:
    """The same clips from each decoder, and from a latent cache if its folder is given.

    Args:
        manifest: the videos.
        rule: what frames make a clip.
        size: (H,W) in pixels.
        decoders: backends of `sparsevid.data.decode`.
        latents: folder of a latent cache of these videos at this size.

    Raises:
        FileNotFoundError: no latent cache there.
        ValueError: no usable video, or a latent cache that is damaged or of another size.
    """
    sources = {name: ClipDataset(manifest, rule, VideoFrames(manifest.root, size, name)) for name in decoders}
    if latents is not None:
        cache = LatentCache.open(latents)
        if cache.size != tuple(size):
            raise ValueError(f"{latents} holds latents of {cache.size} pixels, clips of {tuple(size)} are asked for")
        sources[LATENTS] = ClipDataset(manifest, rule, LatentFrames(cache))
    return sources


def measure_data(
    sources: dict[str, ClipDataset],
    workers: Sequence[int],
    step: Callable[[], object],
    step_batch: int,
    *,
    clips: int = 64,
    batch: int = 4,
    repeats: int = 3,
) -> DataMeasurement:
    """Read the same clips from every source with every number of workers, and take training steps, in turns.

    Args:
        sources: clips by source, as `open_sources` gives them.
        workers: numbers of worker processes; 0 reads in this one.
        step: one training step, such as `TrainingStep`.
        step_batch: clips of `step`.
        clips: timed clips of a turn, at least; rounded up to whole batches of all workers.
        batch: B of the loader.
        repeats: timed turns. One more of the training step comes before, untimed.

    Raises:
        ValueError: a number is out of range.
    """
    if min(workers) < 0 or min(clips, batch, repeats) < 1:
        raise ValueError(
            "need workers from 0, and clips, batch and repeats from 1, got "
            f"workers={list(workers)}, clips={clips}, batch={batch}, repeats={repeats}"
        )
    cases = [(source, count) for source in sources for count in workers]
    decoded = {source: decoded_per_clip(dataset) for source, dataset in sources.items()}
    step()
    turns: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    step_turns = []
    for _ in progress(range(repeats), desc="turns"):
        for source, count in cases:
            turns[source, count].append(read_rate(sources[source], count, clips=clips, batch=batch))
        step_turns.append(time_turn({"step": step})["step"])
    rates = tuple(ReadRate(source, count, tuple(turns[source, count]), decoded[source]) for source, count in cases)
    return DataMeasurement(rates, tuple(step_turns), step_batch)


def read_rate(dataset: ClipDataset, workers: int, *, clips: int, batch: int) -> float:
    """Clips a second of a loader whose workers have started and work, over the first clips of its order.

    Args:
        dataset: the clips.
        workers: processes that read; 0 reads in this one.
        clips: timed clips, rounded up to whole batches of all workers.
        batch: B.
    """
    batches = iter(build_loader(dataset, SampleOrder(len(dataset), dataset.seed), batch, 0, 1, workers=workers))
    group = max(1, workers)  # batches come in groups of one from each worker; only whole groups are timed
    timed = -(-clips // (batch * group)) * group
    _take(batches, WARM_BATCHES * group)
    start = time.perf_counter()
    _take(batches, timed)
    return timed * batch / (time.perf_counter() - start)


def decoded_per_clip(dataset: ClipDataset, clips: int = 8) -> float:
    """Mean number of frames that are decoded, in this process, for a clip; 0 from a latent cache."""
    order = SampleOrder(len(dataset), dataset.seed)
    with count_decoded() as count:
        for position in range(clips):
            dataset[order[position]]
    return count.frames / clips


class TrainingStep:
    """Forward, backward and a plain AdamW step in float32 on random latents: what of training does not read clips.

    Args:
        spec: sizes and layout of the model; it holds random weights.
        batch: B, clips of a step.
        device: where it runs.

    Raises:
        ValueError: the batch is empty.
    """

    def __init__(self, spec: ModelSpec, batch: int, device: torch.device) -> None:
        if batch < 1:
            raise ValueError(f"a training step has at least one clip, got {batch}")
        self.model = build_random_model(spec, torch.float32, device).train().requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.x = torch.randn(batch, spec.in_channels, *spec.input_size, device=device)
        self.t = torch.linspace(0, 999, batch, device=device)
        self.labels = torch.arange(batch, device=device) % spec.num_classes if spec.num_classes else None

    def __call__(self) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        self.model(self.x, self.t, self.labels).square().mean().backward()
        self.optimizer.step()


def training_spec(preset: str, frames: int, size: tuple[int, int]) -> ModelSpec:
    """A preset for latents of clips of `frames` frames and `size` (H,W) pixels; a sparse one with the grid of its first stage.

    Raises:
        KeyError: no such preset.
        ValueError: latents of this size do not fit the preset.
    """
    if size[0] % LATENT_FACTOR or size[1] % LATENT_FACTOR:
        raise ValueError(f"clips of {size[0]}×{size[1]} pixels have no whole latents: both are multiples of {LATENT_FACTOR}")
    latents = (frames, size[0] // LATENT_FACTOR, size[1] // LATENT_FACTOR)
    spec = build_spec(preset)
    if not spec.is_sparse:
        return replace(spec, input_size=latents)
    stages = schedule_from_config(ScheduleConfig(), spec.dense_grid(latents), preset).stages
    return replace(spec, input_size=latents, sparse_grid=stages[0].grid)


def worker_memory(dataset: Dataset, moments: Sequence[int]) -> list[int] | None:
    """Resident memory of one worker process while it reads sample after sample of a dataset, epoch after epoch.

    Args:
        dataset: clips, drawn as in training.
        moments: numbers of samples read, increasing, from 1.

    Returns:
        Bytes after each of these samples; None on a system that does not tell them (they need /proc).
    """
    if not _STATM.exists():
        return None
    order = SampleOrder(len(dataset), seed=0)
    batches = build_loader(_WithMemory(dataset), order, 1, 0, 1, workers=1)
    wanted, found = set(moments), []
    for number, batch in enumerate(islice(batches, max(moments)), 1):
        if number in wanted:
            found.append(int(batch["resident"]))
    return found


class _WithMemory(Dataset):
    """A dataset whose samples say how much memory the process that read them holds."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor | int]:
        sample = self.dataset[key]
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
        return sample | {"resident": pages * os.sysconf("SC_PAGESIZE")}


def _take(batches: Iterator, number: int) -> None:
    for _ in islice(batches, number):
        pass
