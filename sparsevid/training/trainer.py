"""The training loop.

files → clips (uint8) → autoencoder → latents → noise → model → loss → engine → checkpoint
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsevid.autoencoder import Autoencoder, load_autoencoder
from sparsevid.autoencoder.base import psnr
from sparsevid.autoencoder.kl import KLAutoencoder
from sparsevid.autoencoder.linear import LinearAutoencoder
from sparsevid.autoencoder.pixels import Pixels
from sparsevid.build import schedule_from_config, spec_from_config
from sparsevid.checkpoints import list_checkpoints, newest_good, set_aside_after, verify
from sparsevid.config import AutoencoderConfig, ConfigError, RunConfig, save_config
from sparsevid.data.clips import NO_VIDEO, ClipDataset, fixed_clips
from sparsevid.data.loader import SampleOrder, build_loader
from sparsevid.data.open import open_data, use_latents
from sparsevid.distributed import (
    barrier,
    broadcast_object,
    gather_objects,
    init_process_group_if_launched,
    is_main,
    mean_over_ranks,
    rank,
    world_size,
)
from sparsevid.logging import MetricWriter, get_logger, print_table, progress
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.seeding import Purpose, keyed_generator
from sparsevid.training.checkpoint import resume, save_checkpoint
from sparsevid.training.ema import EMA
from sparsevid.training.engine import Engine, learning_rate
from sparsevid.training.objective import build_objective, draw_noise, draw_times, drop_labels

logger = get_logger(__name__)


class Trainer:
    """A run: built from its configuration, resumed if it has a good checkpoint, trained to its last step.

    Args:
        config: the run. Fields that the data card answers may be left out.

    Raises:
        ConfigError, ValueError, FileNotFoundError: a configuration or data that cannot be trained on.
    """

    def __init__(self, config: RunConfig) -> None:
        init_process_group_if_launched()
        data = open_data(config)
        self.config, self.manifest, self.dataset = data
        train = self.config.train
        self.micro_batch, self.accumulation = split_batch(train.global_batch, train.micro_batch, world_size())
        self.objective = build_objective(self.config.objective)
        self.resume_from = find_checkpoint(self.config)
        self.autoencoder = open_autoencoder(self.config, self.dataset, self.resume_from)
        use_latents(data, self.autoencoder)
        factor, (height, width) = self.autoencoder.factor, self.config.data.size
        self.spec = spec_from_config(
            self.config,
            input_size=(self.config.data.frames, height // factor, width // factor),
            in_channels=self.autoencoder.channels,
            num_classes=len(self.manifest.classes),
            learn_sigma=self.objective.learn_sigma,
        )
        dense = self.spec.dense_grid()
        preset = self.config.model.preset
        self.schedule = schedule_from_config(self.config.schedule, dense, preset) if self.spec.is_sparse else None
        torch.manual_seed(self.config.seed)  # initial weights: the same on every rank
        options = {name: getattr(self.config.model, name) for name in ("attention", "checkpoint_layers")}
        model = DiffusionTransformer(self.spec, **options)
        self.engine = Engine(model, train, self.micro_batch, self.accumulation)
        self.autoencoder.to(self.engine.device)
        self.ema = EMA(self.engine, train.ema_decay)
        self.step = self.samples = 0
        self.redraws = 0  # samples of all ranks, since the start of this process, in whose place others were drawn
        self.failed: set[int] = set()  # videos that could not be decoded
        if self.resume_from is not None:
            state = resume(self.resume_from, self.config, self.spec, self.engine, self.ema)
            self.step, self.samples = state["step"], state["samples"]
            logger.info("resumed from %s", self.resume_from)
        if is_main():
            self.config.folder.mkdir(parents=True, exist_ok=True)
            save_config(self.config, self.config.folder / "config.yaml")
            set_aside_after(self.config.folder, self.step)
        barrier()

    def train(self) -> None:
        """Train to the last step, with a checkpoint there."""
        train = self.config.train
        self._print_summary()
        batches = self._batches()
        bar = progress(total=train.steps, initial=self.step, desc="train", unit="step")
        with MetricWriter(self.config.folder) as metrics, bar:
            recent, since = [], time.perf_counter()  # losses not logged yet, and when the first of their steps began
            while self.step < train.steps:
                loss, stage_losses = self._optimizer_step(batches)
                recent.append(loss)
                bar.update()
                if self.step % train.log_every == 0 or self.step == train.steps:
                    values = {
                        "loss": sum(recent) / len(recent),
                        "lr": learning_rate(train, self.step - 1),
                        "clips_per_second": len(recent) * train.global_batch / (time.perf_counter() - since),
                    }
                    bar.set_postfix_str(f"loss {values['loss']:.4f}, {values['clips_per_second']:.1f} clips/s")
                    if self.engine.grad_norm is not None:
                        values["grad_norm"] = self.engine.grad_norm
                    scalars = {f"train/{name}": value for name, value in (values | stage_losses).items()}
                    metrics.scalars(scalars | {"data/redraws": self.redraws}, self.step)
                    recent, since = [], time.perf_counter()
                if self.step % train.checkpoint_every == 0 or self.step == train.steps:
                    before = time.perf_counter()
                    self.save()
                    since += time.perf_counter() - before

    def save(self) -> Path:
        """Write a checkpoint of this step. All ranks call it together."""
        state = {"step": self.step, "samples": self.samples}
        return save_checkpoint(self.config, self.spec, self.engine, self.ema, self.autoencoder, state)

    def _optimizer_step(self, batches: Iterator[dict[str, Tensor]]) -> tuple[float, dict[str, float]]:
        """One step of the optimizer over all accumulation slots; its mean loss over ranks, and by stage on this rank."""
        lr, means = learning_rate(self.config.train, self.step), []
        by_stage: dict[str, list[float]] = {}
        for turn in range(self.accumulation):
            batch = next(batches)
            index, loss = self._loss(batch, turn * world_size() + rank())
            redrawn = batch["redraws"].count_nonzero().to(loss.device)
            mean, share = mean_over_ranks(torch.stack([loss.detach(), redrawn])).tolist()
            means.append(mean)
            if share:
                self.redraws += round(share * world_size())
                self._log_failed(batch["failed"])
            self._check_finite("loss", means[-1])  # before the backward pass, the same on all ranks
            self.engine.step(loss, lr)
            by_stage.setdefault(f"loss_stage_{index}", []).append(loss.item())
        self._check_finite("gradient norm", self.engine.grad_norm)
        self.ema.update()
        self.step += 1
        self.samples += self.config.train.global_batch
        return sum(means) / len(means), {name: sum(values) / len(values) for name, values in by_stage.items()}

    def _log_failed(self, failed: Tensor) -> None:
        """Name videos that could not be decoded, each once. All ranks call it together."""
        for index in sorted({number for numbers in gather_objects(failed.tolist()) for number in numbers} - {NO_VIDEO}):
            if index not in self.failed:
                self.failed.add(index)
                logger.warning("%s cannot be decoded; other clips are drawn in its place", self.dataset.videos[index].path)

    def _check_finite(self, what: str, value: float | None) -> None:
        """Stop before anything that is not a number reaches the average or a checkpoint."""
        if value is not None and not math.isfinite(value):
            raise FloatingPointError(f"the {what} of step {self.step} is {value}; checkpoints of this run are from before it")

    def _loss(self, batch: dict[str, Tensor], slot: int) -> tuple[int, Tensor]:
        """The stage of a micro-batch and its mean loss, a function of (seed, step, slot) and the clips."""
        slots = world_size() * self.accumulation
        key = {"seed": self.config.seed, "step": self.step, "slot": slot}
        x0 = self._latents(batch["clip"].to(self.engine.device), key)
        draw = draw_times(self.objective, self.schedule, len(x0), slots=slots, **key)
        cond: dict[str, Any] = {"grid": draw.stage.grid} if self.schedule is not None else {}
        if self.config.data.images:
            cond["images"] = self.config.data.images
        if self.spec.num_classes:
            labels = drop_labels(batch["label"], self.spec.num_classes, self.config.objective.label_dropout, **key)
            cond["labels"] = labels.to(self.engine.device)
        u = draw.u.to(self.engine.device)
        return draw.index, self.objective.loss(self.engine, x0, u, draw_noise(x0, **key), **cond).mean()

    @torch.no_grad()
    def _latents(self, clips: Tensor, key: dict[str, int]) -> Tensor:
        """Latents of clips, or of the moments that a cache holds in their place; drawn from the posterior if there is one."""
        if not self.autoencoder.cacheable:
            return self.autoencoder.encode(clips)
        moments = clips if self.config.data.latents else self.autoencoder.moments(clips)
        return self.autoencoder.latents(moments, keyed_generator(Purpose.POSTERIOR, *key.values()))

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        order = SampleOrder(len(self.dataset), self.config.seed)
        return iter(
            build_loader(self.dataset, order, self.micro_batch, rank(), world_size(), self.samples, self.config.data.workers)
        )

    def _data_line(self) -> str:
        data, kind = self.config.data, type(self.dataset.source).__name__
        stills = f" + {data.images} stills" if data.images else ""
        return f"{len(self.dataset)} videos of {self.manifest.root} ({data.split}), {data.frames}{stills} frames, {kind}"

    def _print_summary(self) -> None:
        train, stages = self.config.train, self.schedule.stages if self.schedule else ()
        rows = [
            ["run", str(self.config.folder)],
            ["data", self._data_line()],
            ["latents", "×".join(map(str, (self.spec.in_channels, *self.spec.input_size)))],
            ["layout", f"{self.spec.layout}, {self.spec.hidden_size} channels"],
            ["tokens", f"dense {self.spec.dense_grid()}, sparse {', '.join(str(stage.grid) for stage in stages) or 'none'}"],
            ["objective", self.config.objective.kind],
            ["batch", f"{train.global_batch} = {world_size()} ranks × {self.accumulation} slots × {self.micro_batch} clips"],
            ["engine", f"DeepSpeed ZeRO-{train.zero_stage}, {train.precision}, {self.engine.device}"],
            ["steps", f"{self.step} of {train.steps} done"],
        ]
        print_table("training", ["what", ""], rows)


def split_batch(global_batch: int, micro_batch: int | None, ranks: int) -> tuple[int, int]:
    """Clips of a forward and accumulation slots of a step, for one rank.

    Raises:
        ConfigError: the global batch is not ranks × slots × clips; the message says which values are.
    """
    if global_batch % ranks:
        raise ConfigError(f"train.global_batch = {global_batch} is not a multiple of the {ranks} ranks")
    per_rank = global_batch // ranks
    micro = micro_batch or per_rank
    if per_rank % micro:
        divisors = [n for n in range(1, per_rank + 1) if per_rank % n == 0]
        raise ConfigError(
            f"train.micro_batch = {micro} does not divide the {per_rank} clips of each of {ranks} ranks "
            f"(train.global_batch = {global_batch}); accepted are {divisors}"
        )
    return micro, per_rank // micro


def find_checkpoint(config: RunConfig) -> Path | None:
    """The checkpoint to resume from, verified, or None.

    Raises:
        CheckpointError: the one that was asked for is damaged.
        ConfigError: it is not of this run, or the run is not to be resumed and has checkpoints.
    """
    if config.train.resume == "never":
        if list_checkpoints(config.folder):
            raise ConfigError(f"train.resume=never, but {config.folder} has checkpoints: take another name, or remove them")
        return None
    if config.train.resume == "auto":
        return broadcast_object(newest_good(config.folder, for_resuming=True) if is_main() else None)
    folder = Path(config.train.resume)
    if not folder.resolve().is_relative_to(config.folder.resolve()):
        raise ConfigError(f"train.resume = {folder} is not inside the run's own folder {config.folder}")
    verify(folder)
    return folder


def open_autoencoder(config: RunConfig, dataset: ClipDataset, resumed: Path | None) -> Autoencoder:
    """The run's first stage: from the checkpoint if resumed, else built, and fitted where it needs no weights."""
    settings: AutoencoderConfig = config.autoencoder
    if resumed is not None:
        return load_autoencoder(resumed / "autoencoder", settings.source)
    if settings.kind == "kl":
        return KLAutoencoder.from_source(settings.source)
    if settings.kind == "pixels":
        return Pixels()
    keys = fixed_clips(dataset, settings.fit_clips, config.seed)
    clips = torch.stack([dataset[key]["clip"] for key in keys])
    fitted = LinearAutoencoder.fit(clips, patch=settings.patch, channels=settings.channels)
    quality = psnr(fitted.decode(fitted.encode(clips)), clips)
    logger.info("linear autoencoder: %d clips, reconstruction PSNR %.1f dB", len(clips), quality)
    return fitted
