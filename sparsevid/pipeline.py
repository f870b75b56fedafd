"""From a checkpoint to clips: what a notebook calls.

pipeline = VideoPipeline.from_pretrained("runs/demo/sparse")
clips = pipeline(num=4, steps=50, seed=0)  # uint8 (4, 3, T, H, W)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sparsevid.autoencoder import Autoencoder, load_autoencoder
from sparsevid.build import schedule_from_config
from sparsevid.checkpoints import newest_good
from sparsevid.config import RunConfig, load_config
from sparsevid.diffusion.samplers import DIFFUSION_SAMPLERS, FLOW_SAMPLERS, SAMPLERS, Model
from sparsevid.diffusion.wrappers import with_guidance, with_token_schedule
from sparsevid.logging import progress
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.seeding import Purpose, keyed_generator
from sparsevid.sparsity.schedule import TokenSchedule


class SampleNoise:
    """Unit normal noise for a batch of samples, each from its own generator: sample i is the same in any batch.

    Args:
        shape: of one sample, (C, T, H, W).
        indices: global indices of the batch's samples.
        seed: of the whole set.
    """

    def __init__(self, shape: Sequence[int], indices: Sequence[int], seed: int, device: torch.device) -> None:
        self.shape, self.device = tuple(shape), device
        self.starts = [keyed_generator(Purpose.SAMPLE_START, seed, index) for index in indices]
        self.steps = [keyed_generator(Purpose.SAMPLE_STEP, seed, index) for index in indices]

    def start(self) -> Tensor:
        """The noise that sampling starts from, (B, C, T, H, W)."""
        return torch.stack([torch.randn(self.shape, generator=each) for each in self.starts]).to(self.device)

    def __call__(self) -> Tensor:
        """Fresh noise for a step, (B, C, T, H, W)."""
        return torch.stack([torch.randn(self.shape, generator=each) for each in self.steps]).to(self.device)


class VideoPipeline:
    """A model with its autoencoder, token schedule and run config.

    Args:
        model: in evaluation mode.
        autoencoder: decodes its latents.
        config: of the run that trained it.
        schedule: the token schedule, None for a dense model.
    """

    def __init__(
        self, model: DiffusionTransformer, autoencoder: Autoencoder, config: RunConfig, schedule: TokenSchedule | None
    ) -> None:
        self.model, self.autoencoder, self.config, self.schedule = model, autoencoder, config, schedule

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, weights: str = "ema", device: torch.device | str | None = None
    ) -> "VideoPipeline":
        """Load a checkpoint, or the newest one of a run's folder.

        Args:
            weights: `ema` or `model`.
            device: default: the GPU where there is one.

        Raises:
            FileNotFoundError: no checkpoint there; the message says what is missing.
            ValueError: weights that do not fit the checkpoint's own config.json.
        """
        folder = find_checkpoint_folder(Path(path))
        config = load_config(folder / "config.yaml")
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = load_model(folder / weights).to(device).eval()
        autoencoder = load_autoencoder(folder / "autoencoder", config.autoencoder.source).to(device)
        if autoencoder.channels != model.spec.in_channels:
            raise ValueError(
                f"{folder}: the autoencoder gives {autoencoder.channels} channels, the model takes {model.spec.in_channels}: "
                "the parts of this checkpoint do not belong together"
            )
        dense, preset = model.spec.dense_grid(), config.model.preset
        schedule = schedule_from_config(config.schedule, dense, preset) if model.spec.is_sparse else None
        return cls(model, autoencoder, config, schedule)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def fps(self) -> float:
        """Frames a second of the generated clips."""
        return self.config.record.fps or 8.0

    @property
    def default_sampler(self) -> str:
        """The sampler of the config, else the objective's own."""
        return self.config.sample.sampler or ("euler" if self.config.objective.kind == "flow" else "ddim")

    def __call__(self, num: int, **options) -> Tensor:
        """Generate clips; see `batches` for the options.

        Returns:
            uint8 (num, 3, T, H, W).
        """
        return torch.cat([clips for _, clips in self.batches(range(num), **options)])

    def batches(
        self,
        indices: Sequence[int],
        *,
        classes: Sequence[int] | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        seed: int = 0,
        batch: int = 8,
        show_progress: bool = True,
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Generate the clips of the given global indices, batch by batch.

        Args:
            indices: global indices; sample i depends on (seed, i) alone.
            classes: labels to go through in turn; default: all, balanced. Sample i has class classes[i mod length].
            steps: sampling steps; default: the config's.
            sampler: `ddpm`, `ddim`, `euler`; default: the config's.
            guidance: scale of classifier-free guidance, 1 = none; class-conditional models only.
            seed: of the whole set.
            batch: clips denoised together.
            show_progress: a bar over batches × steps.

        Yields:
            Indices of a batch and its clips, uint8 (B, 3, T, H, W).

        Raises:
            ValueError: a sampler that does not fit the model's objective, an unknown class, guidance of an unconditional model.
        """
        sampler, steps = sampler or self.default_sampler, self.config.sample.steps if steps is None else steps
        self._check_sampler(sampler)
        model = self.denoiser(self.config.sample.guidance if guidance is None else guidance)
        spec, device = self.model.spec, self.device
        labels = self._labels(indices, classes)
        bar = progress(total=-(-len(indices) // batch) * steps, desc="sample", unit="step") if show_progress else None
        for first in range(0, len(indices), batch):
            chosen = list(indices[first : first + batch])
            noise = SampleNoise((spec.in_channels, *spec.input_size), chosen, seed, device)
            cond = {} if labels is None else {"labels": labels[first : first + batch].to(device)}
            options = {} if sampler in FLOW_SAMPLERS else {"noise": noise}
            with torch.inference_mode():
                ticks = (lambda steps: _ticking(steps, bar)) if bar is not None else iter
                latents = SAMPLERS[sampler](model, noise.start(), steps, progress=ticks, **options, **cond)
                clips = self.autoencoder.decode(latents).cpu()
            yield chosen, clips
        if bar is not None:
            bar.close()

    def denoiser(self, guidance: float = 1.0) -> Model:
        """The model as samplers call it: with the grid of its token schedule, and with guidance."""
        model: Model = self.model
        if self.schedule is not None:
            model = with_token_schedule(model, self.schedule)
        if guidance == 1.0:
            return model
        if not self.model.spec.num_classes:
            raise ValueError(f"guidance {guidance} needs a class-conditional model; this one is unconditional (guidance=1)")
        return with_guidance(model, guidance, null_label=self.model.spec.num_classes)

    def _check_sampler(self, sampler: str) -> None:
        fitting = FLOW_SAMPLERS if self.config.objective.kind == "flow" else DIFFUSION_SAMPLERS
        if sampler not in fitting:
            raise ValueError(
                f"sampler {sampler!r} does not fit a model trained with objective {self.config.objective.kind!r}; "
                f"accepted are {', '.join(fitting)}"
            )

    def _labels(self, indices: Sequence[int], classes: Sequence[int] | None) -> Tensor | None:
        count = self.model.spec.num_classes
        if not count:
            if classes is not None:
                raise ValueError("classes were given, but the model is unconditional")
            return None
        classes = list(range(count)) if classes is None else list(classes)
        wrong = [label for label in classes if not 0 <= label < count]
        if wrong or not classes:
            raise ValueError(f"classes {wrong or classes} are not labels of this model: it has 0 … {count - 1}")
        return torch.tensor([classes[index % len(classes)] for index in indices])


def find_checkpoint_folder(path: Path) -> Path:
    """`path` itself if it is a checkpoint, else the newest good checkpoint of the run that it is.

    Raises:
        FileNotFoundError: neither.
    """
    if (path / "config.yaml").is_file() and (path / "autoencoder").is_dir():
        return path
    found = newest_good(path, for_resuming=False)
    if found is None:
        raise FileNotFoundError(
            f"{path} is neither a checkpoint (config.yaml, ema/, autoencoder/) nor a run with a good checkpoints/step-…"
        )
    return found


def load_model(folder: Path) -> DiffusionTransformer:
    """Read config.json and safetensors of `folder`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the weights do not fit the config.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: not a model that was saved here")
    try:
        return DiffusionTransformer.from_pretrained(folder, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{folder}: the weights do not fit config.json: {error}") from error


def _ticking(steps: Sequence, bar) -> Iterator:
    for step in steps:
        yield step
        bar.update()
