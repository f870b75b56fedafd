"""Whole runs by the command `train`: two quick ones, one of them stopped by a signal and resumed, and a larger model."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from sparsevid.benchmark.gpu.parts import CHECKOUT, SKIPPED, NotRun, Row, Settings, in_checkout
from sparsevid.data.tree.cards import load_card, resolve_root
from sparsevid.runs.config import RunConfig, load_config
from sparsevid.system.logging import metric_by_step

WHOLE, STOPPED = "configs/quick/flow_dense.yaml", "configs/quick/diffusion_sparse.yaml"
TINY = (
    "model.hidden_size=32", "model.num_heads=2", "train.steps=60", "train.warmup=4", "train.log_every=15",
    "autoencoder.fit_clips=8",
)  # fmt: skip
LARGER = (
    "model.preset=SparseLatte-S/2", "model.layout=null", "model.hidden_size=null", "model.num_heads=null",
    "model.patch_size=null", "model.mlp_ratio=null", "train.steps=150", "train.lr=1e-3", "train.precision=bfloat16",
    "data.frames=16", "data.stride=1", "data.size=[128,128]", "schedule.frames=null", "schedule.r_min=null",
    "schedule.r_max=null", "train.log_every=25", "train.checkpoint_every=150",
)  # fmt: skip
EXPECTED = re.compile(r"^# expect: loss ([\d.]+) ± ([\d.]+) at step (\d+)$", re.MULTILINE)
PAUSE = 0.2  # seconds between looks at a run


class Run:
    """A run in a process of its own.

    Args:
        settings: of the part.
        path: of the configuration, in the checkout.
        name: of the run.
        overrides: dotted settings.
    """

    def __init__(self, settings: Settings, path: str, name: str, *overrides: str) -> None:
        self.settings, self.name = settings, name
        self.arguments = [str(in_checkout(path)), f"output={settings.work}", f"name={name}", *overrides]
        self.config: RunConfig = load_config(Path(self.arguments[0]), self.arguments[1:])
        self.process: subprocess.Popen | None = None
        self.seconds = 0.0

    def start(self) -> "Run":
        """Start it, or go on with it; what it prints goes where this process prints."""
        threads = {"OMP_NUM_THREADS": "1"} if self.settings.device == "cpu" else {}
        # The sources that this process runs are those that the run is to use, wherever they came from.
        paths = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, "-m", "sparsevid.cli", "train", *self.arguments]
        self._began = time.monotonic()
        self.process = subprocess.Popen(command, cwd=CHECKOUT, env={**os.environ, **threads, "PYTHONPATH": paths})
        return self

    def losses(self) -> dict[int, float]:
        """By step, so far."""
        return metric_by_step(self.config.folder, "train/loss")

    @property
    def started(self) -> subprocess.Popen:
        """Its process. Raises RuntimeError before `start`."""
        if self.process is None:
            raise RuntimeError(f"the run {self.name} was not started")
        return self.process

    def stop(self) -> None:
        """Send SIGUSR1 as soon as a loss is logged."""
        while self.started.poll() is None and not self.losses():
            time.sleep(PAUSE)
        self.started.send_signal(signal.SIGUSR1)
        self.finish()

    def finish(self) -> int:
        """Wait for its end, and give its exit status."""
        status = self.started.wait()
        self.seconds += time.monotonic() - self._began
        return status


def rows(settings: Settings) -> Iterator[Row]:
    """All runs side by side: most of their time goes to starting, and to decoding on the CPU.

    Raises:
        NotRun: no configurations, or no videos.
    """
    small = TINY if settings.tiny else ()
    whole = Run(settings, WHOLE, "whole", *small)
    stopped = Run(settings, STOPPED, "stopped", *small)
    card = load_card(whole.config.data.card)
    try:
        resolve_root(card, None)
    except (FileNotFoundError, ImportError, ValueError) as error:
        raise NotRun(f"no videos to train on: {error}") from error
    larger = Run(settings, WHOLE, *(("tiny", *TINY) if settings.tiny else ("SparseLatte-S/2", *LARGER)))
    for run in (whole, larger, stopped):
        run.start()
    stopped.stop()
    yield from interruption(stopped)
    stopped.start()
    for run, expected in ((whole, WHOLE), (larger, None), (stopped, STOPPED)):
        yield Row(run.name, "exit status", status := run.finish(), ok=status == 0)
        yield from outcome(run, None if settings.tiny else expected)


def interruption(run: Run) -> Iterator[Row]:
    """What a run that was stopped left."""
    from sparsevid.training.resume import TO_BE_RESUMED

    left = run.config.folder / TO_BE_RESUMED
    said = left.read_text(encoding="utf-8").strip() if left.is_file() else "nothing"
    yield Row(run.name, "stopped by SIGUSR1", said, ok=left.is_file(), note="what it left to be resumed")
    checkpoints = [each.name for each in (run.config.folder / "checkpoints").glob("step-*")]
    yield Row(run.name, "checkpoints when it stopped", ", ".join(sorted(checkpoints)), ok=bool(checkpoints))


def outcome(run: Run, path: str | None) -> Iterator[Row]:
    """The last loss against what the configuration at `path` expects, or against the first; and the speed."""
    losses = run.losses()
    yield Row(run.name, "steps", max(losses, default=0), ok=max(losses, default=0) == run.config.train.steps)
    yield Row(run.name, "time", run.seconds, "s", note="with its start, and beside other runs")
    if not losses:
        yield Row(run.name, SKIPPED, note="no loss was logged")
        return
    first, last = losses[min(losses)], losses[max(losses)]
    if path is None:
        yield Row(run.name, "loss", last, ok=last < first, note=f"falls from {first:.4f} at step {min(losses)}")
        return
    expected = EXPECTED.search(in_checkout(path).read_text(encoding="utf-8"))
    if expected is None:
        raise ValueError(f"{path} does not say which loss is expected of it")
    loss, tolerance, step = map(float, expected.groups())
    ok = max(losses) == step and abs(last - loss) <= tolerance
    yield Row(run.name, "loss", last, ok=ok, note=f"expected {loss:g} ± {tolerance:g} at step {step:g}")
