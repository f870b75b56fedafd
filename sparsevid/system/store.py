"""The store at MASTER_ADDR and MASTER_PORT through which launched ranks meet."""

import os
import socket
import threading
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from sparsevid.system.errors import ExpectedError

GRACE = 5.0  # seconds for PyTorch to keep a limit of its own


class RankError(ExpectedError):
    """Ranks that ended or did not answer; the message says which, where, and at what."""


def open_store(rank: int, timeout: float, holds: bool = True) -> dist.Store:
    """The store, held by torchrun's agent or by rank 0; unlike torch's own, it is there before all ranks are.

    Args:
        rank: this process's, among all.
        timeout: seconds for it to answer.
        holds: rank 0 holds it, unless an agent does; False: it is there, and only another connection is made.

    Raises:
        RankError: it does not, or another process has its port.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    opened: list[dist.Store] = []

    def connect() -> None:
        store = dist.TCPStore(
            address, port, is_master=holds and rank == 0 and not held_by_agent(), timeout=timedelta(seconds=timeout),
            wait_for_workers=False, multi_tenant=True,
        )  # fmt: skip
        opened.append(store)

    done, failure = attempt(connect, timeout + GRACE)
    if failure is not None and not isinstance(failure, RuntimeError):
        raise failure
    if failure is not None and "address already in use" in str(failure).lower():
        raise RankError(port_in_use()) from failure
    if not done:
        raise RankError(
            f"no answer at {address}:{port} within {timeout:g} s, asked from {socket.gethostname()}: rank 0 did not start "
            "there, another process has that port, or the address (MASTER_ADDR, MASTER_PORT) cannot be reached"
        ) from failure
    # A launcher that restarts its ranks keeps its store, with what the ranks before them said.
    return dist.PrefixStore(f"sparsevid-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", opened[0])


def held_by_agent() -> bool:
    """Whether torchrun holds the store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def port_in_use() -> str:
    """What to say where another process has the store's port."""
    port = os.environ["MASTER_PORT"]
    return (
        f"port in use: at {os.environ['MASTER_ADDR']}:{port} is another process, perhaps of another launch; give all ranks "
        f"another MASTER_PORT than {port}"
    )


def attempt(action: Callable[[], None], seconds: float) -> tuple[bool, Exception | None]:
    """Do what has no limit of its own that can be relied on, in a thread, which stays behind if it does not come back.

    So is a join of NCCL, which has no call that gives up and leaves the process alive to say who is missing, and a connection
    to what listens and never answers.

    Returns:
        Whether it was done in time, and what it raised.
    """
    raised: list[Exception] = []

    def run() -> None:
        try:
            action()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="attempt", daemon=True)
    thread.start()
    thread.join(max(0.1, seconds))
    return not thread.is_alive() and not raised, raised[0] if raised else None
