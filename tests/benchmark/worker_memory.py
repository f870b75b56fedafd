"""Memory of a worker process of a loader, while it reads."""

from collections.abc import Sequence
from itertools import islice

from torch import Tensor
from torch.utils.data import Dataset

from sparsevid.data.loader import SampleOrder, build_loader
from sparsevid.data.workers import running
from sparsevid.system.resident import STATUS, resident_bytes


def worker_memory(dataset: Dataset, moments: Sequence[int]) -> list[int] | None:
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
    with running(build_loader(_WithMemory(dataset), order, 1, 0, 1, workers=1)) as batches:
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
        return sample | {"resident": resident_bytes()}
