"""How fast clips are read, how much is decoded for them, and how fast a model in training takes them, in one run.

Dimensions: B clips of a micro-batch, T frames, H height, W width.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from sparsevid.benchmark.timing import Turns, time_turn
from sparsevid.data.clips import ClipDataset
from sparsevid.data.latents.read import LatentCache, LatentFrames
from sparsevid.data.loader import SampleOrder, build_loader
from sparsevid.data.sources import VideoFrames
from sparsevid.data.tree.clip_rule import ClipRule
from sparsevid.data.tree.manifest import Manifest
from sparsevid.data.workers import running
from sparsevid.system.logging import progress
from sparsevid.system.resident import STATUS, resident_bytes
from sparsevid.videos.read import count_decoded

LATENTS = "latents"  # the source that is no decoder
# A loader asks each worker for two batches ahead; those were begun before the clock and are not counted.
WARM_BATCHES = 3  # of each worker


@dataclass(frozen=True)
class ReadRate(Turns):
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
        return self.median


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
        decoders: backends of `sparsevid.videos.read`.
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
    group = max(1, workers)  # batches come in groups of one from each worker; only whole groups are timed
    timed = -(-clips // (batch * group)) * group
    with running(build_loader(dataset, SampleOrder(len(dataset), dataset.seed), batch, 0, 1, workers=workers)) as batches:
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


def worker_memory(dataset: ClipDataset, moments: Sequence[int]) -> list[int] | None:
    """Resident memory of one worker process while it reads sample after sample of a dataset, epoch after epoch.

    Args:
        dataset: clips, drawn as in training.
        moments: numbers of samples read, increasing, from 1.

    Returns:
        Bytes after each of these samples; None on a system that does not tell them (they need /proc).
    """
    if not STATUS.exists():
        return None
    order = SampleOrder(len(dataset), seed=0)
    wanted, found = set(moments), []
    watched = _WithMemory(dataset)
    loader = build_loader(watched, order, 1, 0, 1, workers=1)  # type: ignore[arg-type]  # asks for length and samples alone
    with running(loader) as batches:
        for number, batch in enumerate(islice(batches, max(moments)), 1):
            if number in wanted:
                found.append(int(batch["resident"]))
    return found


class _WithMemory(Dataset):
    """A dataset whose samples say how much memory the process that read them holds."""

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return {**self.dataset[key], "resident": resident_bytes()}


def _take(batches: Iterator, number: int) -> None:
    for _ in islice(batches, number):
        pass
