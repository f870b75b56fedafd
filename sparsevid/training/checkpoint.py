"""Saving and resuming. A checkpoint is written aside, checksummed, then renamed: a kill leaves the last good one."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsevid.autoencoder import Autoencoder
from sparsevid.checkpoints import CheckpointError, checkpoint_path, list_checkpoints, write_checksums
from sparsevid.config import RunConfig, load_config, save_config
from sparsevid.distributed import barrier, is_main, world_size
from sparsevid.logging import get_logger
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.training.ema import EMA
from sparsevid.training.engine import Engine

logger = get_logger(__name__)
# Sections and keys that a resumed run may not change, and those whose change is worth a warning.
FIXED = ("autoencoder", "objective")
CLIPS = ("split", "fold", "label_order", "frames", "stride", "rule", "short", "target_fps", "images", "size", "flip")
NOTED = ("seed", "schedule", *(f"data.{name}" for name in CLIPS), "train.global_batch", "record.fingerprint")


def save_checkpoint(
    config: RunConfig, spec: ModelSpec, engine: Engine, ema: EMA, autoencoder: Autoencoder, state: dict[str, int]
) -> Path:
    """Write a checkpoint and remove the oldest ones of this run. All ranks call it together.

    Args:
        state: `step` and `samples`.

    Returns:
        The checkpoint's folder.
    """
    final = checkpoint_path(config.folder, state["step"])
    draft = final.with_name(f".{final.name}.partial")
    if is_main():
        shutil.rmtree(draft, ignore_errors=True)
        (draft / "training").mkdir(parents=True)
    barrier()
    engine.save(draft / "training")
    weights, averaged = engine.gather(dict(engine.local_masters())), ema.state_dict()
    if is_main():
        _save_model(draft / "model", spec, weights)
        _save_model(draft / "ema", spec, averaged)
        autoencoder.save(draft / "autoencoder")
        save_config(config, draft / "config.yaml")
        full_state = {**state, "ema_updates": ema.updates, "ranks": world_size(), "zero_stage": config.train.zero_stage}
        (draft / "training" / "state.json").write_text(json.dumps(full_state) + "\n", encoding="utf-8")
    barrier()  # every rank's shards are written
    if is_main():
        write_checksums(draft)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(draft, final)
        for old in list_checkpoints(config.folder)[: -config.train.keep_checkpoints]:
            shutil.rmtree(old)
    barrier()
    return final


def resume(folder: Path, config: RunConfig, spec: ModelSpec, engine: Engine, ema: EMA) -> dict[str, int]:
    """Load a verified checkpoint into engine and average. All ranks call it together.

    Returns:
        The state that was saved.

    Raises:
        CheckpointError: the checkpoint is of another model, autoencoder or objective, or of another number of ranks.
    """
    saved = ModelSpec.from_dict(json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))["spec"])
    _refuse_differences(folder, "model", saved.to_dict(), spec.to_dict())
    before, now = asdict(load_config(folder / "config.yaml")), asdict(config)
    for section in FIXED:
        _refuse_differences(folder, section, before[section], now[section])
    for key in NOTED:
        old, new = _value(before, key), _value(now, key)
        if old != new:
            logger.warning("%s is %s, it was %s up to the checkpoint", key, new, old)
    state = json.loads((folder / "training" / "state.json").read_text(encoding="utf-8"))
    for name, mine in (("ranks", world_size()), ("zero_stage", config.train.zero_stage)):
        if state[name] != mine:
            raise CheckpointError(f"{folder} was written with {name} = {state[name]}, this run has {mine}")
    engine.load(folder / "training")
    ema.load_state_dict(load_file(folder / "ema" / "model.safetensors"), state["ema_updates"])
    return state


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
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"spec": spec.to_dict()}, indent=2) + "\n", encoding="utf-8")
