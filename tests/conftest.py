"""Fixtures that many rooms share."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

REFERENCE = Path(os.environ.get("SPARSEVID_REFERENCE", Path(__file__).parent / "reference"))


def load_reference(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and configuration of a reference file; the folder comes from $SPARSEVID_REFERENCE."""
    with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a handle, not a dict)
        return tensors, json.loads(file.metadata()["config"])


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Maximal error over maximal magnitude."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(autouse=True)
def one_thread():
    """One thread for each test: sums in a fixed order, and no contention between processes on a small machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
