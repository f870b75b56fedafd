"""DeepSpeed, alone: nothing else imports it. Build, step, float32 master weights, save and load of its shards."""

import contextlib
import io
import logging
import math
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR_QUIET", "1")

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_local_fp32_param
from torch import Tensor, nn

from sparsevid.config import TrainConfig
from sparsevid.distributed import communication_backend, rank, world_size
from sparsevid.logging import get_logger

logger = get_logger(__name__)
TAG = "state"  # the name DeepSpeed files its shards under
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Engine:
    """A model with its optimizer, sharded over the ranks by ZeRO.

    Args:
        model: built on the CPU, the same on every rank.
        train: batch sizes, optimizer, precision, ZeRO stage.
        micro_batch: clips of a forward on this rank.
        accumulation: micro-batches of an optimizer step on this rank.
    """

    def __init__(self, model: nn.Module, train: TrainConfig, micro_batch: int, accumulation: int) -> None:
        _prepare_deepspeed()
        self.train, self.stage, self.dtype = train, train.zero_stage, PRECISIONS[train.precision]
        self.names = {name: parameter for name, parameter in model.named_parameters()}
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model,
            model_parameters=list(self.names.values()),
            config=_engine_config(train, micro_batch, accumulation),
        )
        self.device = self.engine.device

    def __call__(self, x: Tensor, t: Tensor, **cond) -> Tensor:
        """The model's forward, in the engine's precision."""
        return self.engine(x.to(self.dtype), t, **cond)

    def step(self, loss: Tensor, lr: float) -> None:
        """Backward; on the last micro-batch of a step also the optimizer, with learning rate `lr`."""
        # Set at every step, so that a resumed run has the rate and decay of its own config, not those of the checkpoint.
        for group in self.engine.optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, self.train.weight_decay
        self.engine.backward(loss)
        self.engine.step()

    @property
    def grad_norm(self) -> float | None:
        """Norm of the last step's gradient before clipping, where the stage computes it."""
        norm = self.engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    # Master weights: `local_masters` gives this rank's float32 part of each weight (a flat shard at stage 3, the whole weight
    # below), `gather` makes wholes of such parts, `shard` is its inverse.

    def local_masters(self) -> Iterator[tuple[str, Tensor]]:
        """Name and float32 part of each weight on this rank. All ranks call it together."""
        for name, parameter in self.names.items():
            if self.stage == 3:
                yield name, safe_get_local_fp32_param(parameter)
            elif self.dtype == torch.float32:
                yield name, parameter.detach()
            else:
                yield name, self._full_master(parameter)

    def gather(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole float32 weights on the CPU from each rank's parts. All ranks call it together."""
        wholes = {}
        for name, part in parts.items():
            if self.stage == 3 and world_size() > 1:
                shards = [torch.empty_like(part) for _ in range(world_size())]
                dist.all_gather(shards, part.contiguous())
                part = torch.cat(shards)
            wholes[name] = part.flatten()[: self._shape(name).numel()].view(self._shape(name)).float().cpu().clone()
        return wholes

    def shard(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a whole float32 weight."""
        if self.stage < 3:
            return whole.to(self.device)
        size = -(-whole.numel() // world_size())
        padded = torch.zeros(size * world_size(), dtype=whole.dtype)
        padded[: whole.numel()] = whole.flatten()
        return padded[rank() * size : (rank() + 1) * size].clone().to(self.device)

    def _shape(self, name: str) -> torch.Size:
        parameter = self.names[name]
        return parameter.ds_shape if self.stage == 3 else parameter.shape

    def _full_master(self, parameter: nn.Parameter) -> Tensor:
        master = safe_get_full_fp32_param(parameter)
        if master is not None:
            return master
        # Stage 0 in bfloat16: DeepSpeed's helper knows no mapping, but its optimizer keeps the masters group by group.
        for half_group, master_group in zip(self.optimizer.fp16_groups, self.optimizer.fp32_groups, strict=True):
            for half, found in zip(half_group, master_group, strict=True):
                if half is parameter:
                    return found.detach()
        raise RuntimeError("DeepSpeed keeps no float32 master of a weight; train.precision=float32 works at every stage")

    def save(self, folder: Path) -> None:
        """Write this rank's shards of weights, optimizer and schedule. All ranks call it together."""
        with _quiet():
            self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote with the same number of ranks. The caller has verified the files' checksums.

        Raises:
            RuntimeError: DeepSpeed finds nothing to load there.
        """
        with _quiet():
            path, _ = self.engine.load_checkpoint(str(folder), tag=TAG)
        if path is None:
            raise RuntimeError(f"{folder} holds no state that this engine can load")


def _engine_config(train: TrainConfig, micro_batch: int, accumulation: int) -> dict[str, Any]:
    optimizer = {"lr": train.lr, "betas": [0.9, 0.999], "weight_decay": train.weight_decay}
    optimizer |= {"torch_adam": True, "fused": True}  # DeepSpeed's own Adam would be compiled at start
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": train.gradient_clipping,
        "optimizer": {"type": "AdamW", "params": optimizer},
        "zero_optimization": {"stage": train.zero_stage},
        "bf16": {"enabled": train.precision == "bfloat16"},
        "steps_per_print": 2**31 - 1,
    }


def learning_rate(train: TrainConfig, step: int) -> float:
    """The learning rate of optimizer step 0, 1, …: linear warm-up, then constant, or cosine to 0 at the last step."""
    if step < train.warmup:
        return train.lr * (step + 1) / train.warmup
    if train.lr_schedule == "constant":
        return train.lr
    done = (step - train.warmup) / max(1, train.steps - train.warmup)
    return train.lr * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def _prepare_deepspeed() -> None:
    """Join the ranks, or be the only one; keep DeepSpeed's own log to warnings."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not _can_compile():
        # The shared-memory all-reduce is compiled at start; gloo does the same work without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logger.info("no C++ compiler with Python headers: DeepSpeed's shared-memory op is off, gloo is used")
    if not dist.is_initialized():
        # One process without a launcher: a store in memory needs neither an address nor a port.
        dist.init_process_group(communication_backend(), store=dist.HashStore(), rank=0, world_size=1)
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    with _quiet():
        deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")


def _can_compile() -> bool:
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return shutil.which(os.environ.get("CXX", "c++")) is not None and headers.is_file()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Swallow what DeepSpeed prints to standard output (its log and its errors still come through)."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
