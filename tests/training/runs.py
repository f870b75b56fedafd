"""Several runs one after the other in one launch of processes: `launch.run_all(RUNS, "RUN.yaml", …)`.

A name before a configuration, `nan:RUN.yaml`, says what goes wrong in it.
"""

import math
import sys

import torch
import torch._inductor.compile_fx  # DeepSpeed takes it when it is built: here for all ranks at once
from torch import Tensor

from sparsevid.runs.config import load_config
from sparsevid.system.distributed import rank, shutdown, world_size
from sparsevid.training.trainer import Trainer


class BadBatch(Trainer):
    """The last rank's latents of step 2 are not numbers."""

    def _latents(self, clips: Tensor, key: dict[str, int]) -> Tensor:
        latents = super()._latents(clips, key)
        return latents * math.nan if key["step"] == 2 and rank() == world_size() - 1 else latents


KINDS = {"": Trainer, "nan": BadBatch}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[1:]:
        kind, _, path = argument.rpartition(":")
        KINDS[kind](load_config(path)).train()
    shutdown()
