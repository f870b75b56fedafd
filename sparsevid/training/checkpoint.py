"""Saving and resuming. A checkpoint is written aside, checksummed, then renamed: a kill leaves the last good one.

What only resuming needs is in `training/`: `state.json`, and a safetensors file of each rank with its fragments of the
optimizer's state. Fragments are put together by name and place, so that another number of ranks, or another ZeRO stage, reads
them as well; nothing is unpickled. No random state is saved, for there is none: every draw is keyed by seed and step.
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsevid.autoencoder import Autoencoder
from sparsevid.checkpoints import CheckpointError, checkpoint_path, list_checkpoints, step_of, write_checksums
from sparsevid.config import RunConfig, load_config, save_config
from sparsevid.distributed import any_over_ranks, is_main, rank, world_size
from sparsevid.logging import get_logger
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.training.ema import EMA
from sparsevid.training.engine import Engine, Fragment

logger = get_logger(__name__)
WEIGHTS = "model.safetensors"
# Sections and keys that a resumed run may not change, and those whose change is worth a warning.
FIXED = ("autoencoder", "objective")
CLIPS = ("split", "fold", "label_order", "frames", "stride", "rule", "short", "target_fps", "images", "size", "flip")
NOTED = ("seed", "schedule", "distill", *(f"data.{name}" for name in CLIPS), "train.global_batch", "record.fingerprint")


def save_checkpoint(
    config: RunConfig, spec: ModelSpec, engine: Engine, ema: EMA, autoencoder: Autoencoder, state: dict[str, Any]
) -> Path:
    """Write a checkpoint and remove those of this run that are not to be kept. All ranks call it together.

    Args:
        state: what the trainer counts, such as `step` and `samples`, and steps that it has not logged yet; for JSON.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: a rank could not write its part; what was there before still is.
    """
    final = checkpoint_path(config.folder, state["step"])
    draft = final.with_name(f".{final.name}.partial")
    _together(draft, lambda: _prepare(draft), only_main=True)
    kinds = engine.optimizer_fragments()
    weights, averaged = engine.gather(list(engine.fragments())), ema.state_dict()
    full = {**state, "ema_updates": ema.updates, "kinds": list(kinds), "scalars": engine.scalars()}
    full |= {"ranks": world_size(), "zero_stage": engine.stage}

    def write() -> None:
        _write_fragments(draft / "training" / f"rank-{rank():05d}.safetensors", kinds, replicated=engine.stage == 0)
        if is_main():
            _save_model(draft / "model", spec, weights)
            _save_model(draft / "ema", spec, averaged)
            autoencoder.save(draft / "autoencoder")
            save_config(config, draft / "config.yaml")
            (draft / "training" / "state.json").write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")

    _together(draft, write)
    _together(draft, lambda: _finish(draft, final, config), only_main=True)
    return final


class TrainingState:
    """What a verified checkpoint holds for resuming, read piece by piece through the CPU.

    Args:
        folder: the checkpoint.

    Attributes:
        values: what `state.json` says.

    Raises:
        CheckpointError: the files do not go together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values = json.loads((folder / "training" / "state.json").read_text(encoding="utf-8"))
        self._wholes = {"master": _open(folder / "model" / WEIGHTS), "ema": _open(folder / "ema" / WEIGHTS)}
        self._pieces: dict[str, list[tuple[int, int, safe_open]]] = {}  # kind/name → first element, number, file
        for number in range(self.values["ranks"]):
            file = _open(folder / "training" / f"rank-{number:05d}.safetensors")
            starts = json.loads(file.metadata()["starts"])
            for key in file.keys():  # noqa: SIM118  a file, no mapping
                self._pieces.setdefault(key, []).append((starts[key], file.get_slice(key).get_shape()[0], file))

    def weights(self) -> dict[str, Tensor]:
        """Whole float32 weights."""
        return {name: self._wholes["master"].get_tensor(name) for name in self._wholes["master"].keys()}  # noqa: SIM118

    def read(self, kind: str, name: str, start: int, count: int) -> Tensor:
        """Elements (count,) of a weight, flat, from `start` on: kind `master`, `ema`, or one of the optimizer's state.

        Raises:
            CheckpointError: they are not all there.
        """
        if kind in self._wholes:
            return self._wholes[kind].get_tensor(name).flatten()[start : start + count]
        result, found = torch.empty(count), 0
        for first, number, file in self._pieces.get(f"{kind}/{name}", ()):
            low, high = max(start, first), min(start + count, first + number)
            if low < high:
                result[low - start : high - start] = file.get_slice(f"{kind}/{name}")[low - first : high - first]
                found += high - low
        if found != count:
            raise CheckpointError(f"{self.folder}: {found} of {count} elements of {kind} of {name} are there")
        return result


def check_resumable(folder: Path, config: RunConfig, spec: ModelSpec) -> None:
    """Compare a checkpoint with the run that is to go on from it; what may differ, and does, is logged.

    Raises:
        CheckpointError: it is of another model, autoencoder, objective or optimizer.
    """
    saved = ModelSpec.from_dict(json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))["spec"])
    _refuse_differences(folder, "model", saved.to_dict(), spec.to_dict())
    before, now = asdict(load_config(folder / "config.yaml")), asdict(config)
    for section in FIXED:
        _refuse_differences(folder, section, before[section], now[section])
    _refuse_differences(folder, "optimizer", before["train"], {"optimizer": now["train"]["optimizer"]})
    for key in NOTED:
        old, new = _value(before, key), _value(now, key)
        if old != new:
            logger.warning("%s is %s, it was %s up to the checkpoint", key, new, old)


def _together(draft: Path, action, *, only_main: bool = False) -> None:
    """Let every rank, or rank 0, do its part; if one cannot, all of them raise, and none waits for the others for ever."""
    failure: Exception | None = None
    if is_main() or not only_main:
        try:
            action()
        except (OSError, SafetensorError) as error:
            failure = error
    if any_over_ranks(failure is not None):
        if is_main():
            shutil.rmtree(draft, ignore_errors=True)
        reason = failure or "another rank says why"
        raise CheckpointError(
            f"{draft.name} could not be written: {reason}. Checkpoints from before are as they were"
        ) from failure


def _prepare(draft: Path) -> None:
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "training").mkdir(parents=True)


def _finish(draft: Path, final: Path, config: RunConfig) -> None:
    write_checksums(draft)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(draft, final)
    train = config.train
    for old in list_checkpoints(config.folder)[: -train.keep_checkpoints]:
        if not train.keep_every or step_of(old) % train.keep_every:
            shutil.rmtree(old)


def _write_fragments(path: Path, kinds: dict[str, list[Fragment]], *, replicated: bool) -> None:
    """This rank's fragments; of those that all ranks have, every rank writes its share."""
    tensors, starts = {}, {}
    for kind, fragments in kinds.items():
        for index, (name, start, values) in enumerate(fragments):
            if not replicated or index % world_size() == rank():
                tensors[f"{kind}/{name}"], starts[f"{kind}/{name}"] = values.contiguous().cpu(), start
    save_file(tensors, path, {"starts": json.dumps(starts)})


def _open(path: Path) -> safe_open:
    return safe_open(path, "pt", device="cpu")


def _refuse_differences(folder: Path, what: str, theirs: dict, mine: dict) -> None:
    differing = {key: (theirs[key], mine[key]) for key in mine if mine[key] != theirs[key]}
    if differing:
        listed = ", ".join(f"{key} is {a!r} there and {b!r} here" for key, (a, b) in differing.items())
        raise CheckpointError(f"{folder} is a checkpoint of another {what}: {listed}. Give the run another name")


def _value(config: dict, key: str) -> object:
    for part in key.split("."):
        config = config[part]
    return config


def _save_model(folder: Path, spec: ModelSpec, weights: dict[str, Tensor]) -> None:
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"spec": spec.to_dict()}, indent=2) + "\n", encoding="utf-8")
