"""A model that was trained, what belongs to it, and the settings of samples that fit it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from sparsevid.autoencoder.base import Autoencoder
from sparsevid.generation.networks import Condition, Networks
from sparsevid.generation.prompts import PromptFeatures, text_settings
from sparsevid.generation.sampling import (
    Sampling,
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
from sparsevid.runs.config import RunConfig
from sparsevid.savings.base import Policy, SavingError
from sparsevid.sparsity.schedule import TokenSchedule
from sparsevid.system.checksums import file_sha256, json_sha256
from sparsevid.system.logging import get_logger
from sparsevid.text.encoder import EncodedText, TextEncoder

DEFAULT_FPS = 8.0
logger = get_logger(__name__)


class TrainedModel:
    """A model with its autoencoder, token schedule and run config, and what may be asked of them.

    Args:
        model: in evaluation mode. It computes in the type of its weights; samplers always in float32.
        autoencoder: decodes its latents.
        config: of the run that trained it.
        schedule: the run's token schedule, None for a dense model, or a sparse one that knows of none.
        compile: compile the model layer by layer, which changes rounding.
        graph: on a GPU record the forward of each stage, compiled or not, as a CUDA graph and replay it, which changes no bit.
        savings: of its calls, where they name none; default: those of the config.
        text_encoder: of a model of text, what encodes prompts: a folder, a hub id, or one that is loaded; default: that of the
            config. One that is named is loaded when a prompt is not known yet, and let go before the model runs.
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
        text_encoder: str | TextEncoder | None = None,
    ) -> None:
        self.model, self.autoencoder, self.config, self.schedule = model, autoencoder, config, schedule
        self.compiled, self.graph, self.tf32 = compile, graph, False
        self.weights_file: Path | None = None
        self.autoencoder_fingerprint: str | None = None
        self._savings = None if savings is None else listed_savings(savings)
        self._networks = Networks(model, compile)
        self.prompts = PromptFeatures(model, text_encoder, config) if model.spec.conditioned_on == "text" else None

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
        return self.config.sampler

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the model's file, spec and autoencoder, as they were loaded: the same in any `dtype`.

        Raises:
            ValueError: the model was not loaded by `from_pretrained`.
        """
        if self.weights_file is None:
            raise ValueError("a model that was not loaded by from_pretrained has no fingerprint")
        parts = [file_sha256(self.weights_file), self.model.spec.to_dict(), self.autoencoder_fingerprint]
        return json_sha256(parts, sort_keys=True)

    def sampling(
        self,
        *,
        classes: Sequence[str | int] | str | int | None = None,
        prompts: Sequence[str] | str | None = None,
        negative: str | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        batch: int = 8,
        guidance: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        guidance_channels: int | None = None,
        null_caption: str | None = None,
        null_mask: str | None = None,
        padding: str | None = None,
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
            prompts: of a model of text, to go through in turn, or one for all.
            negative: a text that guidance compares with, in place of "no prompt".
            sampler: `ddpm`, `ddim` or `dpm++` of a diffusion model, `euler` or `heun` of a flow model.
            steps: of the sampler.
            seed: of the whole set; the noise of sample i depends on (seed, i).
            batch: clips denoised together.
            guidance: scale of classifier-free guidance, 1 = none; others for models that learned "no class" alone.
            guidance_interval: diffusion times (low, high), of 0 … 1, 1 = noise, within which guidance acts; of no effect at
                scale 1, as the next.
            guidance_channels: number of latent channels that are guided.
            null_caption: whose features mean "no prompt": those of the model's `file` (default, where it has any), or those of
                the empty text, `encoded`.
            null_mask: which of its tokens are heard: its `own`, or as many as of the `prompt` beside it, as the original PixArt
                has it; default: `text.null_mask` of the config, and of `negative` its own.
            padding: `masked`, so that a prompt is heard alone, or `heard`, as the public pipeline of Latte-1 has it: a single
                prompt, and "no prompt" with it, is cut to the prompt's tokens; in a batch all hear zeros behind them.
            schedule: of a sparse model `paper` (its run's schedule), `constant` (its default grid), `off` (all tokens).
            savings: what calls of the model leave out, one or several such as `static:every=2`; none: an empty list.
            eta: noise of `ddim`.
            size: (height, width) in pixels, if not as trained.
            frames: if not as trained.

        Raises:
            ValueError: the first setting that does not fit the model, with what is accepted.
        """
        spec, defaults, seed = self.model.spec, self.config.sample, whole_number("seed", seed)
        guided = bool(spec.conditioned_on)  # else the config's interval and channels mean nothing
        interval = defaults.guidance_interval if guidance_interval is None and guided else guidance_interval
        channels = defaults.guidance_channels if guidance_channels is None and guided else guidance_channels
        guidance = float(defaults.guidance if guidance is None else guidance)
        told = {"null_caption": null_caption, "null_mask": null_mask, "padding": padding}
        text = text_settings(spec, self.config.text.null_mask, guidance, prompts=prompts, negative=negative, **told)
        own = self._savings if savings is None else listed_savings(savings)
        named = Sampling(
            sampler=sampler or self.default_sampler,
            steps=whole_number("steps", defaults.steps if steps is None else steps),
            seed=seed,
            batch=whole_number("batch", batch),
            labels=class_labels(classes, self.config.record.classes, spec.num_classes, seed, text=bool(text)),
            guidance=guidance,
            guidance_interval=None if interval is None else time_interval(interval),
            guidance_channels=None if channels is None else whole_number("guidance_channels", channels),
            schedule=schedule or ("off" if not spec.is_sparse else "constant" if self.schedule is None else "paper"),
            savings=listed_savings(defaults.savings) if own is None else own,
            eta=float(eta),
            input_size=sampled_size(spec, self.autoencoder, size, frames),
            **text,
        )
        chosen = check_sampling(named, spec, self.config.objective)
        if self.prompts is not None:
            self.prompts.check(chosen)
        try:
            self._networks.check(named.savings, chosen, self.token_schedule(chosen), self.weights_file)
        except SavingError as error:
            whose = " (by sample.savings of the run's config; --saving none, in Python savings=[], takes none)"
            raise SavingError(f"{error}{whose if own is None else ''}") from error
        return chosen

    @torch.no_grad()
    def condition(self, indices: Sequence[int], sampling: Sampling) -> Condition:
        """What a batch of these samples is told, and what guidance compares with.

        Raises:
            GenerationError: a prompt that cannot be encoded.
        """
        if self.prompts is not None:
            return self.prompts.condition(sampling, indices)
        if not sampling.labels:
            return Condition({}, {})
        labels = torch.tensor([sampling.label(index) for index in indices], device=self.device)
        return Condition({"labels": labels}, {"null_label": self.model.spec.num_classes})

    def encode_prompts(self, sampling: Sampling, indices: Sequence[int]) -> None:
        """Encode at once all prompts of these samples that are not known, so that no batch of them loads the encoder again.

        Raises:
            GenerationError: the encoder cannot be loaded, or is not that of the model.
        """
        if self.prompts is not None:
            self.prompts.encode(sampling, indices)

    def remember(self, captions: Sequence[str], encoded: EncodedText) -> None:
        """Give features of prompts that are known already: they are not encoded. "" is what "no prompt" is encoded from.

        Args:
            captions: B of them.
            encoded: their features (B, L, C) and masks.

        Raises:
            ValueError: the model is not of text, or features of another shape.
            GenerationError: features of another width than the model takes.
        """
        if self.prompts is None:
            raise ValueError("captions were given, but the model is not of text")
        self.prompts.remember(captions, encoded)

    def policies(self, sampling: Sampling) -> list[Policy]:
        """The savings of these settings, with what was fitted to the model: in the folder `savings` beside its weights.

        Raises:
            SavingError: one that does not fit the model, or lacks what is fitted to it.
        """
        return self._networks.policies(sampling.savings, self.weights_file)

    def token_schedule(self, sampling: Sampling) -> TokenSchedule | None:
        """The sparse grids over diffusion time, at the size of the settings; None for a dense model."""
        return token_schedule(sampling, self.model.spec, self.schedule)

    def warn_of_size(self, sampling: Sampling) -> None:
        """Log what the model was trained on, if the settings have another size."""
        sizes = [self.model.spec.input_size, sampling.input_size]
        if sizes[0] != sizes[1]:
            shown = [f"{t} frames of {height}×{width}" for t, height, width in map(self.autoencoder.clip_size, sizes)]
            logger.warning("the model was trained on %s pixels, and is asked for %s: quality may suffer", *shown)
