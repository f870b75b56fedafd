"""A T5 encoder small enough for tests, with a tokenizer that knows the words of their captions."""

from collections.abc import Sequence
from pathlib import Path

from sparsevid.text.small import make_small_encoder

CAPTIONS = ("a green frog crosses a road", "two boxers in a ring", "a yellow taxi drives along a wide road at night", "rain")


def tiny_text_encoder(folder: Path, captions: Sequence[str] = CAPTIONS, *, channels: int = 16, seed: int = 0) -> Path:
    """Write an encoder of random weights and a tokenizer trained on `captions`; see `make_small_encoder`."""
    return make_small_encoder(folder, captions, channels=channels, seed=seed)
