"""Batches on their way from a loader to the device: the next one while the device works on the one before."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from sparsevid.runs.config import ConfigError
from sparsevid.system.transfer import to_device

ON_DEVICE = ("clip", "text", "text_mask")  # of a batch, as far as it has them; the rest is asked for on the host


class Feed(Iterator[dict[str, Tensor]]):
    """A loader's batches, whose clips, and what they are told, are on a device. Copies to a GPU have a stream of their own.

    Args:
        batches: of a loader.
        device: where they are to be.
        waiting: a context around what waits for the loader, such as `Throughput.waiting`.
    """

    def __init__(
        self,
        batches: Iterator[dict[str, Tensor]],
        device: torch.device,
        waiting: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.batches, self.device, self.waiting = batches, device, waiting
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: dict[str, Tensor] | Exception | None = None

    def __next__(self) -> dict[str, Tensor]:
        """The next batch; work that is given to the device from now on comes after its copy.

        Raises:
            WorkerError, …: what the loader raised for this batch, also if that was when it was fetched ahead.
        """
        self.fetch()
        batch, self._next = self._next, None
        if isinstance(batch, Exception):
            raise batch
        assert batch is not None  # it was fetched
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for name in _moved(batch):
                batch[name].record_stream(current)
        return batch

    def fetch(self) -> None:
        """Take the next batch from the loader and send it to the device, if that is not done yet."""
        if self._next is not None:
            return
        try:
            with self.waiting():
                batch = next(self.batches)
            with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
                self._next = batch | {name: to_device(batch[name], self.device) for name in _moved(batch)}
        except Exception as error:  # belongs to the batch, and not to what is done meanwhile
            self._next = error


def _moved(batch: dict[str, Tensor]) -> list[str]:
    return [name for name in ON_DEVICE if name in batch]


def split_batch(global_batch: int, micro_batch: int | None, ranks: int) -> tuple[int, int]:
    """Clips of a forward and accumulation slots of a step, for one rank.

    Raises:
        ConfigError: the global batch is not ranks × slots × clips; the message says which values are.
    """
    if global_batch % ranks:
        raise ConfigError(f"train.global_batch = {global_batch} is not a multiple of the {ranks} ranks; accepted are multiples")
    per_rank = global_batch // ranks
    micro = micro_batch or per_rank
    if per_rank % micro:
        divisors = [n for n in range(1, per_rank + 1) if per_rank % n == 0]
        raise ConfigError(
            f"train.micro_batch = {micro} does not divide the {per_rank} clips of each of {ranks} ranks "
            f"(train.global_batch = {global_batch}); accepted are {divisors}"
        )
    return micro, per_rank // micro
