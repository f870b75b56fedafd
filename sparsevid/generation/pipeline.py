"""From a checkpoint to clips: what a notebook calls.

pipeline = VideoPipeline.from_pretrained("runs/demo/sparse")
clips = pipeline(num=4, steps=50, seed=0)  # uint8 (4, 3, T, H, W)
pipeline.save(clips, "samples")

Thousands of clips, on any number of processes, are made by `sparsevid.generation`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder
from sparsevid.diffusion.samplers import FLOW_SAMPLERS, SAMPLERS, Model, OnStep, call_once
from sparsevid.generation.networks import Networks, first_calls
from sparsevid.generation.noise import SampleNoise, noise_of_batches
from sparsevid.generation.pretrained import open_pretrained
from sparsevid.generation.sampling import (
    Sampling,
    check_finite,
    check_sampling,
    class_labels,
    class_names,
    listed_savings,
    sampled_size,
    time_interval,
    token_schedule,
    whole_number,
)
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.build import schedule_from_config
from sparsevid.runs.config import RunConfig
from sparsevid.savings.base import Policy, SavingError
from sparsevid.savings.tally import Tally
from sparsevid.sparsity.schedule import TokenSchedule
from sparsevid.system.checksums import file_sha256
from sparsevid.system.distributed import default_device
from sparsevid.system.logging import get_logger, progress
from sparsevid.system.precision import set_float32
from sparsevid.videos.write import write_clip

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEFAULT_FPS = 8.0
logger = get_logger(__name__)


class VideoPipeline:
    """A model with its autoencoder, token schedule and run config.

    Args:
        model: in evaluation mode. It computes in the type of its weights; samplers always in float32.
        autoencoder: decodes its latents.
        config: of the run that trained it.
        schedule: the run's token schedule, None for a dense model, or a sparse one that knows of none.
        compile: compile the model layer by layer, which changes rounding.
        graph: on a GPU record the forward of each stage, compiled or not, as a CUDA graph and replay it, which changes no bit.
        savings: of its calls, where they name none; default: those of the config.
    """

    def __init__(
        self,
        model: DiffusionTransformer,
        autoencoder: Autoencoder,
        config: RunConfig,
        schedule: TokenSchedule | None,
        *,
        compile: bool = False,
        graph: bool = True,
        savings: Sequence[str] | str | None = None,
    ) -> None:
        self.model, self.autoencoder, self.config, self.schedule = model, autoencoder, config, schedule
        self.compiled, self.graph, self.tf32 = compile, graph, False
        self.weights_file: Path | None = None
        self.autoencoder_fingerprint: str | None = None
        self._savings = None if savings is None else listed_savings(savings)
        self._networks = Networks(model, compile)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        weights: str | None = None,
        device: torch.device | str | None = None,
        dtype: str = "float32",
        tf32: bool = False,
        compile: bool = False,
        graph: bool = True,
        savings: Sequence[str] | str | None = None,
        autoencoder: str | Autoencoder | None = None,
    ) -> "VideoPipeline":
        """Load a trained model.

        Args:
            source: a run's folder (its newest checkpoint is taken), a checkpoint, an exported folder, a hub id, or the folder
                of a converted public checkpoint, which needs `autoencoder`.
            weights: of a checkpoint `ema`, the default, or `model`.
            device: default: the GPU where there is one.
            dtype: `float32` or `bfloat16`, of the model and of an autoencoder `kl`.
            tf32: on a GPU, let float32 products and convolutions of this process round their inputs to TF32.
            compile, graph, savings: see the class.
            autoencoder: in place of the source's own: `kl:SOURCE`, `linear:FOLDER`, `pixels`, or one that is loaded.

        Raises:
            FileNotFoundError: no model there; the message says what is missing.
            ValueError: parts that do not belong together, a config of another version, or another dtype.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype = {dtype!r}; accepted are {', '.join(DTYPES)}")
        set_float32(tf32)
        parts = open_pretrained(source, weights, autoencoder)
        spec, config, device = parts.model.spec, parts.config, torch.device(device or default_device())
        schedule = None
        if spec.is_sparse and parts.has_config:
            schedule = schedule_from_config(config.schedule, spec.dense_grid(), config.model.preset)
        model, first_stage = parts.model.to(device, DTYPES[dtype]), parts.autoencoder.place(device, DTYPES[dtype])
        model.fuse_modulation()
        pipeline = cls(model, first_stage, config, schedule, compile=compile, graph=graph, savings=savings)
        pipeline.tf32 = tf32
        pipeline.weights_file, pipeline.autoencoder_fingerprint = parts.weights_file, parts.autoencoder_fingerprint
        return pipeline

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return next(self.model.parameters()).dtype

    @property
    def graphed(self) -> bool:
        """Whether forwards are replayed as CUDA graphs: on a GPU, unless they are not to be."""
        return self.graph and self.device.type == "cuda"

    @property
    def fps(self) -> float:
        """Frames a second of the generated clips."""
        return self.config.record.fps or DEFAULT_FPS

    @property
    def classes(self) -> list[str]:
        """Names of the model's classes by label, numbers where none are known; empty for an unconditional model."""
        return class_names(self.config.record.classes, self.model.spec.num_classes)

    @property
    def default_sampler(self) -> str:
        """The sampler of the config, else the objective's own."""
        return self.config.sample.sampler or ("euler" if self.config.objective.kind == "flow" else "ddim")

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the model's file, spec and autoencoder, as they were loaded: the same in any `dtype`.

        Raises:
            ValueError: the model was not loaded by `from_pretrained`.
        """
        if self.weights_file is None:
            raise ValueError("a model that was not loaded by from_pretrained has no fingerprint")
        parts = [file_sha256(self.weights_file), self.model.spec.to_dict(), self.autoencoder_fingerprint]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def __call__(self, num: int = 4, *, show_progress: bool = True, **options) -> Tensor:
        """Generate clips 0 … num − 1; `sampling` lists the options, and `batches` that of a callback, `on_step`.

        Returns:
            uint8 (num, 3, T, H, W), on the CPU.

        Raises:
            ValueError: no clip, or as `sampling`.
            GenerationError: as `denoise`.
        """
        if whole_number("num", num) < 1:
            raise ValueError(f"num is at least 1, got {num}")
        return torch.cat([clips for _, clips in self.batches(range(num), show_progress=show_progress, **options)])

    def save(self, clips: Tensor, folder: str | Path, format: str = "mp4") -> list[Path]:
        """Write clips as 000000.mp4, 000001.mp4, …

        Args:
            clips: uint8 (N, 3, T, H, W).
            folder: made if it is missing.
            format: `ffv1`, `mp4`, `gif`, `frames` or `npz`.

        Returns:
            The files, or folders of frames.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return [write_clip(folder / f"{index:06d}", clip, self.fps, format) for index, clip in enumerate(clips)]

    def sampling(
        self,
        *,
        classes: Sequence[str | int] | str | int | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        batch: int = 8,
        guidance: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        guidance_channels: int | None = None,
        schedule: str | None = None,
        savings: Sequence[str] | str | None = None,
        eta: float = 0.0,
        size: Sequence[int] | None = None,
        frames: int | None = None,
    ) -> Sampling:
        """Settings with all that is left out filled in: from the run's config, where it says something.

        Args:
            classes: names or labels to go through in turn, or one for all; default: all, balanced, in an order drawn by the
                seed. Digits that are a class's name mean this class.
            sampler: `ddpm`, `ddim` or `dpm++` of a diffusion model, `euler` or `heun` of a flow model.
            steps: of the sampler.
            seed: of the whole set; the noise of sample i depends on (seed, i).
            batch: clips denoised together.
            guidance: scale of classifier-free guidance, 1 = none; others for models that learned "no class" alone.
            guidance_interval: diffusion times (low, high), of 0 … 1, 1 = noise, within which guidance acts; of no effect at
                scale 1, as the next.
            guidance_channels: number of latent channels that are guided.
            schedule: of a sparse model `paper` (its run's schedule), `constant` (its default grid), `off` (all tokens).
            savings: what calls of the model leave out, one or several such as `static:every=2`; none: an empty list.
            eta: noise of `ddim`.
            size: (height, width) in pixels, if not as trained.
            frames: if not as trained.

        Raises:
            ValueError: the first setting that does not fit the model, with what is accepted.
        """
        spec, defaults, seed = self.model.spec, self.config.sample, whole_number("seed", seed)
        guided = bool(spec.num_classes)  # else the config's interval and channels mean nothing
        interval = defaults.guidance_interval if guidance_interval is None and guided else guidance_interval
        channels = defaults.guidance_channels if guidance_channels is None and guided else guidance_channels
        own = self._savings if savings is None else listed_savings(savings)
        named = Sampling(
            sampler=sampler or self.default_sampler,
            steps=whole_number("steps", defaults.steps if steps is None else steps),
            seed=seed,
            batch=whole_number("batch", batch),
            labels=class_labels(classes, self.config.record.classes, spec.num_classes, seed),
            guidance=float(defaults.guidance if guidance is None else guidance),
            guidance_interval=None if interval is None else time_interval(interval),
            guidance_channels=None if channels is None else whole_number("guidance_channels", channels),
            schedule=schedule or ("off" if not spec.is_sparse else "constant" if self.schedule is None else "paper"),
            savings=listed_savings(defaults.savings) if own is None else own,
            eta=float(eta),
            input_size=sampled_size(spec, self.autoencoder, size, frames),
        )
        chosen = check_sampling(named, spec, self.config.objective)
        try:
            self.denoiser(chosen)  # raises for an interval, a grid or a saving that cannot be
        except SavingError as error:
            whose = " (by sample.savings of the run's config; --saving none, in Python savings=[], takes none)"
            raise SavingError(f"{error}{whose if own is None else ''}") from error
        self._networks.tell_dropped(named.savings, chosen)
        return chosen

    def batches(
        self, indices: Sequence[int], *, show_progress: bool = True, on_step: OnStep | None = None, **options
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Generate the clips of the given global indices, batch by batch.

        Args:
            indices: global indices; sample i depends on (seed, i) alone.
            show_progress: a bar over the calls of the model.
            on_step: see `denoise`; of each batch.
            options: see `sampling`.

        Yields:
            Indices of a batch and its clips, uint8 (B, 3, T, H, W), on the CPU.

        Raises:
            ValueError: as `sampling`.
            GenerationError: as `denoise`.
        """
        sampling = self.sampling(**options)
        self.warn_of_size(sampling)
        batches = [list(indices[first : first + sampling.batch]) for first in range(0, len(indices), sampling.batch)]
        shown = (
            nullcontext() if not show_progress else progress(total=len(batches) * sampling.steps, desc="sample", unit="step")
        )
        with shown as bar:
            told = [each for each in (None if bar is None else lambda *_: bar.update(), on_step) if each is not None]
            for chosen, noise in zip(batches, self.noises(batches, sampling), strict=True):
                yield chosen, self.decode(self.denoise(chosen, sampling, lambda *step: [each(*step) for each in told], noise))

    def noises(self, batches: Iterable[Sequence[int]], sampling: Sampling) -> Iterator[SampleNoise]:
        """The noise of one batch of samples after another, for `denoise`; for a GPU it is drawn while the model runs."""
        shape, draws_any = (self.model.spec.in_channels, *sampling.input_size), sampling.sampler == "ddpm" or sampling.eta
        return noise_of_batches(batches, shape, sampling.seed, self.device, sampling.steps - 1 if draws_any else 0)

    @torch.inference_mode()
    def denoise(
        self,
        indices: Sequence[int],
        sampling: Sampling,
        on_step: OnStep | None = None,
        noise: SampleNoise | None = None,
        *,
        savings: Sequence[Policy] | None = None,
        tally: Tally | None = None,
    ) -> Tensor:
        """Latents of the samples with these global indices, in one batch.

        Args:
            sampling: settings out of the method of this name.
            on_step: called after each step of the sampler with its number from 0, the diffusion time that the latents are at by
                now (0 after the last), and the latents (B, C, T, H, W), which it may read. What it raises ends the sampling.
            noise: of these samples, out of `noises`, if it is drawn already.
            savings, tally: as of `denoiser`.

        Returns:
            (B, C, T, H, W), on the model's device.

        Raises:
            GenerationError: samples that are not finite, which would decode to black clips.
            SavingError: as `denoiser`.
        """
        noise = next(self.noises([indices], sampling)) if noise is None else noise
        options: dict[str, Any] = {} if sampling.sampler in FLOW_SAMPLERS else {"noise": noise}
        if sampling.eta:
            options["eta"] = sampling.eta
        options |= self._condition(indices, sampling)
        denoiser = self.denoiser(sampling, savings=savings, tally=tally)
        latents = SAMPLERS[sampling.sampler](denoiser, noise.start(), sampling.steps, on_step=on_step, **options)
        check_finite(latents, indices)
        return latents

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, T, H, W) → uint8 (B, 3, g·T, f·H, f·W) on the CPU, clip by clip: memory does not grow with B."""
        clips = [self.autoencoder.decode(latent).cpu() for latent in latents.split(1)]
        return clips[0] if len(clips) == 1 else torch.cat(clips)

    def denoiser(
        self,
        sampling: Sampling | None = None,
        *,
        savings: Sequence[Policy] | None = None,
        tally: Tally | None = None,
    ) -> Model:
        """The model as samplers call it, for one sampling of one batch: with savings, its token schedule, and guidance.

        Args:
            sampling: default: the run's own settings.
            savings: in place of those of the settings.
            tally: counts what is computed.

        Raises:
            SavingError: savings that do not fit the model or each other, or lack what they need.
        """
        sampling = self.sampling() if sampling is None else sampling
        savings = self.policies(sampling) if savings is None else savings
        schedule = self.token_schedule(sampling)
        return self._networks.denoiser(sampling, schedule, savings, graphed=self.graphed, tally=tally)

    def policies(self, sampling: Sampling) -> list[Policy]:
        """The savings of these settings, with what was fitted to the model: in the folder `savings` beside its weights.

        Raises:
            SavingError: one that does not fit the model, or lacks what is fitted to it.
        """
        return self._networks.policies(sampling.savings, self.weights_file)

    def token_schedule(self, sampling: Sampling) -> TokenSchedule | None:
        """The sparse grids over diffusion time, at the size of the settings; None for a dense model."""
        return token_schedule(sampling, self.model.spec, self.schedule)

    def warm_up(self, sampling: Sampling) -> None:
        """Run each graph that these settings need, and the decoder: compilation and allocation are over afterwards."""
        condition = self._condition(range(sampling.batch), sampling)
        calls = first_calls(sampling, self.token_schedule(sampling), self.graphed)
        with torch.inference_mode():
            x = torch.zeros(sampling.batch, self.model.spec.in_channels, *sampling.input_size, device=self.device)
            for settings, times in calls:
                model = self.denoiser(settings)
                for u in times:
                    call_once(sampling.sampler, model, x, u, **condition)
            self.decode(x[:1])

    def warn_of_size(self, sampling: Sampling) -> None:
        """Log what the model was trained on, if the settings have another size."""
        sizes = [self.model.spec.input_size, sampling.input_size]
        if sizes[0] != sizes[1]:
            shown = [f"{t} frames of {height}×{width}" for t, height, width in map(self.autoencoder.clip_size, sizes)]
            logger.warning("the model was trained on %s pixels, and is asked for %s: quality may suffer", *shown)

    def _condition(self, indices: Sequence[int], sampling: Sampling) -> dict[str, Tensor]:
        if not sampling.labels:
            return {}
        return {"labels": torch.tensor([sampling.label(index) for index in indices], device=self.device)}
