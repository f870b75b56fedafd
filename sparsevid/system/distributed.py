"""Ranks: who am I, who else is there, and who does not answer. Everything works without a launcher too, as rank 0 of 1."""

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from sparsevid.system.store import RankError, attempt, held_by_agent, open_store, port_in_use

LONG_WAIT = 7 * 24 * 3600.0  # seconds that ranks wait for one that works alone, such as looking into a large tree
GRACE = 3.0  # seconds that a failing rank leaves to the others, and the launcher, to notice what failed first
# Of gloo's and NCCL's errors, which have no type of their own in every version of torch.
_BACKEND_WORDS = ("gloo", "nccl", "processgroup", "c10d", "tcpstore")
_LOST_WORDS = ("connect", "closed", "reset by peer", "broken pipe", "timed out", "timeout", "remote", "aborted", "network")

T = TypeVar("T")
_store: dist.Store | None = None  # what launched ranks tell each other through, beside the process group


class RankInfo(NamedTuple):
    """Where a rank runs; `device` is `cpu`, or a GPU's name."""

    rank: int
    host: str
    pid: int
    device: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (pid {self.pid})"


def is_launched() -> bool:
    """Whether a launcher (`torchrun`, `deepspeed`) started this process, by the variables that it sets."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def communication_backend(device: torch.device | None = None) -> str:
    """gloo for tensors on the CPU, and NCCL for those on GPUs where each rank has its own; `device` as joining takes it."""
    return "cpu:gloo,cuda:nccl" if device is None and torch.cuda.is_available() else "gloo"


def init_process_group_if_launched(
    timeout: float | timedelta = 600.0, start_timeout: float = 300.0, device: torch.device | None = None
) -> None:
    """Join the process group of the launcher, once all ranks have told where they run. Does nothing without a launcher.

    Args:
        timeout: of a collective, in seconds if a number.
        start_timeout: seconds for all ranks to arrive, and to join.
        device: that this rank was told to compute on, out of `check_device`; ranks then talk over their CPUs, for several may
            share a device. Default: each has a GPU of its own, where there are any.

    Raises:
        RankError: more processes on this machine than GPUs, or ranks that did not arrive or join; the message names them.
    """
    global _store
    if not is_launched() or dist.is_initialized():
        return
    own = device or default_device()
    me, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    limit = timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout)
    deadline = time.monotonic() + start_timeout
    _store = open_store(me, start_timeout)
    mine = json.dumps(_my_info(me, own))
    if _store.compare_set(f"info/{me}", "", mine).decode() != mine:
        raise RankError(f"{port_in_use()}; its {_read_info(_store, me)} is there")
    if not _arrived(_store, [f"info/{rank}" for rank in range(size)], deadline):
        if not held_by_agent() and _is_of_others(_store):
            raise RankError(port_in_use())
        raise RankError(_describe_missing(_store, "info", size, "telling its host", start_timeout))

    def join() -> None:
        _make_current(own)
        dist.init_process_group(communication_backend(device), store=_store, rank=me, world_size=size, timeout=limit)

    _answer(_store, me, size, "joining the group", join, deadline, start_timeout)
    _make_current(own)


def _is_of_others(store: dist.Store) -> bool:
    """Whether a store answers without our rank 0, which would have said first that it is there."""
    try:
        return not store.check(["info/0"])
    except RuntimeError:  # the process that held it has ended
        return False


def check_ranks(timeout: float = 300.0, device: torch.device | None = None) -> list[RankInfo]:
    """A first collective on the devices of all ranks, which cannot hang. All ranks call it together, after joining.

    Args:
        timeout: seconds for all ranks to answer.
        device: as at joining.

    Returns:
        All ranks, in order.

    Raises:
        RankError: ranks that did not answer; the message names them with their hosts.
    """
    if world_size() == 1 and _store is None:
        return [_my_info(0, device or default_device())]
    if _store is None:
        raise RuntimeError("check_ranks is for ranks that joined by init_process_group_if_launched")
    own = torch.device("cpu") if device is not None else default_device()

    def collective() -> None:
        _make_current(own)
        one = torch.ones(1, device=own)
        dist.all_reduce(one)
        one.item()  # waits for the device

    _answer(_store, rank(), world_size(), "first collective", collective, time.monotonic() + timeout, timeout)
    return [_read_info(_store, other) for other in range(world_size())]


@contextlib.contextmanager
def peers_may_die(doing: str = "a collective") -> Iterator[None]:
    """Turn the long error of a collective whose peer is gone into a `RankError` that says who ended and why.

    An error of this rank's own passes through, and is told to the others first.

    Args:
        doing: for the message, such as `step 12`.
    """
    try:
        yield
    except RankError:
        raise
    except Exception as error:
        if not _is_lost_peer(error):
            _tell_fate(f"{type(error).__name__}: {error}".partition("\n")[0])
            raise
        _tell_fate("")
        # The launcher reports the rank that failed first: the one that ended has to be seen before this one.
        time.sleep(GRACE)
        raise RankError(f"another rank ended or did not answer during {doing}{_read_fates()}") from error


def first_to_say(text: str, alike: bool = True) -> bool:
    """Whether this rank is the one to print what several ranks have to say: the first that asks.

    Args:
        text: what is to be said.
        alike: before the ranks have met, the first of each host speaks for all on it; False: each speaks for itself.
    """
    if _store is None:
        return not alike or local_rank() == 0
    try:
        return _store.add(f"said/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1
    except RuntimeError:  # the rank that holds the store is gone: rather twice than never
        return True


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


def from_main(
    action: Callable[[], T],
    errors: tuple[type[Exception], ...] = (Exception,),
    group: dist.ProcessGroup | None = None,
) -> T:
    """What `action` returns on rank 0, the only one to do it, on all ranks. All ranks call it together.

    Args:
        action: its result travels pickled, between processes of one run only.
        errors: types that all ranks raise alike if `action` does; others are rank 0's own, which the others wait for in vain.
        group: all ranks, such as a `patient_group`; default: as the run waits.
    """
    value = failure = None
    if is_main():
        try:
            value = action()
        except errors as error:
            failure = error
    value, failure = broadcast_object((value, failure), group)
    if failure is not None:
        raise failure
    return value


def gather_objects(value: Any) -> list[Any]:
    """What every rank passed in, by rank, on all ranks. Values travel pickled, between processes of one run only."""
    gathered = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(gathered, value)
    return gathered


@contextlib.contextmanager
def patient_group(seconds: float = LONG_WAIT) -> Iterator[dist.ProcessGroup | None]:
    """A group of all ranks whose collectives wait longer than the run's: for ranks that wait while rank 0 works alone.

    All ranks enter it together. None for a single process.
    """
    if world_size() == 1:
        yield None
        return
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
    yield group  # type: ignore[misc]  # a number to ranks outside of a group, and all are inside
    dist.destroy_process_group(group)


def all_meet(group: dist.ProcessGroup | None) -> bool:
    """Whether all ranks come here in the time that a group waits: after an error, whether it was everybody's."""
    try:
        if group is not None:
            dist.barrier(group)
    except RuntimeError:
        return False
    return True


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The elementwise sum of `value` over all ranks."""
    if not dist.is_initialized():
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def any_over_ranks(flag: bool) -> bool:
    """Whether `flag` is true on any rank: the same answer on all. All ranks call it together."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(int(flag))  # on the CPU: no GPU has to wait for it
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)


def default_device() -> torch.device:
    """This rank's GPU, or the CPU.

    Raises:
        RankError: more processes on this machine than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank() >= torch.cuda.device_count():
        raise RankError(f"process {local_rank()} of this machine has no GPU: there are {torch.cuda.device_count()}")
    return torch.device("cuda", local_rank())


def check_device(name: str | torch.device) -> torch.device:
    """The device of this name, made the current one if it is a GPU.

    Args:
        name: `cpu`, `cuda:N`, or `cuda`, which is this rank's own GPU.

    Raises:
        ValueError: it is neither `cpu` nor a GPU that is here.
        RankError: `cuda`, and more processes on this machine than GPUs.
    """
    count = torch.cuda.device_count()
    accepted = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if str(name) not in accepted:
        raise ValueError(f"no device {str(name)!r}; here there are {', '.join(accepted)}")
    device = default_device() if str(name) == "cuda" else torch.device(name)
    _make_current(device)
    return device


def shutdown() -> None:
    """Leave the group that `init_process_group_if_launched` joined. Not for a rank whose peers are gone: it would wait."""
    global _store
    if _store is not None:
        dist.destroy_process_group()
        _store = None


def _make_current(device: torch.device) -> None:
    """Make a GPU the current one of this thread: each has its own."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _my_info(rank: int, device: torch.device) -> RankInfo:
    name = f"{torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"
    return RankInfo(rank, socket.gethostname(), os.getpid(), name)


def _read_info(store: dist.Store, rank: int) -> RankInfo:
    return RankInfo(*json.loads(store.get(f"info/{rank}")))


def _arrived(store: dist.Store, keys: list[str], deadline: float) -> bool:
    """Wait for keys until the deadline; whether all are there."""
    try:
        store.wait(keys, timedelta(seconds=max(0.1, deadline - time.monotonic())))
    except RuntimeError:
        return False
    return True


def _answer(
    store: dist.Store, me: int, size: int, stage: str, action: Callable[[], None], deadline: float, timeout: float
) -> None:
    """Do what needs every rank, and raise `RankError` when that fails or takes too long."""
    store.set(f"{stage}/{me}", "")
    done, failure = attempt(action, deadline - time.monotonic())
    if done:
        return
    if failure is not None and not _is_lost_peer(failure):
        raise failure
    # One rank's end breaks the collective of all: ranks that are only late come in time to be left out of the message.
    _arrived(store, [f"{stage}/{other}" for other in range(size)], min(deadline, time.monotonic() + GRACE))
    message = _describe_missing(store, stage, size, stage, timeout)
    raise RankError(message) from failure


def _describe_missing(store: dist.Store, kind: str, size: int, stage: str, timeout: float) -> str:
    try:
        missing = [other for other in range(size) if not store.check([f"{kind}/{other}"])]
        told = {other: _read_info(store, other) for other in missing if store.check([f"info/{other}"])}
    except RuntimeError:
        return f"{stage}: the process that holds the ranks' store at {os.environ['MASTER_ADDR']} has ended"
    if not missing:
        return (
            f"{stage}: all {size} ranks arrived, but their connections failed, or gave no answer within {timeout:g} s; "
            "if no other rank has an error, see that the hosts reach each other (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)"
        )
    named = [str(told[other]) if other in told else f"rank {other} (never arrived)" for other in missing]
    return f"{stage}: {len(missing)} of {size} ranks ended or did not answer within {timeout:g} s: {', '.join(named)}"


def _is_lost_peer(error: Exception) -> bool:
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return True
    text = str(error).lower()
    is_backend = isinstance(error, RuntimeError) and any(word in text for word in _BACKEND_WORDS)
    return is_backend and any(word in text for word in _LOST_WORDS)


def _tell_fate(fate: str) -> None:
    """Leave word for the other ranks: why this one ends, or nothing if it ends because of them."""
    if _store is not None:
        with contextlib.suppress(RuntimeError):  # the rank that holds the store is gone
            _store.set(f"fate/{rank()}", fate)


def fate_of(other: int) -> str:
    """What a rank said of why it ends; nothing if it did not, or ends because of others."""
    try:
        return _store.get(f"fate/{other}").decode() if _store is not None and _store.check([f"fate/{other}"]) else ""
    except RuntimeError:  # the rank that holds the store is gone
        return ""


def _read_fates() -> str:
    """The ranks that said why they ended, and those that ended, or hang, without a word."""
    lines = []
    try:
        for store, other in ((_store, each) for each in range(world_size()) if _store is not None):
            known = store.check([f"fate/{other}"])
            fate = store.get(f"fate/{other}").decode() if known else "no word from it"
            lines += [f"{_read_info(store, other)}: {fate}"] if fate else []
    except RuntimeError:
        lines.append("the process that held the ranks' store has ended")
    return "".join(f"; {line}" for line in lines)
