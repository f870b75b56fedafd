"""Fixtures of the evaluator's tests."""

import pytest
import torch
import torch.nn.functional as F


@pytest.fixture(autouse=True)
def plain_linear(monkeypatch):
    """PyTorch's own linear layer: DeepSpeed at ZeRO 3 leaves its own in a process, which TorchScript cannot compile."""
    monkeypatch.setattr(F, "linear", torch._C._nn.linear)
