"""A process that loads with workers, and says what it does. `python loads.py KIND`, or imported, what it loads.

KIND `for ever`: it prints the pids of its workers, then loads. `unguarded`: it does without a main guard what needs one.
"""

import sys
import time

import torch
from torch.utils.data import Dataset

from sparsevid.data.loader import SampleOrder, build_loader
from sparsevid.data.workers import refuse_while_imported, running


class Unsendable:
    """What cannot be pickled, and so not be sent."""

    def __reduce__(self):
        raise OSError(28, "no space for it")


class Samples(Dataset):
    """Four samples, each its index; `bad` says what becomes of index 3."""

    def __init__(self, bad: str = "") -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: tuple[int, int]) -> dict:
        index = key[1]
        if index == 3 and self.bad == "raises":
            raise LookupError("sample 3 is not there")
        if index == 3 and self.bad == "hangs":
            time.sleep(3600)
        return {"video": torch.tensor(index)}


def collate(samples: list[dict]) -> object:
    """A batch of one, which cannot be sent if it is sample 3."""
    return Unsendable() if int(samples[0]["video"]) == 3 else samples[0]


def load(bad: str = "", workers: int = 2):
    """A loader of single samples without end, to be given to `running`."""
    loader = build_loader(Samples(bad), SampleOrder(4, seed=0), 1, 0, 1, workers=workers)
    if bad == "cannot be sent":
        loader.collate_fn = collate
    return loader


def main() -> None:
    loader = load()
    with running(loader) as batches:
        next(batches)
        print(*(worker.pid for worker in loader.multiprocessing_context.workers), flush=True)
        for _ in batches:
            time.sleep(0.01)


if sys.argv[1:] == ["unguarded"]:
    refuse_while_imported()
    main()
elif __name__ == "__main__":
    main()
