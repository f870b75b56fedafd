"""Measurements in one run, warm and in turns: forwards (`model`), reading of clips (`data`), training steps
(`training`), sampling (`sampling`), and what samplers make of a checkpoint (`quality`)."""

from sparsevid.benchmark.timing import time_alternately

__all__ = ["time_alternately"]
