"""Thousands of clips from a pipeline, as files, on any number of processes: `job.generate`.

Sample i is the same whatever the number of processes, whatever is there already, and however many are asked for: it depends on
the settings and on i, and is always denoised in the same batch. (Bit for bit in float32 on one CPU thread a process; elsewhere
as far as the libraries below repeat their own results.)
"""

from sparsevid.generation.sampling import GenerationError

__all__ = ["GenerationError"]
