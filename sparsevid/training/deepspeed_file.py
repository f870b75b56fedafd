"""DeepSpeed's own configuration file, if a run names one: what it may say beside what the run says."""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sparsevid.runs.config import ConfigError, TrainConfig
from sparsevid.system.home import expand_home
from sparsevid.system.logging import get_logger

logger = get_logger(__name__)
# What a DeepSpeed file may not say, because the run's own configuration does.
SAID_BY_RUN = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
               "managed_gradient_accumulation", "elasticity",
               "optimizer", "scheduler", "fp16", "bf16", "bfloat16", "amp", "torch_autocast", "data_types",
               "steps_per_print", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer")  # fmt: skip
# What else it may say; DeepSpeed itself passes over what it does not know.
SAID_BY_FILE = ("zero_optimization", "activation_checkpointing",
                "aio", "autotuning", "checkpoint", "comms_logger", "communication_data_type", "compile", "csv_monitor",
                "disable_allgather", "dump_state", "flops_profiler", "gradient_allreduce_op",
                "gradient_predivide_factor", "memory_breakdown", "prescale_gradients",
                "seq_parallel_communication_data_type", "sparse_gradients",
                "tensorboard", "timers", "use_node_local_storage", "wall_clock_breakdown",
                "wandb", "zero_state")  # fmt: skip


def read_settings(path: Path, train: TrainConfig) -> dict[str, Any]:
    """What the file says.

    Raises:
        ConfigError: it is missing, broken, or says what the run's configuration says.
    """
    if not path.is_file():
        raise ConfigError(
            f"train.deepspeed = {path}: no such file in {Path.cwd()}; paths in configs are from the folder in which a command "
            "runs. The repository has some in configs/deepspeed, which absolute paths name from anywhere"
        )
    try:
        settings = expand_home(json.loads(path.read_text(encoding="utf-8")))  # offloaded states may have a path
        stage = settings["zero_optimization"]["stage"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no DeepSpeed configuration with zero_optimization.stage: {error!r}") from error
    if twice := [key for key in SAID_BY_RUN if key in settings]:
        raise ConfigError(
            f"{path}: {', '.join(twice)} are said by the run's own configuration (train.*), or always the same here; "
            "take them out"
        )
    for key in settings.keys() - set(SAID_BY_FILE):
        near = get_close_matches(key, (*SAID_BY_FILE, *SAID_BY_RUN), n=1, cutoff=0.8)
        if near:
            raise ConfigError(f"{path}: unknown key {key!r}; did you mean {near[0]!r}?")
        logger.warning("%s: key %r is not known here, and DeepSpeed passes over what it does not know", path, key)
    if not settings["zero_optimization"].get("compute_grad_norm", True):
        raise ConfigError(
            f"{path}: zero_optimization.compute_grad_norm is off, but the norm says which steps to skip; take it out"
        )
    if train.zero_stage not in (None, stage):
        raise ConfigError(f"train.zero_stage = {train.zero_stage}, and {path} says stage {stage}; leave one of them out")
    return settings
