"""Training: the loop, what it minimises, the engine that shards it, the average and the checkpoints that survive it.

A `RunConfig` comes in, and a run's folder with checkpoints and metrics goes out. `trainer` is the loop. `initial` says where
weights begin, `resume` which checkpoint a run goes on from, and `checkpoint` writes and reads them. `objective`
and `distillation` are the loss and its teacher; `engine` is DeepSpeed (`unsharded`: the step where nothing is sharded), `ema`
the average, `outcome` what a step gave, and of which clips. `monitor` looks at a run on its way (`validation`, `scoring`),
`signals` stops it, and `throughput` and `environment` describe it.

It imports any room below.
"""

import logging

from sparsevid.system.errors import ExpectedError

# DeepSpeed's log: errors alone, from its import on, which warns where there is no GPU. What it skips, the trainer logs.
logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


class TrainingError(ExpectedError):
    """Training cannot go on; its checkpoints are from before the fault."""
