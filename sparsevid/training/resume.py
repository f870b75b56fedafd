"""Going on with a run: that nobody else does, from which checkpoint, and what may have changed since."""

import importlib.util
import json
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any

from sparsevid.autoencoder.base import Autoencoder
from sparsevid.data.clips import FIXED_CLIPS_RULE
from sparsevid.runs.checkpoints import CheckpointError, list_checkpoints, newest_good, verify
from sparsevid.runs.config import ConfigError, RunConfig, load_config
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.distributed import from_main, is_main
from sparsevid.system.locks import FolderLock, LockedError
from sparsevid.system.logging import get_logger

logger = get_logger(__name__)
TO_BE_RESUMED = "to_be_resumed"  # a file in the run's folder, from when a run was stopped until it has made a step again
LABELS_NAMED = 3  # of those that differ
# Keys that a resumed run may not change, for weights mean something by them, and those whose change is worth a warning.
FIXED = (
    "objective.kind",
    "train.optimizer",
    *(f"autoencoder.{name}" for name in ("kind", "channels", "patch", "patch_frames")),
)
CLIPS = ("split", "fold", "label_order", "frames", "stride", "rule", "short", "target_fps", "images", "size", "flip")
NOTED = ("seed", "schedule", "distill", *(f"data.{name}" for name in CLIPS), "train.global_batch", "record.fingerprint")
NOTED += ("autoencoder.precision", "autoencoder.source", "autoencoder.fit_clips", "objective.times", "objective.label_dropout")
NOTED += ("data.captions", "record.captions", "text.null_mask")
MEASURED = {"validate": ("validate_clips", "validate_split"), "score": ("score_clips", "protocol")}  # noted where they are used


class RunLock:
    """The right to write into a run's folder: one launch has it at a time, held by its rank 0. All ranks make it together.

    It ends with `release`, with the block that it is entered for, or with the process, however that ends. Inside one process it
    keeps nobody out.

    Args:
        config: of the run. Its folder is made if it is missing.

    Raises:
        ConfigError: another launch has it, and is named; or the folder cannot be written, or metrics not be logged there.
    """

    def __init__(self, config: RunConfig) -> None:
        self._lock: FolderLock | None = None
        from_main(lambda: self._take(config), (ConfigError,))

    def _take(self, config: RunConfig) -> None:
        if config.monitor.wandb and importlib.util.find_spec("wandb") is None:
            raise ConfigError("monitor.wandb=true needs the package wandb (`pip install wandb`); false logs without it")
        try:
            self._lock = FolderLock(config.folder, "trained")
        except LockedError as error:
            raise ConfigError(str(error)) from error
        except OSError as error:
            raise ConfigError(f"the run's folder {config.folder} cannot be written: {error}") from error

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """Let others train the run."""
        if self._lock is not None:
            self._lock.release()


def unmark_stopped(folder: Path) -> None:
    """Take back, in a run's folder, what `mark_stopped` says: the run is going, or done. All ranks may call it."""
    if is_main():
        (folder / TO_BE_RESUMED).unlink(missing_ok=True)


def mark_stopped(folder: Path, step: int, steps: int, signal: str | None) -> None:
    """Say that a run is to be resumed, to people and, by a file, to the script that may start it again. All ranks may call it.

    There is a whole checkpoint by now: that what the file says cannot be written is no reason to fail.

    Args:
        folder: of the run.
        step: steps done, of `steps`.
        signal: that stopped it here; None: another rank was asked to stop.
    """
    if is_main():
        file = folder / TO_BE_RESUMED
        try:
            file.write_text(f"step {step} of {steps}\n", encoding="utf-8")
        except OSError as error:  # on a full disk the file is there, but empty
            logger.warning("%s cannot be written: %s", file, error)
    logger.info("stopped by %s at step %d with a checkpoint: to be resumed", signal or "a signal to another rank", step)


def find_checkpoint(config: RunConfig) -> Path | None:
    """The checkpoint to resume from, verified by rank 0, or None. All ranks call it together.

    With a path it is that one, until the run has a checkpoint that went on from there: then it is the newest of these, so that
    the same command can be started again.

    Raises:
        CheckpointError: the one that was asked for is damaged, or all are, or (`auto`) the newest cannot be read.
        ConfigError: it is not of this run, or the run is not to be resumed and has checkpoints.
    """
    return from_main(lambda: _find(config), (CheckpointError, ConfigError))


def _find(config: RunConfig) -> Path | None:
    there = list_checkpoints(config.folder)
    if config.train.resume == "never":
        if there:
            raise ConfigError(f"train.resume=never, but {config.folder} has checkpoints: take another name, or remove them")
        return None
    if config.train.resume == "auto":
        found = newest_good(config.folder, for_resuming=True)
        if found is None and there:
            raise CheckpointError(
                f"{config.folder} has {len(there)} checkpoints, and none of them can be resumed from (see the warnings). "
                "Move them away to begin anew, or take their weights: train.init_from"
            )
        return found
    folder = Path(config.train.resume)
    if not folder.resolve().is_relative_to(config.folder.resolve()):
        raise ConfigError(f"train.resume = {folder} is not inside the run's own folder {config.folder}")
    if (later := _newest_of_branch(config)) is not None:
        logger.info("%s went on from %s, which train.resume names, and is taken in its place", later, folder)
        return later
    verify(folder)
    return folder


def _newest_of_branch(config: RunConfig) -> Path | None:
    """The newest good checkpoint that went on from the one that `train.resume` names, if the run's newest did."""
    for path in reversed(list_checkpoints(config.folder)):
        try:
            if _state(path).get("branched_from") != _inside(config):
                return None
            verify(path)
        except (CheckpointError, OSError, ValueError) as error:
            logger.warning("%s; trying an older checkpoint", error)
        else:
            return path
    return None


def origin(config: RunConfig, resumed: Path | None, autoencoder: Autoencoder) -> dict[str, str | int | None]:
    """What the run's training states say of where it comes from.

    Args:
        config: of the run.
        resumed: the checkpoint that it goes on from, if any.
        autoencoder: of the run, in float32.

    Returns:
        `autoencoder`: its fingerprint. `branched_from`: the checkpoint that `train.resume` last named, inside the run's folder.
        `fixed_clips`: the rule by which validation chooses its clips.
    """
    branch = None
    if resumed is not None:
        branch = _state(resumed).get("branched_from") if config.train.resume == "auto" else _inside(config)
    return {"autoencoder": autoencoder.fingerprint(), "branched_from": branch, "fixed_clips": FIXED_CLIPS_RULE}


def check_resumable(folder: Path, config: RunConfig, spec: ModelSpec, fingerprint: str) -> None:
    """Compare a checkpoint with the run that is to go on from it; what may differ, and does, is logged.

    Args:
        folder: the checkpoint.
        config: of the run.
        spec: of its model.
        fingerprint: of its autoencoder.

    Raises:
        CheckpointError: it is of another model, order of labels, encoder of captions, kind or weights of the autoencoder,
            objective or optimizer.
    """
    saved = ModelSpec.from_dict(json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))["spec"])
    compared = {name: (getattr(saved, name), mine) for name, mine in asdict(spec).items()}
    _refuse_differences(folder, "model", compared)
    before, now = _settings(load_config(folder / "config.yaml")), _settings(config)
    if spec.num_classes:
        _check_labels(folder, before["record"]["classes"], now["record"]["classes"])
    encoders = before["record"]["text_encoder"], now["record"]["text_encoder"]
    _refuse_differences(folder, "encoder of captions", {"its fingerprint": encoders})
    for what in ("autoencoder", "objective", "train"):
        keys = [key for key in FIXED if key.startswith(f"{what}.")]
        compared = {key.rpartition(".")[2]: (_value(before, key), _value(now, key)) for key in keys}
        _refuse_differences(folder, "optimizer" if what == "train" else what, compared)
    # Training states of before have no fingerprint.
    saved_fingerprint = _state(folder).get("autoencoder", fingerprint)
    _refuse_differences(folder, "autoencoder", {"the fingerprint of settings and weights": (saved_fingerprint, fingerprint)})
    measured = [f"monitor.{name}" for task, names in MEASURED.items() if now["monitor"][f"{task}_every"] for name in names]
    for key in (*NOTED, *measured):
        old, new = _value(before, key), _value(now, key)
        if old != new:
            logger.warning("%s is %s, it was %s up to the checkpoint", key, new, old)
    # Training states of before have no rule: it was the first.
    if config.monitor.validate_every and _state(folder).get("fixed_clips", 1) != FIXED_CLIPS_RULE:
        logger.warning(
            "validation losses are of other clips than up to the checkpoint, which was trained by a version that chose them "
            "differently: compare them with later ones alone"
        )


def _check_labels(folder: Path, before: list[str], now: list[str]) -> None:
    """Raise CheckpointError if a label means another class than it did. Data without classes has none."""
    if before and now:
        pairs = {f"label {label}": pair for label, pair in enumerate(zip_longest(before, now))}
        differing = [(label, pair) for label, pair in pairs.items() if pair[0] != pair[1]]
        _refuse_differences(folder, "assignment of labels to classes", dict(differing[:LABELS_NAMED]))


def _state(folder: Path) -> dict[str, Any]:
    """What a checkpoint's training state says; OSError or ValueError if it cannot be read, which a verified one's can."""
    return json.loads((folder / "training" / "state.json").read_text(encoding="utf-8"))


def _inside(config: RunConfig) -> str:
    """The checkpoint that `train.resume` names, as a path inside the run's folder, which may have been moved since."""
    return Path(config.train.resume).resolve().relative_to(config.folder.resolve()).as_posix()


def _settings(config: RunConfig) -> dict:
    """A configuration as plain values, with the times that the objective takes where none are said, and the precision."""
    values = asdict(config)
    values["autoencoder"]["precision"] = config.autoencoder.precision or "float32"  # as runs of before encoded
    if values["objective"]["times"] is None:
        values["objective"]["times"] = "logit_normal" if config.objective.kind == "flow" else "uniform"
    return values


def _refuse_differences(folder: Path, what: str, compared: dict[str, tuple[object, object]]) -> None:
    differing = [f"{key} is {theirs!r} there and {mine!r} here" for key, (theirs, mine) in compared.items() if theirs != mine]
    if differing:
        raise CheckpointError(f"{folder} is a checkpoint of another {what}: {', '.join(differing)}. Give the run another name")


def _value(config: dict, key: str) -> object:
    for part in key.split("."):
        config = config[part]
    return config
