"""The training loop.

files → clips (uint8) → autoencoder → latents → noise → model → loss → engine → checkpoint
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from sparsevid.autoencoder.base import latent_size
from sparsevid.data.feed import Feed, split_batch
from sparsevid.data.loader import SampleOrder, build_loader
from sparsevid.data.open import RunData, open_data, use_latents
from sparsevid.data.workers import refuse_while_imported, running
from sparsevid.diffusion.null_text import NullText
from sparsevid.models.convert.diffusers_names import NULL_CAPTION
from sparsevid.models.text import draw_null_caption, keep_null_caption, null_caption
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.build import TextSize, schedule_from_config, spec_from_config
from sparsevid.runs.checkpoints import CheckpointError, set_aside_after
from sparsevid.runs.config import ConfigError, RunConfig, save_config
from sparsevid.runs.paths import with_whole_paths
from sparsevid.system.atomic import renamed
from sparsevid.system.distributed import (
    any_over_ranks,
    barrier,
    check_ranks,
    default_device,
    init_process_group_if_launched,
    is_main,
    peers_may_die,
    rank,
    sum_over_ranks,
    world_size,
)
from sparsevid.system.heartbeat import Heartbeat
from sparsevid.system.logging import MetricWriter, get_logger, print_table, progress
from sparsevid.system.seeding import Purpose, keyed_generator
from sparsevid.system.shared import check_shared
from sparsevid.system.transfer import to_device
from sparsevid.training import TrainingError
from sparsevid.training.checkpoint import TrainingState, save_checkpoint
from sparsevid.training.distillation import Distillation, Recorder
from sparsevid.training.ema import EMA
from sparsevid.training.engine import Engine, check_precision, learning_rate
from sparsevid.training.environment import describe_environment
from sparsevid.training.initial import encoding_precision, initial_weights, open_autoencoder, open_encoder, unlike
from sparsevid.training.monitor import Interrupted, Monitor
from sparsevid.training.objective import Draw, build_objective, draw_dropped, draw_noise, draw_times, told
from sparsevid.training.outcome import (
    GradientNorms,
    Outcome,
    SeenClip,
    Unread,
    log_failed,
    log_skipped,
    metrics_of,
    read,
    seen_clips,
)
from sparsevid.training.resume import RunLock, check_resumable, find_checkpoint, mark_stopped, origin, unmark_stopped
from sparsevid.training.signals import StopRequest, unheard_by_children
from sparsevid.training.throughput import Throughput

logger = get_logger(__name__)


class Trainer:
    """A run: built from its configuration, resumed if it has a good checkpoint, trained to its last step.

    Args:
        config: the run. Fields that the data card answers may be left out.

    Raises:
        ConfigError, ValueError, FileNotFoundError: a configuration or data that cannot be trained on.
        CheckpointError: none to resume from, or one of another run.
        RankError: a rank does not answer, or ended meanwhile.
        RuntimeError: this is a worker of a script that trains without a main guard.
    """

    def __init__(self, config: RunConfig) -> None:
        refuse_while_imported()
        with peers_may_die("building"):
            init_process_group_if_launched(config.train.timeout, config.train.start_timeout)
            self.ranks = check_ranks(config.train.start_timeout)
            self.heartbeat = Heartbeat(self.ranks, config.train.silence, "training")
            with ExitStack() as failing:
                failing.callback(self.heartbeat.close, done=False)
                check_precision(config.train.precision)
                data = open_data(with_whole_paths(config))
                self.lock = failing.enter_context(RunLock(data.config))
                check_shared(data.config.folder, ConfigError)
                self._build(data)
                failing.pop_all()

    def _build(self, data: RunData) -> None:
        """All that a run consists of; what its folder holds of later steps than its checkpoint is set aside."""
        self.config, self.manifest, self.dataset = data
        self.captions = self.dataset.captions
        precision = encoding_precision(self.config, default_device())
        self.config.autoencoder = replace(self.config.autoencoder, precision=precision)
        train = self.config.train
        self.micro_batch, self.accumulation = split_batch(train.global_batch, train.micro_batch, world_size())
        self.objective = build_objective(self.config.objective)
        self.resume_from = find_checkpoint(self.config)
        self.autoencoder = open_autoencoder(self.config, self.dataset, self.resume_from)
        self.origin = origin(self.config, self.resume_from, self.autoencoder)
        use_latents(data, self.autoencoder)
        clip, first_stage = self.config.data.clip(), self.autoencoder
        self.spec = spec_from_config(
            self.config,
            input_size=latent_size(
                (clip.frames, *clip.size), first_stage.time_factor, first_stage.factor, causal=first_stage.causal
            ),
            in_channels=self.autoencoder.channels,
            num_classes=len(self.manifest.classes),
            learn_sigma=self.objective.learn_sigma,
            text=None if self.captions is None else TextSize(self.captions.tokens, self.captions.channels),
        )
        dense = self.spec.dense_grid()
        preset = self.config.model.preset
        self.schedule = schedule_from_config(self.config.schedule, dense, preset) if self.spec.is_sparse else None
        self.step = self.samples = self.skipped = 0
        self._recent: list[Outcome] = []  # steps that are not logged yet, and those of them whose losses are on the device
        self._unread: list[Unread] = []
        self.norms = GradientNorms()
        self.redraws = 0  # since the start of this process
        self.failed: set[int] = set()  # videos that could not be decoded
        self._build_engine()
        if is_main():
            with renamed(self.config.folder / "config.yaml") as draft:
                save_config(self.config, draft)
            set_aside_after(self.config.folder, self.step)
        barrier()
        device = self.engine.device
        self.throughput = Throughput(
            self.spec, self.schedule, images=clip.images, device=device, peak_tflops=self.config.monitor.peak_tflops
        )
        parts = (self.spec, self.schedule, self.objective, self.autoencoder, self.manifest, self.dataset, device)
        self.monitor = Monitor(self.config, *parts, batch=self.micro_batch)

    def _build_engine(self) -> None:
        """Model, engine, average and teacher, as a checkpoint left them, or as they begin."""
        train = self.config.train
        torch.manual_seed(self.config.seed)  # initial weights: the same on every rank
        options = {name: getattr(self.config.model, name) for name in ("attention", "checkpoint_layers")}
        model = DiffusionTransformer(self.spec, **options)
        state, has_null = None, False
        if self.resume_from is not None:
            check_resumable(self.resume_from, self.config, self.spec, str(self.origin["autoencoder"]))
            state = TrainingState(self.resume_from)
            model.load_state_dict(state.weights())
            has_null = True
        elif train.init_from is not None:
            weights, notes = initial_weights(train.init_from, self.spec)
            model.load_state_dict(model.state_dict() | weights)  # it may have no null caption
            has_null |= NULL_CAPTION in weights
            for note in notes:
                logger.info("%s: %s", train.init_from, note)
            for difference in self._unlike(train.init_from):
                logger.warning("train.init_from = %s: %s", train.init_from, difference)
        if self.captions is None or has_null:  # nothing needs it, or it is known
            pass
        elif (known := self.captions.null()) is not None:
            keep_null_caption(model, *known[:2])
        else:
            logger.info("%s does not say what 'no prompt' is: it is drawn, as PixArt's was", self.config.data.captions)
            draw_null_caption(model)
        null = None if self.captions is None else null_caption(model)  # as it is, before a precision rounds it
        self.engine = Engine(model, train, self.micro_batch, self.accumulation)
        device = self.engine.device
        self.null = null and NullText(null[0].to(device), null[1].to(device), self.config.text.null_mask)
        self.encoder = open_encoder(self.autoencoder, self.config.autoencoder.precision, self.engine.device)
        distill, engine = self.config.distill, self.engine
        self.teacher = Distillation(distill, self.spec, engine.device, engine.dtype) if distill.teacher else None
        if distill.teacher and (found := self._unlike(distill.teacher)):
            raise ConfigError(f"distill.teacher = {distill.teacher} means something else by its output: {'; '.join(found)}")
        self.ema = EMA(self.engine, train.ema_decay, train.ema_device)
        if state is not None:
            self.engine.load(state.read, state.values["kinds"], state.values["scalars"])
            self.ema.load(state.read, state.values["ema_updates"])
            self.step, self.samples, self.skipped = (state.values[key] for key in ("step", "samples", "skipped"))
            self._recent = [Outcome.from_dict(values) for values in state.values["recent"]]
            logger.info("resumed from %s", self.resume_from)

    def _unlike(self, source: str) -> list[str]:
        return unlike(source, self.config, self.autoencoder, self.spec)

    def train(self, stop: StopRequest | None = None) -> bool:
        """Train to the last step, with a checkpoint there, or to a signal that asks to stop. Others may then train the run.

        Args:
            stop: entered before the trainer was built, so that signals were heard meanwhile; default: one from now on.

        Returns:
            Whether the last step was reached and looked at; if not, there is a checkpoint to go on from.

        Raises:
            TrainingError: too many steps in a row were skipped; the message says where the weights from before them are.
            WorkerError: a process that loads clips has died.
        """
        train = self.config.train
        self._print_summary()
        bar = progress(total=train.steps, initial=self.step, desc="train", unit="step")
        entered = StopRequest() if stop is None else nullcontext(stop)
        with (
            self.heartbeat, self.lock, peers_may_die("training"),
            self._batches() as batches, self._metrics() as metrics, bar, entered as stop,
        ):  # fmt: skip
            self.heartbeat.before_end.append(metrics.close)
            stop.can_save = True
            done = self._look(self.monitor.undone(self.step), metrics, stop)  # what the process before this did not come to
            first = self.step
            while done and self.step < train.steps:
                outcome = self.optimizer_step(batches, stop.flag)
                self._unread.append(outcome)
                if self.skipped >= train.max_skipped:
                    self._give_up(first)
                if self.step == first + 1:
                    unmark_stopped(self.config.folder)
                bar.update()
                last = self.step == train.steps
                if self.step % train.log_every == 0 or last:
                    self._log(metrics, bar)
                with self.throughput.pause():
                    if saved := self.step % train.checkpoint_every == 0 or last:
                        self.save()
                    done = not outcome.stop and self._look(self.monitor.due(self.step), metrics, stop)
                    if not done and not saved:
                        self.save()
            if self.step < train.steps or self.monitor.undone(self.step):
                mark_stopped(self.config.folder, self.step, train.steps, stop.signal_name)
                return False
        unmark_stopped(self.config.folder)
        folder = self.config.folder
        logger.info("done: %d steps in %s; clips from it: sparsevid sample %s", self.step, folder.absolute(), folder)
        return True

    def _look(self, tasks: list[str], metrics: MetricWriter, stop: StopRequest) -> bool:
        """Let the monitor do its tasks; whether no signal to any rank came in between. All ranks call it together."""
        try:
            self.monitor.run(tasks, self.step, self.ema.state_dict, metrics, lambda: any_over_ranks(stop.flag))
        except Interrupted:
            return False
        return True

    @property
    def recent(self) -> list[Outcome]:
        """The steps that are not logged yet. It waits for the device."""
        self._recent, self._unread = self._recent + read(self._unread), []
        return self._recent

    def _log(self, metrics: MetricWriter, bar: tqdm) -> None:
        """Write the metrics of the steps since the last time. All ranks call it together."""
        speed = self.throughput.read()
        values = {"lr": learning_rate(self.config.train, self.step - 1), **speed, **metrics_of(self.recent)}
        self._recent = []
        said = f"loss {values.get('loss', math.nan):.4f}, {speed['clips_per_second']:.1f} clips/s"
        bar.set_postfix_str(said, refresh=False)  # shown when the bar's time comes: a log would get a line each
        metrics.scalars({f"train/{name}": value for name, value in values.items()} | {"data/redraws": self.redraws}, self.step)

    def save(self) -> Path:
        """Write a checkpoint of this step. All ranks call it together."""
        recent = [outcome.as_dict() for outcome in self.recent]
        state = {"step": self.step, "samples": self.samples, "skipped": self.skipped, **self.origin, "recent": recent}
        return save_checkpoint(self.config, self.spec, self.engine, self.ema, self.autoencoder, state)

    def optimizer_step(self, batches: Feed, stop: bool = False) -> Unread:
        """One step of the optimizer over all accumulation slots, or its omission, and what all ranks know of it."""
        lr, stages = learning_rate(self.config.train, self.step), len(self.schedule.stages) if self.schedule else 1
        sums = torch.zeros(2 * stages, device=self.engine.device)  # losses, and their number, by stage
        seen: list[SeenClip] = []  # no tensors: those of workers lie in shared memory, and each takes an open file
        redraws = 0
        for turn in range(self.accumulation):
            batch = next(batches)
            draw, loss = self._loss(batch, turn * world_size() + rank())
            redraws += int(batch["redraws"].count_nonzero())
            seen += seen_clips(batch, draw)
            del batch
            last = stop or self.step + 1 == self.config.train.steps
            ahead = batches.fetch if turn + 1 < self.accumulation or not last else lambda: None
            # A loss that is not finite makes a gradient that is not, whatever it depends on; the engine then skips the step.
            applied = self.engine.step(loss * torch.where(loss.isfinite(), 1.0, math.nan), lr, ahead)
            self.throughput.count(draw.index, self.micro_batch)
            sums[draw.index] += loss.detach()
            sums[stages + draw.index] += 1
        # On the CPU: no host waits for its device.
        redraws, stopped = sum_over_ranks(torch.tensor([redraws, int(stop)])).tolist()
        step = Unread(sum_over_ranks(sums), applied, self.engine.grad_norm, redraws, bool(stopped))
        self._count(step, seen)
        return step

    def _count(self, step: Unread, seen: list[SeenClip]) -> None:
        """Go on by a step; a skipped one touches no average, and is logged."""
        self.samples += self.config.train.global_batch
        if step.redraws:
            self.redraws += step.redraws
            log_failed(seen, self.dataset.videos, self.failed)
        self.skipped = 0 if step.applied else self.skipped + 1
        if step.applied:
            self.ema.update()
            self.norms.add(step.grad_norm, self.step)
        else:
            log_skipped(seen, self.dataset.videos, self.step, *read([step]))
        self.step += 1

    def _give_up(self, first: int) -> NoReturn:
        """End the run after too many skipped steps, with the weights from before them. All ranks call it together.

        Args:
            first: the step that this process began with.
        """
        skipped, self.skipped = self.skipped, 0  # a run that is started again may skip as many
        if skipped >= self.step - first:  # a checkpoint of the same weights again would only push out an older one
            kept = "No step was applied since the start of this process"
        else:
            try:
                kept = f"The weights from before them are in {self.save()}"
            except CheckpointError as error:
                kept = f"A checkpoint of the weights from before them could not be written: {error}"
        raise TrainingError(
            f"{skipped} steps in a row were skipped, the last is {self.step - 1}: losses or gradients are not finite. "
            f"{kept}. Try a lower train.lr, gradient clipping, or another precision"
        )

    def _loss(self, batch: dict[str, Tensor], slot: int) -> tuple[Draw, Tensor]:
        """Stage and times of a micro-batch, and its mean loss: functions of (seed, step, slot) and the clips."""
        slots = world_size() * self.accumulation
        key = {"seed": self.config.seed, "step": self.step, "slot": slot}
        x0 = self._latents(batch["clip"], key)
        draw = draw_times(self.objective, self.schedule, len(x0), slots=slots, **key)
        cond: dict[str, Any] = {"grid": draw.stage.grid} if self.schedule is not None else {}
        if self.config.data.images:
            cond["images"] = self.config.data.images
        device = self.engine.device
        dropped = draw_dropped(batch["label"].shape, self.config.objective.label_dropout, **key)
        condition = told(self.spec, batch, dropped, self.null)
        cond |= {name: to_device(value, device) for name, value in condition.items()}
        u, noise = to_device(draw.u, device), draw_noise(x0, **key)
        if self.teacher is None:
            return draw, self.objective.loss(self.engine, x0, u, noise, **cond).mean()
        student = Recorder(self.engine, self.teacher.feature_layers)
        loss = self.objective.loss(student, x0, u, noise, **cond)
        return draw, (loss + self.teacher.loss(student.output, student.features, student.x, student.t, **student.cond)).mean()

    @torch.no_grad()
    def _latents(self, clips: Tensor, key: dict[str, int]) -> Tensor:
        """Latents of clips, or of the moments that a cache holds in their place; drawn from the posterior if there is one."""
        if not self.autoencoder.cacheable:
            return self.encoder.encode(clips)
        moments = clips if self.config.data.latents else self.encoder.moments(clips)
        return self.encoder.latents(moments, keyed_generator(Purpose.POSTERIOR, *key.values()))

    @contextmanager
    def _batches(self) -> Iterator[Feed]:
        order, workers = SampleOrder(len(self.dataset), self.config.seed), self.config.data.workers
        loader = build_loader(self.dataset, order, self.micro_batch, rank(), world_size(), self.samples, workers)
        with ExitStack() as stack:
            with unheard_by_children():
                batches = stack.enter_context(running(loader))
            yield Feed(batches, self.engine.device, self.throughput.waiting)

    def _metrics(self) -> MetricWriter:
        folder, wandb = self.config.folder, self.config.monitor.wandb
        with unheard_by_children():
            return MetricWriter(folder, step=self.step, wandb=wandb, config=asdict(self.config))

    def _data_line(self) -> str:
        data, kind = self.config.data, type(self.dataset.source).__name__
        stills = f" + {data.images} stills" if data.images else ""
        videos = f"{len(self.dataset)} videos of {self.manifest.root}, split {data.split}"
        return f"{videos}; clips of {data.frames}{stills} frames, read by {kind}"

    def _print_summary(self) -> None:
        train, stages = self.config.train, self.schedule.stages if self.schedule else ()
        rows = [
            ["run", str(self.config.folder)],
            ["data", self._data_line()],
            ["latents", "{} channels, {} frames of {}×{}".format(self.spec.in_channels, *self.spec.input_size)],
            ["layout", f"{self.spec.layout}, {self.spec.hidden_size} channels"],
            ["tokens", f"dense {self.spec.dense_grid()}, sparse {', '.join(str(stage.grid) for stage in stages) or 'none'}"],
            ["objective", self.config.objective.kind],
            ["batch", f"{train.global_batch} = {world_size()} ranks × {self.accumulation} slots × {self.micro_batch} clips"],
            ["engine", f"DeepSpeed ZeRO-{self.engine.stage}, {train.optimizer}, {train.precision}, {self.engine.device}"],
            ["steps", f"{self.step} of {train.steps} done"],
        ]
        model = self.config.model
        print_table("environment", [], describe_environment(self.ranks, model.attention, self.config.data.decoder))
        print_table("training", [], rows)
