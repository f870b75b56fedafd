"""Saving and resuming. A checkpoint is written aside, checked, then renamed: a kill leaves the last good one.

What only resuming needs is in `training/`: `state.json`, and a safetensors file of each rank with its fragments of the
optimizer's state. Checked is that rank 0 reads of every rank's file what that rank wrote. Fragments are put together by name
and place, so that another number of ranks, or another ZeRO stage, reads them as well; nothing is unpickled. No random state is
saved, for there is none: every draw is keyed by seed and step.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder
from sparsevid.runs.checkpoints import (
    CheckpointError,
    checkpoint_path,
    list_checkpoints,
    put_on_disk,
    step_of,
    write_checksums,
)
from sparsevid.runs.config import RunConfig, save_config
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.checksums import file_sha256
from sparsevid.system.distributed import any_over_ranks, gather_objects, is_main, rank, world_size
from sparsevid.system.logging import get_logger
from sparsevid.training.ema import EMA
from sparsevid.training.engine import Engine, Fragment

logger = get_logger(__name__)
WEIGHTS = "model.safetensors"
COUNTED = ("step", "samples", "skipped", "ema_updates", "kinds", "scalars", "ranks")  # what every state.json says


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

    written: dict[str, str] = {}  # checksums as this rank reads them back

    def write() -> None:
        own = f"training/rank-{rank():05d}.safetensors"
        _write_fragments(draft / own, kinds, replicated=engine.stage == 0)
        put_on_disk(draft / own)
        written[own] = file_sha256(draft / own)
        if is_main():
            _save_model(draft / "model", spec, weights)
            _save_model(draft / "ema", spec, averaged)
            autoencoder.save(draft / "autoencoder")
            save_config(config, draft / "config.yaml")
            (draft / "training" / "state.json").write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")

    _together(draft, write)
    of_all = {name: digest for each in gather_objects(written) for name, digest in each.items()}
    _together(draft, lambda: _finish(draft, final, of_all), only_main=True)
    if is_main():
        _remove_old(config)
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
        # Checkpoints of before steps were kept until they are logged have none of them.
        self.values = {"recent": [], **json.loads((folder / "training" / "state.json").read_text(encoding="utf-8"))}
        if missing := [key for key in COUNTED if key not in self.values]:
            raise CheckpointError(f"{folder}: training/state.json does not say {', '.join(missing)}")
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


def _together(draft: Path, action: Callable[[], object], *, only_main: bool = False) -> None:
    """Let every rank, or rank 0, do its part; if one cannot, all of them raise, and none waits for the others for ever."""
    failure: Exception | None = None
    if is_main() or not only_main:
        try:
            action()
        except (OSError, SafetensorError, CheckpointError) as error:
            failure = error
    if any_over_ranks(failure is not None):
        if is_main():
            shutil.rmtree(draft, ignore_errors=True)
        reason = failure or "another rank says why"
        raise CheckpointError(
            f"{draft.name} could not be written: {reason}. Checkpoints from before are as they were"
        ) from failure


def _prepare(draft: Path) -> None:
    for left in draft.parent.glob(".step-*.partial"):  # also what broken saves of other steps left
        shutil.rmtree(left, ignore_errors=True)
    (draft / "training").mkdir(parents=True)


def _finish(draft: Path, final: Path, written: dict[str, str]) -> None:
    """Rank 0's part: all files are there as their ranks wrote them; then the checkpoint gets its name."""
    found = write_checksums(draft)
    if differing := [name for name, digest in written.items() if found.get(name) != digest]:
        raise CheckpointError(f"{', '.join(differing)}: rank 0 reads something else than was written, or nothing")
    shutil.rmtree(final, ignore_errors=True)
    os.replace(draft, final)
    put_on_disk(final.parent)


def _remove_old(config: RunConfig) -> None:
    """Remove the run's checkpoints that are not to be kept. One that cannot be removed is tried again at the next save."""
    train = config.train
    for old in list_checkpoints(config.folder)[: -train.keep_checkpoints]:
        if not train.keep_every or step_of(old) % train.keep_every:
            try:
                shutil.rmtree(old)
            except OSError as error:
                logger.warning("%s is not to be kept, and cannot be removed: %s", old, error)


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


def _save_model(folder: Path, spec: ModelSpec, weights: dict[str, Tensor]) -> None:
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"spec": spec.to_dict()}, indent=2) + "\n", encoding="utf-8")
