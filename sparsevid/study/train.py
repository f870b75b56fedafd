"""Training a row's run: begun, gone on with, stopped when a budget is over, and kept without what only resuming needs."""

import gc
import math
import os
import re
import shutil
import threading
import time
from itertools import count
from pathlib import Path

from sparsevid.runs.checkpoints import CHECKSUMS, RESUME_ONLY, list_checkpoints, newest_good, step_of
from sparsevid.study import StudyError
from sparsevid.study.plan import Plan
from sparsevid.study.results import agree, digest, read_json
from sparsevid.system.atomic import write_json
from sparsevid.system.distributed import from_main
from sparsevid.system.logging import get_logger, metric_by_step
from sparsevid.training.signals import StopRequest

OWN = "study.json"  # in a run's folder: by what its training is told apart
FINISHED = "trained.json"  # that it has reached its last step
_WEIGHTS = re.compile(r"(ema|autoencoder)/.*\.safetensors")  # of a checkpoint, all that samples are made with
logger = get_logger(__name__)


class Stopped(Exception):
    """A budget is over, or a signal came: what was done so far is kept, and the study goes on another time."""


class Budget:
    """The time that a study has.

    Args:
        minutes: from now on; None, or more than a clock can count: as long as it takes.
    """

    def __init__(self, minutes: float | None = None) -> None:
        seconds = math.inf if minutes is None else 60 * minutes
        self.seconds = seconds if seconds < threading.TIMEOUT_MAX else None
        self._end = None if self.seconds is None else time.monotonic() + self.seconds

    @property
    def left(self) -> float | None:
        """Seconds, not below 0; None: no end."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether no time is left."""
        return self.left == 0.0

    def admits(self, seconds: float | None) -> bool:
        """Whether to begin what would take so long; None: not known.

        What takes longer than the whole budget is begun all the same, for it would never be done: it is stopped on its way.
        """
        left = self.left
        if left is None or self.seconds is None:
            return True
        return left > 0 and (seconds is None or seconds <= left or seconds > self.seconds)


def is_trained(plan: Plan) -> bool:
    """Whether the run of a row lies there, trained to the end by these settings on the data at hand."""
    return _is_of(plan, plan.folder / FINISHED)


def steps_done(plan: Plan) -> int:
    """Steps of the newest checkpoint, of these settings and data."""
    if not _is_of(plan, plan.folder / OWN):
        return 0
    return max(map(step_of, list_checkpoints(plan.folder)), default=0)


def train(plan: Plan, budget: Budget) -> None:
    """Train a row's run to its last step, or go on with it. All ranks call it together.

    Raises:
        Stopped: with a checkpoint to go on from.
        StudyError: there is no checkpoint at the end.
        ConfigError, TrainingError, …: as `Trainer`.
    """
    from sparsevid.training.trainer import Trainer  # it imports DeepSpeed, for seconds

    from_main(lambda: _take_folder(plan))
    if from_main(lambda: is_trained(plan)):
        return
    logger.info("%s: training, %d of %d steps done", plan.name, from_main(lambda: steps_done(plan)), plan.config.train.steps)
    with StopRequest() as stop:
        trainer = Trainer(plan.config)
        clock = threading.Timer(budget.left or 0.0, stop.ask, ["the budget"])
        clock.daemon = True
        if budget.left is not None:
            clock.start()
        try:
            done = trainer.train(stop)
        finally:
            clock.cancel()
        by = stop.signal_name
    del trainer
    gc.collect()  # before the next model is built
    if not done:
        raise Stopped(f"{plan.name}: stopped in training by {by or 'a signal to another rank'}")
    from_main(lambda: _finish(plan))


def training_seconds(folder: Path, batch: int) -> float:
    """Seconds of training, without checkpoints and pauses, by the rates in a run's metrics: also over several processes.

    Args:
        folder: of the run.
        batch: clips of a step.
    """
    seconds, before = 0.0, 0
    for step, rate in metric_by_step(folder, "train/clips_per_second").items():
        seconds += (step - before) * batch / rate
        before = step
    return seconds


def take_back(plan: Plan) -> bool:
    """Put a run of these settings and data that was set aside in its place again; what lies there is set aside. On rank 0.

    Returns:
        Whether there was one.
    """
    folder = plan.folder
    if folder.exists() and _is_of(plan, folder / OWN):
        return False
    asides = folder.parent.glob(f"{folder.name}-aside-{plan.trained}*")
    own = [path for path in asides if path.is_dir() and _is_of(plan, path / OWN)]
    if not own:
        return False
    chosen = max(own, key=lambda path: ((path / FINISHED).is_file(), path.name))
    if folder.exists():
        _set_aside(plan)
    logger.info("%s: the run of these settings, %s, is taken back", plan.name, chosen)
    os.replace(chosen, folder)
    return True


def _is_of(plan: Plan, path: Path) -> bool:
    """Whether a run's file says that it is of these settings, and of the data at hand."""
    said = read_json(path)
    return said.get("trained") == plan.trained and agree(said, plan.of_training)


def _take_folder(plan: Plan) -> None:
    """Mark the run's folder as that of these settings; one of others is set aside, and one of these that had been is taken
    back.
    """
    is_run = (plan.folder / OWN).is_file() or list_checkpoints(plan.folder)
    if not take_back(plan) and is_run and not _is_of(plan, plan.folder / OWN):
        _set_aside(plan)
    write_json(plan.folder / OWN, {**_said(plan), "row": plan.row.name, "seed": plan.seed})


def _set_aside(plan: Plan) -> None:
    """Rename a run's folder, so that it is found again by its settings."""
    folder = plan.folder
    first = f"{folder.name}-aside-{read_json(folder / OWN).get('trained') or 'unknown'}"
    names = (first + (f"-{number}" if number else "") for number in count())
    aside = next(path for path in map(folder.with_name, names) if not path.exists())
    logger.warning("%s: its settings or data have changed since it was trained; what there was is now %s", plan.name, aside)
    os.replace(folder, aside)


def _said(plan: Plan) -> dict[str, str]:
    """By what a run is told apart, as far as it is known."""
    return {"trained": plan.trained} | {key: value for key, value in plan.of_training.items() if value is not None}


def _finish(plan: Plan) -> None:
    """Note that the run is trained, and drop what only resuming needs: most of a checkpoint."""
    checkpoint = newest_good(plan.folder, for_resuming=True)
    if checkpoint is None or step_of(checkpoint) != plan.config.train.steps:
        raise StudyError(f"{plan.folder} has no good checkpoint of step {plan.config.train.steps}")
    seconds = training_seconds(plan.folder, plan.config.train.global_batch)
    write_json(plan.folder / FINISHED, {**_said(plan), "steps": plan.config.train.steps, "seconds": seconds})
    drop_resuming(plan)


def drop_resuming(plan: Plan) -> None:
    """Remove what only resuming needs of a run that is trained, if it is there: a kill may have left it. On rank 0."""
    steps = {step_of(each): each for each in list_checkpoints(plan.folder)}
    if (last := steps.get(plan.config.train.steps)) is not None:
        for each in (last / RESUME_ONLY, *(path for step, path in steps.items() if step < plan.config.train.steps)):
            shutil.rmtree(each, ignore_errors=True)


def weights_of(plan: Plan) -> str | None:
    """By what the weights of a run that is trained are told apart; None where they are not there, or say nothing of it."""
    recorded = [read_json(each / CHECKSUMS) for each in list_checkpoints(plan.folder)[-1:]]
    files = [{name: sha for name, sha in each.items() if _WEIGHTS.fullmatch(name)} for each in recorded]
    return digest(files) if any(files) else None


def seconds_trained(plan: Plan) -> float:
    """Seconds of the training of a run that is trained."""
    return read_json(plan.folder / FINISHED)["seconds"]
