"""From a checkpoint to clips: what a notebook calls.

    pipeline = VideoPipeline.from_pretrained("runs/demo/sparse")
    clips = pipeline(num=4, steps=50, seed=0)  # uint8 (4, 3, T, H, W)
    pipeline.save(clips, "samples")

Thousands of clips, on any number of processes, are made by `sparsevid.generation`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder
from sparsevid.diffusion.samplers import FLOW_SAMPLERS, SAMPLERS, Model, OnStep, call_once
from sparsevid.generation.networks import Condition, first_calls
from sparsevid.generation.noise import SampleNoise, noise_of_batches
from sparsevid.generation.pretrained import open_pretrained
from sparsevid.generation.sampling import Sampling, check_finite, whole_number
from sparsevid.generation.trained import TrainedModel
from sparsevid.runs.build import schedule_from_config
from sparsevid.savings.base import Policy
from sparsevid.savings.tally import Tally
from sparsevid.system.distributed import default_device
from sparsevid.system.logging import progress
from sparsevid.system.precision import set_float32
from sparsevid.text.encoder import TextEncoder
from sparsevid.videos.write import write_clip

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class VideoPipeline(TrainedModel):
    """Makes clips of a trained model; what it takes, and which settings there are, see `TrainedModel`."""

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
        text_encoder: str | TextEncoder | None = None,
    ) -> "VideoPipeline":
        """Load a trained model.

        Args:
            source: a run's folder (its newest checkpoint is taken), a checkpoint, an exported folder, a hub id, or the folder
                of a converted public checkpoint, which needs `autoencoder`.
            weights: of a checkpoint `ema`, the default, or `model`.
            device: default: the GPU where there is one.
            dtype: `float32` or `bfloat16`, of the model and of an autoencoder `kl`.
            tf32: on a GPU, let float32 products and convolutions of this process round their inputs to TF32.
            compile, graph, savings, text_encoder: see the class.
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
        options: dict[str, Any] = {"compile": compile, "graph": graph, "savings": savings, "text_encoder": text_encoder}
        pipeline = cls(model.fuse_modulation(), first_stage, config, schedule, **options)
        pipeline.tf32 = tf32
        pipeline.weights_file, pipeline.autoencoder_fingerprint = parts.weights_file, parts.autoencoder_fingerprint
        return pipeline

    def __call__(self, num: int = 4, *, show_progress: bool = True, **options: Any) -> Tensor:
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

    def save(
        self, clips: Tensor, folder: str | Path, format: str = "mp4", *, prompts: Sequence[str] | str | None = None
    ) -> list[Path]:
        """Write clips as 000000.mp4, 000001.mp4, …

        Args:
            clips: uint8 (N, 3, T, H, W).
            folder: made if it is missing.
            format: `ffv1`, `mp4`, `gif`, `frames` or `npz`.
            prompts: that the clips were made of, in turn; each clip's is written into its file (see `write_clip`).

        Returns:
            The files, or folders of frames.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        titles = [None] if not prompts else [prompts] if isinstance(prompts, str) else list(prompts)
        return [
            write_clip(folder / f"{index:06d}", clip, self.fps, format, titles[index % len(titles)])
            for index, clip in enumerate(clips)
        ]

    def batches(
        self, indices: Sequence[int], *, show_progress: bool = True, on_step: OnStep | None = None, **options: Any
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
        self.encode_prompts(sampling, indices)
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
        condition = self.condition(indices, sampling)
        denoiser = self.denoiser(sampling, condition, savings=savings, tally=tally)
        sampler, options = SAMPLERS[sampling.sampler], {**options, **condition.given}
        latents = sampler(denoiser, noise.start(), sampling.steps, on_step=on_step, **options)
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
        condition: Condition | None = None,
        *,
        savings: Sequence[Policy] | None = None,
        tally: Tally | None = None,
    ) -> Model:
        """The model as samplers call it, for one sampling of one batch: with savings, its token schedule, and guidance.

        Args:
            sampling: default: the run's own settings.
            condition: of the batch, out of `condition`, for what guidance compares with; default: that of sample 0.
            savings: in place of those of the settings.
            tally: counts what is computed.

        Raises:
            SavingError: savings that do not fit the model or each other, or lack what they need.
        """
        sampling = self.sampling() if sampling is None else sampling
        savings = self.policies(sampling) if savings is None else savings
        null = (self.condition([0], sampling) if condition is None else condition).null
        schedule = self.token_schedule(sampling)
        return self._networks.denoiser(sampling, schedule, savings, null, graphed=self.graphed, tally=tally)

    @torch.inference_mode()
    def warm_up(self, sampling: Sampling, indices: Sequence[int] | None = None) -> None:
        """Run each graph that these settings need, and the decoder: compilation and allocation are over afterwards.

        Args:
            sampling: settings out of the method of this name.
            indices: samples of a batch, whose prompts are taken; default: the first ones.
        """
        condition = self.condition(range(sampling.batch) if indices is None else indices, sampling)
        x = torch.zeros(sampling.batch, self.model.spec.in_channels, *sampling.input_size, device=self.device)
        for settings, times in first_calls(sampling, self.token_schedule(sampling), self.graphed):
            model = self.denoiser(settings, condition)
            for u in times:
                call_once(sampling.sampler, model, x, u, **condition.given)
        self.decode(x[:1])
