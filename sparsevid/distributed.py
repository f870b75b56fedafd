"""Ranks: who am I, who else is there. Everything works without a launcher too, as rank 0 of 1."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

LONG_WAIT = 7 * 24 * 3600.0  # seconds that ranks wait for one that works alone, such as looking into a large tree


def is_launched() -> bool:
    """Whether a launcher (`torchrun`, `deepspeed`) started this process, by the variables that it sets."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))


def communication_backend() -> str:
    """gloo for tensors on the CPU, and NCCL for those on GPUs where there are any."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def init_process_group_if_launched(timeout_seconds: float = 600) -> None:
    """Join the process group of the launcher. Does nothing without a launcher.

    Raises:
        RuntimeError: more processes on this machine than GPUs.
    """
    if not is_launched() or dist.is_initialized():
        return
    if torch.cuda.is_available():
        if local_rank() >= torch.cuda.device_count():
            raise RuntimeError(f"process {local_rank()} of this machine has no GPU: there are {torch.cuda.device_count()}")
        torch.cuda.set_device(local_rank())
    dist.init_process_group(communication_backend(), timeout=timedelta(seconds=timeout_seconds))


def rank() -> int:
    """This process's index among all processes, 0 without a launcher."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """This process's index on its own machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world_size() -> int:
    """The number of processes, 1 without a launcher."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, which prints and writes what is written once."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def broadcast_object(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """Give every rank what rank 0 passed in. The value travels pickled, between processes of one run only."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """What every rank passed in, by rank, on all ranks. Values travel pickled, between processes of one run only."""
    gathered = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(gathered, value)
    return gathered


@contextmanager
def patient_group(seconds: float = LONG_WAIT) -> Iterator[dist.ProcessGroup | None]:
    """A group of all ranks whose collectives wait longer than the run's: for ranks that wait while rank 0 works alone.

    All ranks enter it together. None without a launcher.
    """
    if not dist.is_initialized():
        yield None
        return
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
    yield group
    dist.destroy_process_group(group)


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The elementwise mean of `value` over all ranks."""
    if not dist.is_initialized():
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


def default_device() -> torch.device:
    """This rank's GPU, or the CPU."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
