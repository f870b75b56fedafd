"""What a run looks at on its way: the average's validation loss, a sheet of its samples, their score.

All ranks share the work: clip and sample i is rank i mod R's, of R ranks, and is the same for any R.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from sparsevid.autoencoder import Autoencoder
from sparsevid.config import RunConfig
from sparsevid.data.clips import ClipDataset
from sparsevid.data.manifest import Manifest
from sparsevid.distributed import is_main, rank, sum_over_ranks, world_size
from sparsevid.logging import MetricWriter, get_logger
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.pipeline import VideoPipeline
from sparsevid.sparsity.schedule import TokenSchedule
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.training.objective import Objective
from sparsevid.training.scoring import Scoring
from sparsevid.training.validation import fixed_latents, validation_dataset, validation_loss
from sparsevid.video import write_contact_sheet

logger = get_logger(__name__)
TASKS = ("validate", "sample", "score")


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
        if not any(self.every.values()):
            return
        model = _empty_model(spec, config.model.attention)
        self.pipeline = VideoPipeline(model, autoencoder, config, schedule)
        if self.every["validate"]:
            chosen = validation_dataset(config, manifest, dataset)
            self.clips = fixed_latents(chosen, autoencoder, config.monitor.validate_clips, device)
        if self.every["sample"] or self.every["score"]:
            list(self.pipeline.batches((), show_progress=False))  # checks sampler and guidance
        if self.every["score"]:
            self.scoring = Scoring(config, device)

    def due(self, step: int) -> list[str]:
        """Which of `validate`, `sample` and `score` optimizer step `step`, counted from 1, asks for."""
        return [task for task, every in self.every.items() if every and step % every == 0]

    def after_step(self, step: int, average: Callable[[], dict[str, Tensor]], metrics: MetricWriter) -> dict[str, float]:
        """Do what is due, and write it to the run's metrics. All ranks call it together.

        Args:
            step: optimizer steps done.
            average: gives the whole averaged weights on rank 0 and may give nothing on others; all ranks call it together, and
                only if something is due.
            metrics: of the run.

        Returns:
            The scalars that were written: `validation/…` and, on rank 0, `score/…`.
        """
        due = self.due(step)
        if not due:
            return {}
        values: dict[str, float] = {}
        with self._averaged(average()) as model:
            if "validate" in due:
                options = {"seed": self.config.seed, "batch": self.batch}
                losses = validation_loss(model, self.objective, self.pipeline.schedule, self.clips, **options)
                values |= {f"validation/{name}": value for name, value in losses.items()}
            if "sample" in due:
                self._write_sheet(step, metrics)
            if "score" in due:
                values |= self._score(step)
        if values:
            metrics.scalars(values, step)
        return values

    @contextmanager
    def _averaged(self, weights: dict[str, Tensor]) -> Iterator[DiffusionTransformer]:
        """The averaged model on this rank's device, and afterwards back on the CPU."""
        model = self.pipeline.model
        if is_main():
            model.load_state_dict(weights)
        model.to(self.device)
        if world_size() > 1:
            for weight in model.parameters():
                dist.broadcast(weight.data, src=0)
        yield model
        model.to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # training wants other sizes of blocks

    def _samples(self, count: int) -> Iterator[tuple[list[int], Tensor]]:
        """This rank's share of samples 0 … count − 1, batch by batch, as `VideoPipeline.batches` gives them."""
        share = range(rank(), count, world_size())
        return self.pipeline.batches(share, seed=self.config.seed, batch=self.batch, show_progress=False)

    def _write_sheet(self, step: int, metrics: MetricWriter) -> None:
        count, data = self.config.monitor.sample_clips, self.config.data
        clips = torch.zeros(count, 3, data.frames, *data.size, dtype=torch.uint8, device=self.device)
        for indices, batch in self._samples(count):
            clips[indices] = batch.to(self.device)
        clips = sum_over_ranks(clips)  # each row is zeros on all ranks but one
        if is_main():
            path = self.config.folder / "samples" / f"step-{step:07d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_contact_sheet(path, clips, self._captions(count))
            metrics.image("samples", np.asarray(Image.open(path)), step)

    def _captions(self, count: int) -> list[str] | None:
        """Class of each sample, which `VideoPipeline.batches` takes in turn; nothing for an unconditional model."""
        classes = self.config.record.classes
        return [classes[index % len(classes)] for index in range(count)] if classes else None

    def _score(self, step: int) -> dict[str, float]:
        count, scoring = self.config.monitor.score_clips, self.scoring
        scoring.detector.to(self.device)
        features = torch.zeros(count, scoring.detector.dim, device=self.device)
        for indices, clips in self._samples(count):
            features[indices] = scoring.features(clips).to(self.device)
        scoring.detector.to("cpu")
        features = sum_over_ranks(features)
        if not is_main():
            return {}
        sampling = {"seed": self.config.seed, "sampler": self.pipeline.default_sampler, "steps": self.config.sample.steps}
        record = scoring.compare(features.cpu(), step, sampling | {"guidance": self.config.sample.guidance})
        path = self.config.folder / "scores" / f"step-{step:07d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        record.save(path)
        logger.info("step %d: %s %.4f of %d samples", step, record.metric, record.score, count)
        return {f"score/{record.metric}": record.score}


def _empty_model(spec: ModelSpec, attention: str) -> DiffusionTransformer:
    """A model to load weights into. Made without values, for drawing them would move the run's random state."""
    with torch.device("meta"):
        model = DiffusionTransformer(spec, attention=attention)
    return model.to_empty(device="cpu").requires_grad_(False).eval()
