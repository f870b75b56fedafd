"""Measurements in one run, warm and in turns: forwards of models (`model`), and reading of clips (`data`)."""

from sparsevid.benchmark.model import time_alternately

__all__ = ["time_alternately"]
