"""Signs of life between ranks, beside what they compute: who is silent is named, also while a collective waits for it.

A collective of NCCL does not raise when a peer is killed, and none does when one is stopped: the ranks that are left would wait
for minutes or hours. So each rank has a thread that counts in the ranks' store, over a connection of its own, and looks whether
the others count too. It needs neither the main thread nor a GPU.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

import torch.distributed as dist

from sparsevid.system.distributed import RankInfo, fate_of, first_to_say, rank
from sparsevid.system.logging import get_logger
from sparsevid.system.store import RankError, attempt, held_by_agent, open_store

logger = get_logger(__name__)
BEATS = 9  # in the time after which a rank is taken for dead
GRACE = 10.0  # seconds for the main thread to end by itself once a rank is silent, and for what is done before the process ends
EXIT_CODE = 1
HOLDER = "0"  # the rank that holds the store, where no launcher does
LEFT = "left"  # what a rank says in place of a count when it has done its work
_opened = 0  # heartbeats of this process: all ranks have as many


class Silence:
    """How long each rank has been silent, by the time that this process was awake.

    A process that was suspended, as by Ctrl-Z or with its machine, does not hold the pause against the others: of the time
    between two looks no more counts than `most`.

    Args:
        names: of the ranks.
        most: seconds.
    """

    def __init__(self, names: list[str], most: float) -> None:
        self.most = most
        self._said: dict[str, str | None] = dict.fromkeys(names)
        self._since = dict.fromkeys(names, 0.0)

    def look(self, elapsed: float, said: Mapping[str, str]) -> dict[str, float]:
        """Seconds of silence by rank, after `elapsed` seconds since the last look.

        Args:
            elapsed: seconds.
            said: what each rank has said last, if anything.
        """
        for name in self._since:
            new = said.get(name)
            heard = new == LEFT or new != self._said[name]
            self._since[name] = 0.0 if heard else self._since[name] + min(elapsed, self.most)
            self._said[name] = new
        return dict(self._since)


class Heartbeat:
    """This rank's signs of life, and its watch over the others, until it is closed; nothing for a single process.

    When a rank is silent for too long, that is said, and this process ends: by its main thread, if that closes this in `GRACE`
    seconds, else here and now. Use as a context manager, or close it.

    Args:
        ranks: all, in order, as `check_ranks` gives them. All ranks make it together.
        limit: seconds of silence after which a rank is taken for dead.
        doing: for the message, such as `training`.

    Attributes:
        before_end: called, in turn, before the process ends here: what is to be written still. They get `GRACE` seconds.
    """

    def __init__(self, ranks: list[RankInfo], limit: float, doing: str) -> None:
        global _opened
        self.limit, self.doing, self.me = limit, doing, rank()
        self.before_end: list[Callable[[], object]] = []
        self.peers = {str(info.rank): info for info in ranks if info.rank != self.me}
        self._closed = threading.Event()
        self._said: dict[str, str] = {}
        self._answers = 0  # of the store
        if not self.peers:
            return
        _opened += 1
        self._store = dist.PrefixStore(f"heartbeat-{_opened}", open_store(self.me, limit, holds=False))
        atexit.register(self.close)
        for action in (self._beat, self._watch):
            threading.Thread(target=action, name=f"heartbeat {action.__name__}", daemon=True).start()

    def __enter__(self) -> "Heartbeat":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(done=error is None)

    def close(self, done: bool = True) -> None:
        """End it.

        Args:
            done: the others need not wait for this rank any more; else its silence tells them.
        """
        if self._closed.is_set() or not self.peers:
            return
        self._closed.set()
        atexit.unregister(self.close)
        if done:
            attempt(lambda: self._store.set(str(self.me), LEFT), GRACE)

    def _beat(self) -> None:
        """Count, and read what the others have counted. The store may keep this thread waiting, not the one that watches."""
        count = 0
        try:
            while not self._closed.wait(self.limit / BEATS):
                count += 1
                self._store.set(str(self.me), str(count))
                all_there = self._store.check(list(self.peers))
                there = [peer for peer in self.peers if all_there or self._store.check([peer])]
                self._said = dict(zip(there, map(bytes.decode, self._store.multi_get(there)), strict=True))
                self._answers += 1
        except RuntimeError as error:  # whoever holds the store is gone
            if held_by_agent() and not self._closed.is_set():
                logger.warning("the launcher's store is gone: a rank that ends is no longer noticed by its silence (%s)", error)

    def _watch(self) -> None:
        pause = self.limit / BEATS
        silence, store = Silence(list(self.peers), 2 * pause), Silence([HOLDER], 2 * pause)
        before, unheard = time.monotonic(), 0.0
        while not self._closed.wait(pause):
            now = time.monotonic()
            elapsed, before = now - before, now
            unheard += elapsed
            seconds: dict[str, float] = {}
            unanswered = store.look(elapsed, {HOLDER: str(self._answers)})[HOLDER]
            if not unanswered:  # else nothing is known of anybody
                seconds, unheard = silence.look(unheard, self._said), 0.0
            elif HOLDER in self.peers and not held_by_agent():
                seconds = {HOLDER: unanswered}
            if silent := [peer for peer, each in seconds.items() if each > self.limit]:
                self._end(silent)
                return

    def _end(self, silent: list[str]) -> None:
        """Say who is silent, and end the process unless the main thread does."""
        fates: dict[str, str] = {}
        attempt(lambda: fates.update({peer: fate for peer in silent if (fate := fate_of(int(peer)))}), GRACE / 3)
        named = [f"; {self.peers[peer]}: {fates.get(peer, f'no sign of life for {self.limit:g} s')}" for peer in silent]
        error = RankError(f"another rank ended or did not answer during {self.doing}{''.join(named)}")
        first = [True]
        attempt(lambda: first.insert(0, first_to_say(str(error), alike=False)), GRACE / 3)
        if first[0]:
            print(f"sparsevid: rank {self.me}: error: {error}", file=sys.stderr, flush=True)
        if self._closed.wait(GRACE):
            return
        attempt(self._finish, GRACE)
        os._exit(EXIT_CODE)

    def _finish(self) -> None:
        for action in self.before_end:
            with contextlib.suppress(Exception):  # the process ends, whatever it cannot write
                action()
