"""What a run looks at on its way: the average's validation loss, a sheet of its samples, their score.

All ranks share the work: clip and sample i is rank i mod R's, of R ranks, and is the same for any R.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder
from sparsevid.data.clips import ClipDataset
from sparsevid.data.tree.manifest import Manifest
from sparsevid.generation import GenerationError
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.generation.sampling import Sampling
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import RunConfig
from sparsevid.sparsity.schedule import TokenSchedule
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.atomic import renamed
from sparsevid.system.distributed import broadcast_object, gather_objects, is_main, rank, sum_over_ranks, world_size
from sparsevid.system.logging import MetricWriter, get_logger, read_metrics
from sparsevid.training.objective import Objective
from sparsevid.training.scoring import Scoring
from sparsevid.training.validation import fixed_latents, fixed_prompts, validation_dataset, validation_loss
from sparsevid.videos.sheets import contact_sheet

logger = get_logger(__name__)
TASKS = ("validate", "sample", "score")
FAILURES = (GenerationError, ValueError, OSError)  # of a task, after which training goes on


class Interrupted(Exception):
    """A signal came while the monitor was at work; what it has not written is undone."""


class Monitor:
    """Validates, samples and scores averaged weights when the run's `monitor` section says so. All ranks build it together.

    What cannot work raises here and not after hours: split, sampler, protocol, detector, real clips. The averaged model
    computes in float32, whatever the run's precision; between uses it is kept on the CPU.

    Args:
        config: of the run, with what the card answers filled in.
        spec: of the model.
        schedule: its token schedule; None for a dense model.
        objective: of the run.
        autoencoder: on `device`.
        manifest: of the whole tree.
        dataset: what the run trains on.
        device: of this rank.
        batch: clips of a forward.

    Raises:
        ConfigError, ValueError, FileNotFoundError, ModuleNotFoundError, DecodeError: something asked for cannot be done.
    """

    def __init__(
        self,
        config: RunConfig,
        spec: ModelSpec,
        schedule: TokenSchedule | None,
        objective: Objective,
        autoencoder: Autoencoder,
        manifest: Manifest,
        dataset: ClipDataset,
        device: torch.device,
        batch: int,
    ) -> None:
        self.config, self.device, self.objective, self.batch = config, device, objective, batch
        self.every = {task: getattr(config.monitor, f"{task}_every") for task in TASKS}
        self.failed: set[tuple[str, int]] = set()  # tasks and steps, since the start of this process
        if not any(self.every.values()):
            return
        model = _empty_model(spec, config.model.attention)
        self.pipeline = VideoPipeline(model, autoencoder, config, schedule, graph=False)  # it leaves the GPU after each use
        if self.every["validate"] or dataset.captions is not None:
            chosen = validation_dataset(config, manifest, dataset)
        if self.every["validate"]:
            self.clips = fixed_latents(chosen, autoencoder, config.monitor.validate_clips, device)
        self.prompts: list[str] = []  # of a model of text: sample i has that of the i-th clip to validate on
        if self.every["sample"] or self.every["score"]:
            if dataset.captions is not None:
                self.prompts, encoded = fixed_prompts(chosen, self._most_samples())
                self.pipeline.remember(self.prompts, encoded)
            self._sampling()  # checks sampler and guidance
        if self.every["score"]:
            self.scoring = Scoring(config, device)

    def due(self, step: int) -> list[str]:
        """Which of `validate`, `sample` and `score` optimizer step `step`, counted from 1, asks for."""
        return [task for task, every in self.every.items() if every and step and step % every == 0]

    def undone(self, step: int) -> list[str]:
        """What is due at a step, has not failed in this process, and has left no result in the run's folder.

        The same on all ranks, which call it together.
        """
        due = [task for task in self.due(step) if (task, step) not in self.failed]
        return broadcast_object([task for task in due if not self._has_result(task, step)] if is_main() else [])

    def run(
        self,
        tasks: list[str],
        step: int,
        average: Callable[[], dict[str, Tensor]],
        metrics: MetricWriter,
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, float]:
        """Do tasks, and write their results to the run's folder and metrics. All ranks call it together.

        A task whose samples are not finite, whose score cannot be computed, or whose result cannot be written, is a warning.

        Args:
            tasks: of `due` or `undone`.
            step: optimizer steps done.
            average: gives the whole averaged weights on rank 0 and may give nothing on others; all ranks call it together, and
                only if there is a task.
            metrics: of the run.
            stop: asked before each task, each batch of validation and each step of the sampler, by all ranks together, with the
                same answer on all.

        Returns:
            The scalars that were written: `validation/…` and, on rank 0, `score/…`.

        Raises:
            Interrupted: `stop` said so.
        """
        if not tasks:
            return {}

        def ask() -> None:
            if stop():
                raise Interrupted

        values: dict[str, float] = {}
        with self._averaged(average()):
            for task in tasks:
                ask()
                values |= self._attempt(task, step, metrics, ask)
        return values

    def _attempt(self, task: str, step: int, metrics: MetricWriter, ask: Callable[[], None]) -> dict[str, float]:
        """Do a task; if it fails on any rank it has failed on all, with a warning and without scalars."""
        does = {"validate": self._validate, "sample": self._write_sheet, "score": self._score}
        values: dict[str, float] = {}
        own: str | None = None
        try:
            values = does[task](step, metrics, ask)
        except FAILURES as error:
            own = str(error)
        reason = _first_reason(own)
        if reason is None:
            return values
        self.failed.add((task, step))
        if is_main():
            logger.warning("step %d: %s failed, and training goes on: %s", step, task, reason)
        return {}

    def _has_result(self, task: str, step: int) -> bool:
        if task != "validate":
            return self._result(task, step).is_file()
        return any("validation/loss" in row and row["step"] == step for row in read_metrics(self.config.folder))

    @contextmanager
    def _averaged(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """The pipeline's model has the averaged weights and is on this rank's device; afterwards it is back on the CPU."""
        model = self.pipeline.model
        if is_main():
            model.load_state_dict(weights)
        model.to(self.device)
        if world_size() > 1:
            for value in (*model.parameters(), *model.buffers()):
                dist.broadcast(value.data, src=0)
        try:
            yield
        finally:
            model.to("cpu")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # training wants other sizes of blocks

    def _validate(self, step: int, metrics: MetricWriter, ask: Callable[[], None]) -> dict[str, float]:
        options = {"seed": self.config.seed, "batch": self.batch}
        losses = validation_loss(self.pipeline.model, self.objective, self.pipeline.schedule, self.clips, ask=ask, **options)
        values = {f"validation/{name}": value for name, value in losses.items()}
        metrics.scalars(values, step)
        return values

    def _sampling(self) -> Sampling:
        return self.pipeline.sampling(seed=self.config.seed, batch=self.batch, prompts=self.prompts or None)

    def _most_samples(self) -> int:
        counts = {"sample": self.config.monitor.sample_clips, "score": self.config.monitor.score_clips}
        return max(count for task, count in counts.items() if self.every[task])

    def _samples(self, count: int, ask: Callable[[], None], take: Callable[[list[int], Tensor], None]) -> None:
        """Give `take` this rank's share of samples 0 … count − 1, batch by batch: indices, and clips uint8 (B, 3, T, H, W).

        Raises:
            GenerationError: samples of any rank are not finite, or `take` failed on one: all ranks raise it after that batch.
        """
        ranks, sampling = world_size(), self._sampling()
        for first in range(0, count, self.batch * ranks):
            share = list(range(first + rank(), min(count, first + self.batch * ranks), ranks))
            own: str | None = None
            try:
                # A rank that has nothing left makes a sample of another's and drops it: all ask as often.
                latents = self.pipeline.denoise(share or [first], sampling, lambda *_: ask())
                if share:
                    take(share, self.pipeline.decode(latents))
            except FAILURES as error:  # the others would wait for this rank at their next batch
                own = str(error)
            if (reason := _first_reason(own)) is not None:
                raise GenerationError(reason)

    def _write_sheet(self, step: int, metrics: MetricWriter, ask: Callable[[], None]) -> dict[str, float]:
        count, clip = self.config.monitor.sample_clips, self.config.data.clip()
        clips = torch.zeros(count, 3, clip.frames, *clip.size, dtype=torch.uint8, device=self.device)

        def take(indices: list[int], batch: Tensor) -> None:
            clips[indices] = batch.to(self.device)

        self._samples(count, ask, take)
        clips_of_all = sum_over_ranks(clips)  # each row is zeros on all ranks but one
        if is_main():
            sheet = contact_sheet(clips_of_all, self._captions(count))
            metrics.image("samples", np.asarray(sheet), step)
            path = self._result("sample", step)
            path.parent.mkdir(parents=True, exist_ok=True)
            with renamed(path) as draft:  # last: it says that the sheet is done
                sheet.save(draft, format="PNG", optimize=True)
        return {}

    def _captions(self, count: int) -> list[str] | None:
        """Class or prompt of each sample; nothing for an unconditional model."""
        classes, sampling = self.pipeline.classes, self._sampling()
        return [line for index in range(count) if (line := sampling.caption(index, classes)) is not None] or None

    def _score(self, step: int, metrics: MetricWriter, ask: Callable[[], None]) -> dict[str, float]:
        count, scoring = self.config.monitor.score_clips, self.scoring
        features = torch.zeros(count, scoring.detector.dim, device=self.device)

        def take(indices: list[int], clips: Tensor) -> None:
            features[indices] = scoring.features(clips).to(self.device)

        scoring.detector.to(self.device)
        try:
            self._samples(count, ask, take)
        finally:
            scoring.detector.to("cpu")
        features_of_all = sum_over_ranks(features)
        if not is_main():
            return {}
        sampling = self._sampling()
        settings = sampling.record(self.pipeline.token_schedule(sampling), self.pipeline.classes)
        record = scoring.compare(features_of_all.cpu(), step, settings)
        values = {f"score/{record.metric}": record.score}
        metrics.scalars(values, step)
        path = self._result("score", step)
        path.parent.mkdir(parents=True, exist_ok=True)
        record.save(path)  # last: it says that the score is done
        logger.info("step %d: %s %.4f of %d samples", step, record.metric, record.score, count)
        return values

    def _result(self, task: str, step: int) -> Path:
        """The file that a sheet or a score leaves."""
        folder, suffix = {"sample": ("samples", "png"), "score": ("scores", "json")}[task]
        return self.config.folder / folder / f"step-{step:07d}.{suffix}"


def _first_reason(own: str | None) -> str | None:
    """Why the first rank that failed did, on all ranks; None if none failed. All ranks call it together."""
    return next((reason for reason in gather_objects(own) if reason is not None), None)


def _empty_model(spec: ModelSpec, attention: str) -> DiffusionTransformer:
    """A model to load weights into. Made without values, for drawing them would move the run's random state."""
    with torch.device("meta"):
        model = DiffusionTransformer(spec, attention=attention)
    return model.to_empty(device="cpu").requires_grad_(False).eval()
