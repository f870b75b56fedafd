"""The order of samples, the same for any number of ranks, and the loader that walks it.

Dimensions: B clips of a micro-batch, C = 3 channels (RGB), T frames, H height, W width.
"""

from collections.abc import Iterator
from itertools import count

import torch
from torch.utils.data import DataLoader, Sampler

from sparsevid.data.clips import ClipDataset
from sparsevid.data.workers import WorkerContext, end_with_main
from sparsevid.system.seeding import Purpose, keyed_generator


class SampleOrder:
    """The infinite order of a training run: epoch after epoch, each a permutation keyed by (seed, epoch).

    Args:
        num_samples: N, the samples of an epoch.
        seed: of the permutations.

    Raises:
        ValueError: `num_samples` is below 1.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be 1 or more, got {num_samples}")
        self.num_samples, self.seed = num_samples, seed
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """The (epoch, index) at a position from 0: position p lies in epoch p // N."""
        if position < 0:
            raise IndexError(f"positions count from 0, got {position}")
        epoch, place = divmod(position, self.num_samples)
        if epoch != self._epoch:
            generator = keyed_generator(Purpose.ORDER, self.seed, epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self.num_samples, generator=generator)
        return epoch, int(self._permutation[place])


class BatchOrder(Sampler[list[tuple[int, int]]]):
    """One rank's share of the order, without end: a batch sampler.

    Micro-step m covers the positions from start + m·R·B on, R·B of them for R ranks; rank r takes the r-th block of B.
    So the ranks together see the same samples for every R with the same R·B, and a run resumes on another number of
    ranks.

    Args:
        order: the global order.
        micro_batch: B, samples per rank and micro-step.
        rank: r, this process.
        world_size: R, all processes.
        start: position to begin at: the samples that all ranks together have seen.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, order: SampleOrder, micro_batch: int, rank: int, world_size: int, start: int = 0) -> None:
        if micro_batch < 1 or start < 0 or not 0 <= rank < world_size:
            raise ValueError(
                "need micro_batch >= 1, start >= 0 and 0 <= rank < world_size, got "
                f"micro_batch={micro_batch}, start={start}, rank={rank}, world_size={world_size}"
            )
        self.order, self.micro_batch, self.start = order, micro_batch, start
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """This rank's keys (epoch, index), one list of B for each micro-step."""
        for first in count(self.start + self.rank * self.micro_batch, self.world_size * self.micro_batch):
            yield [self.order[position] for position in range(first, first + self.micro_batch)]


def build_loader(
    dataset: ClipDataset,
    order: SampleOrder,
    micro_batch: int,
    rank: int,
    world_size: int,
    start: int = 0,
    workers: int = 0,
) -> DataLoader:
    """A loader without end over one rank's share of the order. To resume, build it with `start` = samples seen.

    Args:
        dataset: the clips.
        order: the global order, over `len(dataset)` samples.
        micro_batch: B, clips per rank and micro-step.
        rank: this process.
        world_size: all processes.
        start: samples that all ranks together have seen.
        workers: processes that decode; 0 decodes in this one.

    Workers begin and end as `workers` says; `workers.running` gives the batches and ends them.

    Returns:
        A loader of dicts: `clip` (B,C,T+k,H,W) of clips and k stills, uint8 frames or an autoencoder's moments; `label`
        int64 (B,), with stills (B,1+k); `video`, `start` and `redraws` int64 (B,); of a dataset with captions `text` (B,L,C),
        `text_mask` bool (B,L) and `caption` int64 (B,), with stills (B,1+k,L,C), (B,1+k,L) and (B,1+k).

    Raises:
        ValueError: the order is not over this dataset's samples, or a number is out of range.
    """
    if order.num_samples != len(dataset):
        raise ValueError(f"the order is over {order.num_samples} samples, the dataset has {len(dataset)}")
    return DataLoader(
        dataset,
        batch_sampler=BatchOrder(order, micro_batch, rank, world_size, start),
        num_workers=workers,
        multiprocessing_context=WorkerContext([__name__]) if workers else None,
        worker_init_fn=end_with_main,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
