"""Decoding and writing in the background, while the next batch is denoised: latents go in, files come out."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import Tensor

WAITING_BATCHES = 2  # of latents, decoded or waiting for it
CLIPS_PER_WRITER = 2  # decoded clips in memory, for each thread that writes


@dataclass
class StageTimes:
    """Seconds spent in each stage. Stages overlap, so that their sum may be more than `total`.

    Attributes:
        model: denoising, the device waited for.
        decode: latents to clips on the CPU.
        write: clips to files, added up over the threads that write.
        total: from the first batch to the last file. Warm-up is over before, on a GPU and of a compiled model.
    """

    model: float = 0.0
    decode: float = 0.0
    write: float = 0.0
    total: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @contextmanager
    def measured(self, stage: str) -> Iterator[None]:
        """Add what happens inside to a stage, from any thread."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                setattr(self, stage, getattr(self, stage) + time.perf_counter() - begin)


class Stream:
    """Decodes latents in one thread and writes clips in a few; what waits in between is bounded. A context manager.

    The first error of any thread drops what waits, and is raised by the next `put` or `check`, or at the end.

    Args:
        decode: latents (1, C, T, H, W) → clips (1, 3, T, H, W); called in one thread.
        write: of an index and its clip (3, T, H, W); called in several.
        times: receives the seconds.
        on_written: called after each file, in the thread that wrote it.
        writers: threads that write.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        write: Callable[[int, Tensor], None],
        times: StageTimes,
        on_written: Callable[[], object] = lambda: None,
        writers: int = 4,
    ) -> None:
        self._decode, self._write, self._times, self._on_written = decode, write, times, on_written
        self._failure: BaseException | None = None
        self._batches = threading.BoundedSemaphore(WAITING_BATCHES)
        self._clips = threading.BoundedSemaphore(CLIPS_PER_WRITER * writers)
        self._decoder = ThreadPoolExecutor(1, "decode")
        self._writers = ThreadPoolExecutor(writers, "write")
        self._side: torch.cuda.Stream | None = None

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._failure = self._failure or error
        self._decoder.shutdown()  # first, for it feeds the others
        self._writers.shutdown()
        if error is None:
            self.check()

    def put(self, indices: list[int], latents: Tensor) -> None:
        """Hand over finished latents (B, C, T, H, W) of the samples `indices`; waits while too many are under way.

        Raises:
            Exception: the first error of the threads, as it is.
        """
        self._batches.acquire()
        try:
            self.check()
        except BaseException:
            self._batches.release()
            raise
        self._decoder.submit(self._decode_batch, indices, latents)

    def check(self) -> None:
        """Raise the first error of a thread, if there is one."""
        if self._failure is not None:
            raise self._failure

    def _decode_batch(self, indices: list[int], latents: Tensor) -> None:
        try:
            with self._beside(latents):
                for index, latent in zip(indices, latents.split(1), strict=True):
                    if self._failure is not None:
                        return
                    with self._times.measured("decode"):
                        clip = self._decode(latent)[0]
                    self._clips.acquire()
                    self._writers.submit(self._write_clip, index, clip)
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            self._batches.release()

    def _write_clip(self, index: int, clip: Tensor) -> None:
        try:
            if self._failure is None:
                with self._times.measured("write"):
                    self._write(index, clip)
                self._on_written()
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            self._clips.release()

    @contextmanager
    def _beside(self, latents: Tensor) -> Iterator[None]:
        """On a GPU, a CUDA stream of this thread's own: else the decoder's kernels would queue behind the model's."""
        if not latents.is_cuda:
            yield
            return
        if self._side is None:
            self._side = torch.cuda.Stream(latents.device)
        with torch.cuda.device(latents.device), torch.cuda.stream(self._side):
            latents.record_stream(self._side)
            yield
