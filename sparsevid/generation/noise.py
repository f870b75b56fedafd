"""The noise of samples, drawn on the CPU so that it is the same for every device, and for a GPU while the model runs.

Dimensions: B clips, C latent channels, T frames, H×W latent height and width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Generator, Tensor

from sparsevid.system.seeding import Purpose, keyed_generator


class SampleNoise:
    """Unit normal noise for a batch of samples, each from its own generator: sample i is the same in any batch.

    For a GPU a thread draws it into pinned memory, first the noise to start from and then one step ahead of its use; the copies
    do not make the host wait.

    Args:
        shape: of one sample, (C, T, H, W).
        indices: global indices of the batch's samples.
        seed: of the whole set.
        device: where it is used.
        draws: how many steps will ask for fresh noise, beyond which nothing is drawn ahead.
        ahead: draw in a thread. Default: on a GPU, where the CPU is free.
    """

    def __init__(
        self,
        shape: Sequence[int],
        indices: Sequence[int],
        seed: int,
        device: torch.device,
        draws: int = 0,
        ahead: bool | None = None,
    ) -> None:
        self.shape, self.device = tuple(shape), device
        ahead = device.type == "cuda" if ahead is None else ahead
        self._thread = ThreadPoolExecutor(1, "noise") if ahead else None
        self._steps = [keyed_generator(Purpose.SAMPLE_STEP, seed, index) for index in indices]
        self._start = self._asked([keyed_generator(Purpose.SAMPLE_START, seed, index) for index in indices])
        self._left = draws if ahead else 0
        self._next: Callable[[], Tensor] | None = None
        self._look_ahead()

    def start(self) -> Tensor:
        """The noise that sampling starts from, (B, C, T, H, W)."""
        return self._start().to(self.device, non_blocking=True)

    def __call__(self) -> Tensor:
        """Fresh noise for a step, (B, C, T, H, W)."""
        drawn = self._next or self._asked(self._steps)
        self._look_ahead()
        return drawn().to(self.device, non_blocking=True)

    def _look_ahead(self) -> None:
        self._next = self._asked(self._steps) if self._left > 0 else None
        self._left -= 1

    def _asked(self, generators: Sequence[Generator]) -> Callable[[], Tensor]:
        """What gives a draw: begun in the thread, or made when it is called."""
        draw = partial(self._draw, generators)
        return draw if self._thread is None else self._thread.submit(draw).result

    def _draw(self, generators: Sequence[Generator]) -> Tensor:
        noise = torch.stack([torch.randn(self.shape, generator=each) for each in generators])
        return noise.pin_memory() if self.device.type == "cuda" else noise


def noise_of_batches(
    batches: Iterable[Sequence[int]], shape: Sequence[int], seed: int, device: torch.device, draws: int
) -> Iterator[SampleNoise]:
    """The noise of each batch, made one batch ahead; see `SampleNoise`."""
    made = (SampleNoise(shape, indices, seed, device, draws) for indices in batches)
    waiting = next(made, None)
    while waiting is not None:
        noise, waiting = waiting, next(made, None)
        yield noise
