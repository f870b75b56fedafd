"""Training a row's run: begun, gone on with, stopped when a budget is over, and kept without what only resuming needs."""

import gc
import os
import shutil
import threading
import time
from itertools import count
from pathlib import Path

from sparsevid.runs.checkpoints import RESUME_ONLY, list_checkpoints, newest_good, step_of
from sparsevid.study import StudyError
from sparsevid.study.plan import Plan
from sparsevid.study.results import read_json, write_json
from sparsevid.system.distributed import from_main
from sparsevid.system.logging import get_logger, read_metrics
from sparsevid.training.signals import StopRequest

OWN = "study.json"  # in a run's folder: by what its training is told apart
FINISHED = "trained.json"  # that it has reached its last step
logger = get_logger(__name__)


class Stopped(Exception):
    """A budget is over, or a signal came: what was done so far is kept, and the study goes on another time."""


class Budget:
    """The time that a study has.

    Args:
        minutes: from now on; None: as long as it takes.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.seconds = None if minutes is None else 60 * minutes
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

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
        if self._end is None:
            return True
        return not self.over and (seconds is None or seconds <= self.left or seconds > self.seconds)


def is_trained(plan: Plan) -> bool:
    """Whether the run of a row lies there, trained to the end by these settings."""
    return read_json(plan.folder / FINISHED).get("trained") == plan.trained


def steps_done(plan: Plan) -> int:
    """Steps of the newest checkpoint, of these settings."""
    if read_json(plan.folder / OWN).get("trained") != plan.trained:
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
    rates = {row["step"]: row["train/clips_per_second"] for row in read_metrics(folder) if "train/clips_per_second" in row}
    seconds, before = 0.0, 0
    for step in sorted(rates):
        seconds += (step - before) * batch / rates[step]
        before = step
    return seconds


def _take_folder(plan: Plan) -> None:
    """Mark the run's folder as that of these settings; one of others is set aside, and one of these that had been is taken
    back.
    """
    folder, before = plan.folder, read_json(plan.folder / OWN).get("trained")
    if before != plan.trained and (before is not None or list_checkpoints(folder)):
        first = _aside(folder, before or "unknown")
        names = (first.name + (f"-{number}" if number else "") for number in count())
        aside = next(path for path in map(folder.with_name, names) if not path.exists())
        logger.warning("%s: its settings have changed since it was trained; what there was is now %s", plan.name, aside)
        os.replace(folder, aside)
    if not folder.exists() and (own := _aside(folder, plan.trained)).is_dir():
        logger.info("%s: the run of these settings, %s, is taken back", plan.name, own)
        os.replace(own, folder)
    write_json(folder / OWN, {"trained": plan.trained, "row": plan.row.name, "seed": plan.seed})


def _aside(folder: Path, trained: str) -> Path:
    """Where the run of other settings is kept."""
    return folder.with_name(f"{folder.name}-aside-{trained}")


def _finish(plan: Plan) -> None:
    """Note that the run is trained, and drop what only resuming needs: most of a checkpoint."""
    checkpoint = newest_good(plan.folder, for_resuming=True)
    if checkpoint is None or step_of(checkpoint) != plan.config.train.steps:
        raise StudyError(f"{plan.folder} has no good checkpoint of step {plan.config.train.steps}")
    seconds = training_seconds(plan.folder, plan.config.train.global_batch)
    write_json(plan.folder / FINISHED, {"trained": plan.trained, "steps": plan.config.train.steps, "seconds": seconds})
    for each in list_checkpoints(plan.folder):
        shutil.rmtree(each / RESUME_ONLY if each == checkpoint else each)


def seconds_trained(plan: Plan) -> float:
    """Seconds of the training of a run that is trained."""
    return read_json(plan.folder / FINISHED)["seconds"]
