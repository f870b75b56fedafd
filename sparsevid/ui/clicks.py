"""What the page asks for: what a model offers, clips, and an end before they are done. It knows no widgets."""

import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from sparsevid.system.errors import EXPECTED_ERRORS, told
from sparsevid.ui.comparison import Choices, Made, Shared, Side, choices, make
from sparsevid.ui.markup import message, shown
from sparsevid.ui.models import Models

Tell = Callable[[float, str], object]  # told how much is done, 0 to 1, and of what


class Stopped(Exception):
    """The sampling was asked to end."""


class Clicks:
    """Answers of a page, one at a time: models and their memory are shared by all who look at it.

    Args:
        models: on offer.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self._stop = threading.Event()
        self._one_at_a_time = threading.Lock()

    def choose(self, name: str) -> Choices:
        """What a model offers; it is opened for that.

        Raises:
            FileNotFoundError, ValueError: as `Models.open`.
        """
        with self._one_at_a_time:
            return choices(self.models.open(name))

    def stop(self) -> None:
        """End the sampling that runs, at its next step."""
        self._stop.set()

    def generate(self, shared: Shared, sides: Sequence[Side], tell: Tell = lambda share, words: None) -> Iterator[str]:
        """Make the clips of A and, if it is asked for, of B from the same noise.

        Args:
            sides: A, or A and B.
            tell: told of each step.

        Yields:
            HTML: what is there after each side; in the end, where something went wrong, what and what to do.
        """
        made: list[Made] = []
        self._stop.clear()
        for letter, side in zip("AB", sides, strict=False):
            words = None
            try:
                with self._one_at_a_time:  # not while an answer waits to be taken
                    made.append(self._make(letter, side, shared, tell))
            except Stopped:
                words = message(f"{letter} was stopped.", "note")
            except torch.OutOfMemoryError:
                words = message(f"{letter}: memory does not hold this; fewer clips need less, and so does --dtype bfloat16")
            except EXPECTED_ERRORS as error:
                words = message(f"{letter}: {told(error)}")
            yield (shown(made) if made else "") + (words or "")
            if words is not None:
                return

    def _make(self, letter: str, side: Side, shared: Shared, tell: Tell) -> Made:
        tell(0.0, f"{letter}: {side.model} is opened")
        pipeline = self.models.open(side.model)

        def on_step(number: int, time: float, latents: Tensor) -> None:
            if self._stop.is_set():
                raise Stopped
            tell(1.0 - time, f"{letter}: step {number + 1}")

        return make(pipeline, side, shared, on_step)
