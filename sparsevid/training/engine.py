"""DeepSpeed, alone: nothing else imports it. Build, step or skip, and this rank's part of float32 weights and optimizer.

A *fragment* is the part of one weight that this rank keeps in float32, flat: the whole weight at ZeRO stage 0, where every rank
has the same, and a piece of it, or nothing, at stages 1 to 3. Averages are kept, and training states saved and loaded, by
fragments, so that neither has to know the stage; a state that was saved by fragments fits any other stage and number of ranks.
"""

import contextlib
import io
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

# Without a GPU DeepSpeed would find out so itself, with a warning. Processes that this one starts look for themselves.
if not torch.cuda.is_available() and "DS_ACCELERATOR" not in os.environ:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed.accelerator

    del os.environ["DS_ACCELERATOR"]

import deepspeed
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from sparsevid.models.compiled import compile_layers
from sparsevid.runs.config import ConfigError, TrainConfig
from sparsevid.system.distributed import communication_backend, is_main, rank, world_size
from sparsevid.system.logging import get_logger
from sparsevid.system.precision import set_float32
from sparsevid.training import TrainingError
from sparsevid.training.deepspeed_file import read_settings
from sparsevid.training.optimizers.muon import Muon
from sparsevid.training.unsharded import Unsharded

logger = get_logger(__name__)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # what a dynamic loss scale remembers


class Fragment(NamedTuple):
    """This rank's part of a weight: `values` (n,) are its elements from `start` on, counted flat."""

    name: str
    start: int
    values: Tensor


# (kind, name, start, count) → float32 (count,) elements of a weight, or of what goes with it.
Reader = Callable[[str, str, int, int], Tensor]


class Engine:
    """A model with its optimizer, sharded over the ranks by ZeRO.

    Args:
        model: built on the CPU, the same on every rank.
        train: batch sizes, optimizer, precision, ZeRO stage or DeepSpeed file.
        micro_batch: clips of a forward on this rank.
        accumulation: micro-batches of an optimizer step on this rank.

    Attributes:
        stage: of ZeRO.
        device: of this rank.
        grad_norm: of the last step's gradient before clipping, over all ranks; inf or nan if the step was skipped.

    Raises:
        ConfigError: the DeepSpeed file is missing, broken, or says what the run's configuration says; or the precision is none
            of this machine's.
    """

    def __init__(self, model: nn.Module, train: TrainConfig, micro_batch: int, accumulation: int) -> None:
        check_precision(train.precision)
        set_float32(train.tf32)
        _prepare_deepspeed()
        settings = engine_settings(train, micro_batch, accumulation)
        self.train, self.stage, self.dtype = train, settings["zero_optimization"]["stage"], PRECISIONS[train.precision]
        self.names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.shapes = {name: parameter.shape for name, parameter in self.names.items()}
        # What is saved with weights and not trained, such as a null caption: whole on every rank, before a precision rounds it.
        self.constants = {name: value.detach().clone() for name, value in model.state_dict().items() if name not in self.names}
        self.accumulation, self._turn, self.grad_norm = accumulation, 0, math.nan
        parameters = list(self.names.values())
        if train.compile:
            compile_layers(model)
        self._whole = None if self.stage else Unsharded(self.names, self.dtype)
        optimizer = build_optimizer(train, self._whole.masters if self._whole else self.names)
        with _quiet():
            self.engine, self.optimizer, _, _ = deepspeed.initialize(
                model=model, model_parameters=parameters, optimizer=optimizer, config=settings
            )
        self.device = self.engine.device
        self._torch_optimizer: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if self._whole:
            self._whole.round()
            self._whole.take_over(self.optimizer, train.gradient_clipping)

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self.engine.module

    def __call__(self, x: Tensor, t: Tensor, **cond) -> Any:
        """The model's forward, in the engine's precision."""
        return self.engine(x.to(self.dtype), t, **cond)

    def step(self, loss: Tensor, lr: float, meanwhile: Callable[[], None] = lambda: None) -> bool:
        """Backward; on the last micro-batch of a step also the optimizer, with learning rate `lr`.

        Args:
            loss: of the micro-batch.
            lr: of the step.
            meanwhile: called when the backward pass is on its way on the device, and before the host waits for anything.

        Returns:
            False if this was the last micro-batch and the step was skipped, on all ranks alike, because the gradient that they
            share is not finite: weights and optimizer are as before. With float16 the loss scale is then lowered.

        Raises:
            TrainingError: DeepSpeed applied a gradient that is not finite; weights and optimizer are lost.
        """
        # Set at every step, so that a resumed run has the rate and decay of its own config, not those of the checkpoint.
        for group in self._torch_optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, self.train.weight_decay
        self.engine.backward(loss)
        meanwhile()
        self.engine.step()
        self._turn = (self._turn + 1) % self.accumulation
        if self._turn:
            return True
        self.grad_norm = self._whole.grad_norm if self._whole else float(self.engine.get_global_grad_norm())
        applied = bool(self.engine.was_step_applied())
        if applied and not 0 <= self.grad_norm < math.inf:  # -1 is DeepSpeed's word for a norm that is not finite
            raise TrainingError(
                f"DeepSpeed {deepspeed.__version__} applied a gradient whose norm is not finite, and should have skipped it: "
                "the weights are lost. Go on from the last checkpoint with the version that setup.cfg asks for"
            )
        return applied

    def fragments(self) -> Iterator[Fragment]:
        """This rank's part of the float32 weights, views where there are any. Valid until the next step."""
        for name, parameter in self.names.items():
            if self.stage == 3:
                yield self._third(name, safe_get_local_fp32_param(parameter))
            elif self.stage:
                for flat, ours, theirs in self._place(parameter):
                    yield Fragment(name, theirs.start, flat[ours].detach())
            else:
                yield Fragment(name, 0, self._whole.masters[name].detach().flatten())

    def optimizer_fragments(self) -> dict[str, list[Fragment]]:
        """The optimizer's state by kind, such as `exp_avg`, in the order of `fragments`, of the weights that have it; empty
        before the first step.
        """
        state = self._torch_optimizer.state
        kinds = (kind for each in state.values() for kind, value in each.items() if torch.is_tensor(value) and value.ndim)
        return {kind: list(self._state_fragments(kind)) for kind in dict.fromkeys(kinds)}

    def scalars(self) -> dict[str, float]:
        """What the optimizer counts, and the state of a loss scale: numbers that are the same on all ranks."""
        first: dict[str, Any] = {}
        for state in self._torch_optimizer.state.values():
            first = {key: value for key, value in state.items() if not torch.is_tensor(value) or not value.ndim} | first
        scaler = self._scaler()
        return {f"optimizer.{key}": float(value) for key, value in first.items()} | {
            f"scale.{key}": float(getattr(scaler, key)) for key in _SCALER if getattr(scaler, key, None) is not None
        }

    def load(self, read: Reader, kinds: list[str], scalars: dict[str, float]) -> None:
        """Take over a training state. The model must have been built with the same weights.

        Args:
            read: is asked for weights, kind `master`, and for the optimizer's state.
            kinds: of optimizer state that there are; none before the first step.
            scalars: what `scalars` gave.
        """
        counts = {key.removeprefix("optimizer."): value for key, value in scalars.items() if key.startswith("optimizer.")}
        if kinds:
            self._make_state(kinds, counts)
        kept = dict(self._kept(kinds))
        for name, parameter in self.names.items():
            if self.stage == 3:
                self._load_third(name, read, kinds)
            elif self.stage:
                for flat, ours, theirs in self._place(parameter):
                    targets = {"master": flat.data, **{kind: self._torch_optimizer.state[flat][kind] for kind in kinds}}
                    for kind, target in targets.items():
                        target[ours] = read(kind, name, theirs.start, theirs.stop - theirs.start).to(target)
            else:
                master = self._whole.masters[name]
                targets = {"master": master.data} | {kind: self._torch_optimizer.state[master][kind] for kind in kept[master]}
                for kind, target in targets.items():
                    target.copy_(read(kind, name, 0, target.numel()).view_as(target))
        scaler = self._scaler()
        for key in _SCALER:
            if f"scale.{key}" in scalars and hasattr(scaler, key):
                value = scalars[f"scale.{key}"]
                setattr(scaler, key, value if key == "cur_scale" else int(value))

    def gather(self, fragments: list[Fragment]) -> dict[str, Tensor]:
        """Whole tensors on rank 0's CPU, by name, out of all ranks' fragments, and what is not trained; empty on other ranks.

        All ranks call it.
        """
        mine: dict[str, list[Fragment]] = {}
        for fragment in fragments:
            mine.setdefault(fragment.name, []).append(fragment)
        wholes = {}
        for name, shape in self.shapes.items():
            whole = torch.zeros(shape.numel(), device=self.device)
            for fragment in mine.get(name, ()):
                whole[fragment.start : fragment.start + fragment.values.numel()] = fragment.values.to(whole)
            if self.stage and world_size() > 1:
                dist.reduce(whole, dst=0)
            if is_main():
                wholes[name] = whole.view(shape).cpu()
        return wholes | self.constants if is_main() else wholes

    # Where fragments lie inside DeepSpeed: at stage 0 weight by weight; at 1 and 2 in flat float32 partitions, of which
    # `_hp_mapping` says which piece is which; at 3 by its functions for local parts, padded to equal sizes on all ranks.

    def _place(self, parameter: nn.Parameter) -> Iterator[tuple[Tensor, slice, slice]]:
        """Flat partition, the piece of it that is this weight's, and the weight's elements there; nothing if not here."""
        mapping = parameter._hp_mapping
        if mapping is not None:
            ours, theirs = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
            flat = self.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            yield flat, slice(ours.start, ours.start + ours.numel), slice(theirs.start, theirs.start + theirs.numel)

    def _third(self, name: str, padded: Tensor) -> Fragment:
        start = rank() * padded.numel()
        return Fragment(name, start, padded.flatten()[: max(0, min(padded.numel(), self.shapes[name].numel() - start))])

    def _load_third(self, name: str, read: Reader, kinds: list[str]) -> None:
        parameter = self.names[name]
        padded = safe_get_local_fp32_param(parameter)
        _, start, values = self._third(name, padded)
        count = values.numel()
        for kind in ("master", *kinds):
            value = torch.zeros_like(padded.flatten())
            value[:count] = read(kind, name, start, count).to(value)
            if kind == "master":
                safe_set_local_fp32_param(parameter, value)
            else:
                safe_set_local_optimizer_state(parameter, value, kind)

    def _state_fragments(self, kind: str) -> Iterator[Fragment]:
        state, kept = self._torch_optimizer.state, dict(self._kept([kind]))
        for name, parameter in self.names.items():
            if self.stage == 3:
                yield self._third(name, safe_get_local_optimizer_state(parameter, kind))
            elif self.stage:
                for flat, ours, theirs in self._place(parameter):
                    yield Fragment(name, theirs.start, state[flat][kind][ours])
            elif kept[self._whole.masters[name]]:
                yield Fragment(name, 0, state[self._whole.masters[name]][kind].flatten())

    def _kept(self, keys: list[str]) -> Iterator[tuple[Tensor, list[str]]]:
        """Each tensor that the optimizer moves, and what it keeps of `keys` for it: all, unless its group says what."""
        for group in self._torch_optimizer.param_groups:
            kept = [key for key in keys if key in group.get("keeps", keys)]
            yield from ((tensor, kept) for tensor in group["params"])

    def _make_state(self, kinds: list[str], counts: dict[str, float]) -> None:
        """An optimizer state of zeros, for PyTorch makes it only at the first step."""
        keys = [*kinds, *counts]
        if self.stage == 3:
            tensors = [(tensor, keys) for tensor in self.optimizer.fp32_partitioned_groups_flat]
        else:
            tensors = self._kept(keys)
        for tensor, kept in tensors:
            state = {kind: torch.zeros_like(tensor, dtype=torch.float32) for kind in kinds if kind in kept}
            scalars = {key: torch.tensor(value, device=tensor.device) for key, value in counts.items() if key in kept}
            self._torch_optimizer.state[tensor] = state | scalars

    def _scaler(self) -> Any:
        return getattr(self.optimizer, "loss_scaler", None) or getattr(self.optimizer, "loss_scale_config", None)


def engine_settings(train: TrainConfig, micro_batch: int, accumulation: int) -> dict[str, Any]:
    """DeepSpeed's configuration: its file, if the run names one, with what the run says of batch and precision.

    Raises:
        ConfigError: the file is missing, broken, or says what the run says; float16 without sharding; Muon with it; or compiled
            layers with sharded weights.
    """
    settings: dict[str, Any] = {"zero_optimization": {"stage": train.zero_stage or 0}}
    if train.deepspeed is not None:
        settings = read_settings(Path(train.deepspeed), train)
    stage = settings["zero_optimization"]["stage"]
    if train.precision == "float16" and not stage:
        # There DeepSpeed divides gradients by a loss scale that they were not multiplied with.
        raise ConfigError("train.precision=float16 needs train.zero_stage 1, 2 or 3; stage 0 takes float32 and bfloat16")
    if train.optimizer == "muon" and stage:
        raise ConfigError(
            f"train.optimizer=muon needs train.zero_stage=0, and this run has stage {stage}: it moves whole matrices, and from "
            "stage 1 on weights are cut into flat pieces. Stages 1 to 3 take adamw, adam and sgd"
        )
    if train.compile and stage == 3:
        raise ConfigError(
            "train.compile=true needs train.zero_stage 0, 1 or 2: at stage 3 weights are gathered by hooks inside the layers, "
            "which are not compiled"
        )
    bfloat16 = train.precision == "bfloat16"
    if bfloat16 and not stage:  # DeepSpeed is not told of it, for its own optimizer of that case is not used: `Unsharded`
        settings = {"communication_data_type": "bf16", **settings}
    return settings | {
        "zero_allow_untested_optimizer": True,  # what it says of SGD; `tests/training/test_engine.py` has tested it
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        # There DeepSpeed would clip before `Unsharded`, which could then neither measure the norm nor see it overflow.
        "gradient_clipping": train.gradient_clipping if stage else 0.0,
        "bf16": {"enabled": bfloat16 and stage > 0, "check_grad_overflow": True},
        "fp16": {"enabled": train.precision == "float16"},
        "steps_per_print": 2**31 - 1,
        "zero_force_ds_cpu_optimizer": False,  # PyTorch's own AdamW also where the optimizer is offloaded
    }


def check_precision(precision: str) -> None:
    """Raise ConfigError for a precision that DeepSpeed does not compute in on this machine. Nothing has to be built for it."""
    if precision == "float32":
        return
    accelerator = get_accelerator()
    here = [name for name, dtype in PRECISIONS.items() if dtype in accelerator.supported_dtypes()]
    if precision not in here:
        raise ConfigError(
            f"train.precision={precision} does not work on this machine, whose {accelerator.device_name()} has no instructions "
            f"for it, as DeepSpeed says; accepted here: {', '.join(here)}"
        )


def build_optimizer(train: TrainConfig, weights: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the configured name, PyTorch's where it has one, over weights by name."""
    options = {"lr": train.lr, "weight_decay": train.weight_decay}
    if train.optimizer == "sgd":
        return torch.optim.SGD(weights.values(), momentum=train.betas[0], **options)
    options |= {"betas": tuple(train.betas), "eps": train.eps}
    if train.optimizer == "muon":
        return Muon(weights, **options)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[train.optimizer]
    return kind(weights.values(), fused=True, **options)


def learning_rate(train: TrainConfig, step: int) -> float:
    """The learning rate of optimizer step 0, 1, …: linear warm-up, then constant, or cosine to 0 at step `steps`."""
    if step < train.warmup:
        return train.lr * (step + 1) / train.warmup
    if train.lr_schedule == "constant":
        return train.lr
    done = (step - train.warmup) / max(1, train.steps - train.warmup)
    return train.lr * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def _prepare_deepspeed() -> None:
    """Join the ranks, or be the only one; keep DeepSpeed's own log to errors: what it skips, the trainer logs."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # An all-reduce in shared memory, compiled at start: where ranks are killed meanwhile, its lock can stop those that follow.
    # Gloo does the same work without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        # One process without a launcher: a store in memory needs neither an address nor a port.
        dist.init_process_group(communication_backend(), store=dist.HashStore(), rank=0, world_size=1)
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    with _quiet():
        deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Swallow what DeepSpeed prints to standard output (its log and its errors still come through)."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
