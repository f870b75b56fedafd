"""A small encoder for all tests of text."""

from pathlib import Path

import pytest
from text.tiny import tiny_text_encoder

from sparsevid.text.encoder import TextEncoder


@pytest.fixture(scope="session")
def t5(tmp_path_factory) -> Path:
    """Its folder; not to be written to."""
    return tiny_text_encoder(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="session")
def encoder(t5) -> TextEncoder:
    """With 8 tokens."""
    return TextEncoder.from_pretrained(t5, tokens=8, device="cpu")
