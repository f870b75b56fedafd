"""Checkpoints: written aside, checksummed, then renamed, so that a kill at any moment leaves the last good one.

<run>/checkpoints/step-0001000/
    model/ ema/       config.json and safetensors, as `from_pretrained` reads them
    autoencoder/      what `decode` needs
    config.yaml       the resolved run
    training/         DeepSpeed's shards, and state.json: only for resuming
    checksums.json    SHA-256 of all of the above, written last
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsevid.autoencoder import Autoencoder
from sparsevid.config import RunConfig, save_config
from sparsevid.distributed import barrier, broadcast_object, is_main
from sparsevid.logging import get_logger
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.training.ema import EMA
from sparsevid.training.engine import Engine

logger = get_logger(__name__)
CHECKSUMS = "checksums.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says which and why."""


def checkpoint_path(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return run_folder / "checkpoints" / f"step-{step:07d}"


def list_checkpoints(run_folder: Path) -> list[Path]:
    """The run's finished checkpoints, oldest first."""
    folder = run_folder / "checkpoints"
    return sorted(path for path in folder.glob("step-*") if path.is_dir()) if folder.is_dir() else []


def save_checkpoint(
    config: RunConfig, spec: ModelSpec, engine: Engine, ema: EMA, autoencoder: Autoencoder, state: dict[str, int]
) -> Path:
    """Write a checkpoint. All ranks call it together.

    Args:
        state: `step`, `samples` and whatever else resuming needs, as integers.

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
        full_state = {**state, "ema_updates": ema.updates}
        (draft / "training" / "state.json").write_text(json.dumps(full_state) + "\n", encoding="utf-8")
    barrier()  # every rank's shards are written
    if is_main():
        _write_checksums(draft)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(draft, final)
        for old in list_checkpoints(config.folder)[: -config.train.keep_checkpoints]:
            shutil.rmtree(old)
    barrier()
    return final


def find_resumable(run_folder: Path) -> Path | None:
    """The newest checkpoint that verifies; damaged ones are passed over with a warning. The same on all ranks."""
    found = None
    if is_main():
        for path in reversed(list_checkpoints(run_folder)):
            try:
                verify(path)
            except CheckpointError as error:
                logger.warning("%s; trying an older checkpoint", error)
            else:
                found = path
                break
    return broadcast_object(found)


def verify(folder: Path) -> None:
    """Compare every file with its recorded checksum.

    Raises:
        CheckpointError: no checkpoint there, a missing file, or a file whose contents changed.
    """
    if not (folder / CHECKSUMS).is_file():
        raise CheckpointError(f"{folder} is not a finished checkpoint: it has no {CHECKSUMS}")
    try:
        recorded = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / CHECKSUMS} is damaged: {error}") from error
    for name, digest in recorded.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {name} is missing")
        if _sha256(folder / name) != digest:
            raise CheckpointError(f"{folder}: {name} does not have its recorded checksum")
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    extra = present - set(recorded) - {CHECKSUMS}
    if any(name.startswith("training/") for name in extra):
        raise CheckpointError(f"{folder}: files that no checksum covers: {', '.join(sorted(extra))}")


def resume(folder: Path, spec: ModelSpec, engine: Engine, ema: EMA) -> dict[str, int]:
    """Load a verified checkpoint into engine and average. All ranks call it together.

    Returns:
        The state that was saved.

    Raises:
        CheckpointError: the checkpoint is of another model.
    """
    saved = ModelSpec.from_dict(json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))["spec"])
    if saved != spec:
        mine, theirs = spec.to_dict(), saved.to_dict()
        differing = {key: (theirs[key], mine[key]) for key in mine if mine[key] != theirs[key]}
        listed = ", ".join(f"{key} is {a!r} there and {b!r} here" for key, (a, b) in differing.items())
        raise CheckpointError(
            f"{folder} is a checkpoint of another model: {listed}. Use another run name, or train.resume=never"
        )
    engine.load(folder / "training")
    state = json.loads((folder / "training" / "state.json").read_text(encoding="utf-8"))
    ema.load_state_dict(load_file(folder / "ema" / "model.safetensors"), state["ema_updates"])
    return state


def _save_model(folder: Path, spec: ModelSpec, weights: dict[str, Tensor]) -> None:
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"spec": spec.to_dict()}, indent=2) + "\n", encoding="utf-8")


def _write_checksums(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    with open(folder / CHECKSUMS, "w", encoding="utf-8") as file:
        json.dump(digests, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
