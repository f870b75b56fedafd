"""The model of a run, to be counted and timed as presets are: from its configuration, without data or weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparsevid.autoencoder.base import latent_size
from sparsevid.autoencoder.load import PRETRAINED
from sparsevid.autoencoder.pretrained import LatentsOf
from sparsevid.data.tree.cards import Card, load_card
from sparsevid.models.presets import T5_CHANNELS, build_spec
from sparsevid.runs.build import TextSize, schedule_from_config, spec_from_config
from sparsevid.runs.config import AutoencoderConfig, ConfigError, RunConfig, load_config
from sparsevid.sparsity.schedule import TokenSchedule
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.sparsity.times import TimeDistribution, UniformTimesteps
from sparsevid.system.home import expand_home
from sparsevid.system.logging import get_logger
from sparsevid.text.cache import TextCache
from sparsevid.training.objective import build_objective

SAID_OVER_A_MODEL = ("schedule.", "sample.")  # what can be said over a model that is there
logger = get_logger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A model to count or to time.

    Attributes:
        name: for the reader.
        spec: sizes and layout.
        schedule: the token schedule; None for a dense model.
        times: what training draws.
        config: of the run; None of a preset.
    """

    name: str
    spec: ModelSpec
    schedule: TokenSchedule | None
    times: TimeDistribution = field(default_factory=UniformTimesteps)
    config: RunConfig | None = None

    @property
    def dense(self) -> "Candidate":
        """The dense model of the same sizes."""
        return Candidate(f"{self.name}, dense", self.spec.dense(), None, self.times, self.config)

    @property
    def run_config(self) -> RunConfig:
        """`config` of what is a run. Raises ConfigError for a preset, which has none."""
        if self.config is None:
            raise ConfigError(f"{self.name} is a preset, and no run with a configuration")
        return self.config

    @property
    def sampler(self) -> str:
        """The run's own; of a preset that of diffusion."""
        return "ddim" if self.config is None else self.config.sampler


def open_run(source: str | Path, overrides: Sequence[str] = ()) -> Candidate:
    """The model of a run.

    Args:
        source: a run's YAML file, its folder, one of its checkpoints, an exported folder, or that of a converted public model.
        overrides: dotted settings over the configuration, such as `model.layout=12D`.

    Raises:
        ConfigError: no such run, or a configuration that does not say enough; the message names the key.
        FileNotFoundError: no such card.
        KeyError, ValueError: as `load_card` and `spec_from_config`.
    """
    path = Path(expand_home(source))
    if (path / "config.json").is_file():
        return _of_model(path, overrides)
    if path.is_dir() and not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} is no run: it has no config.yaml; accepted are a run's YAML file, and its folder")
    config = load_config(path / "config.yaml" if path.is_dir() else path, list(overrides))
    objective = build_objective(config.objective)
    known = config.record.fingerprint is not None  # what training found out says all
    card = None if known else load_card(config.data.card, config.data.card_options)
    latents = _latents(config.autoencoder)
    spec = spec_from_config(
        config,
        input_size=_input_size(config, card, latents),
        in_channels=latents.channels,
        num_classes=len(config.record.classes) if card is None else 0 if config.data.captions else _classes(card),
        learn_sigma=objective.learn_sigma,
        text=_text(config),
    )
    return Candidate(config.name, spec, _schedule(config, spec), objective.times, config)


def spec_of(model: str | Candidate) -> ModelSpec:
    """The spec of a candidate, or of the preset of this name."""
    return build_spec(model) if isinstance(model, str) else model.spec


def name_of(model: str | Candidate) -> str:
    """The name of a candidate, or the preset's itself."""
    return model if isinstance(model, str) else model.name


def _of_model(folder: Path, overrides: Sequence[str]) -> Candidate:
    """A model that is there, whose spec may be another than its run's: it may have been made sparse since."""
    if others := [each for each in overrides if not each.startswith(SAID_OVER_A_MODEL)]:
        accepted = ", ".join(f"{each}…" for each in SAID_OVER_A_MODEL)
        raise ConfigError(f"{folder} holds a model, over which {others[0]} cannot be said; accepted are {accepted}")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(values, dict) or "spec" not in values:
        raise ConfigError(f"{folder / 'config.json'} has no spec: not a model that was saved here")
    spec = ModelSpec.from_dict(values["spec"])
    own = folder / "config.yaml"
    config = load_config(own if own.is_file() else None, list(overrides))
    if not own.is_file():
        config.objective.kind = "diffusion" if spec.learn_sigma else "flow"
    return Candidate(folder.name, spec, _schedule(config, spec), build_objective(config.objective).times, config)


def _schedule(config: RunConfig, spec: ModelSpec) -> TokenSchedule | None:
    return schedule_from_config(config.schedule, spec.dense_grid(), config.model.preset) if spec.is_sparse else None


def _input_size(config: RunConfig, card: Card | None, latents: LatentsOf) -> tuple[int, int, int]:
    """Latent frames, height and width; what the run leaves open is the card's."""
    frames, size = config.data.frames, config.data.size
    if card is not None:
        frames, size = frames or card.clip.frames, size or card.clip.size
    if frames is None or size is None:
        raise ConfigError("data.frames and data.size are not said, and the run has no card to ask")
    try:
        return latent_size((frames, *size), latents.time_factor, latents.factor, causal=latents.causal)
    except ValueError as error:
        raise ConfigError(f"data.frames = {frames}, data.size = {list(size)}: {error}") from error


def _latents(autoencoder: AutoencoderConfig) -> LatentsOf:
    """What the latents of a run's autoencoder are."""
    if autoencoder.kind == "linear":
        return LatentsOf(autoencoder.patch_frames, autoencoder.patch, autoencoder.channels)
    if autoencoder.kind == "pixels":
        return LatentsOf(1, 1, 3)
    kind = PRETRAINED[autoencoder.kind]
    found = kind.latents_of(autoencoder.source)
    if found is None and autoencoder.source != kind.example:  # of that one it is known
        logger.warning(
            "autoencoder.source = %s is not here: its latents are taken for those of %s, %d channels, a side of %d pixels, %d "
            "frames", autoencoder.source, kind.example, kind.usual.channels, kind.usual.factor, kind.usual.time_factor,
        )  # fmt: skip
    return found or kind.usual


def _text(config: RunConfig) -> TextSize | None:
    """What the prompts of a run's captions are; None of a run without."""
    if config.data.captions is None:
        return None
    try:
        cache = TextCache.open(config.data.captions)
    except FileNotFoundError:
        logger.warning(
            "data.captions = %s is not here: its features are taken for those of T5 v1.1 XXL, %d tokens of %d channels",
            config.data.captions, config.text.tokens, T5_CHANNELS,
        )  # fmt: skip
        return TextSize(config.text.tokens, T5_CHANNELS)
    return TextSize(cache.tokens, cache.channels)


def _classes(card: Card) -> int:
    """Number of classes of a data set, as its card says it."""
    if card.label_rule == "none":
        return 0
    if card.classes or "classes" in card.counts:
        return len(card.classes) or card.counts["classes"]
    raise ConfigError(
        f"card {card.name!r} does not say how many classes its data has: write `counts: {{classes: N}}` into it, or give the "
        "folder of a run that was trained on them"
    )
