"""The configuration of a run: typed dataclasses, a strict YAML file, dotted overrides; saved with the run.

Nothing is said twice: the model's input size follows from clip and autoencoder, its classes from the data, DeepSpeed's batch
and precision from `train`.
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparsevid.runs.older import brought_forward
from sparsevid.runs.values import check_values
from sparsevid.system.home import expand_home
from sparsevid.system.schema import AS_TYPED, check_keys, defaults_of, escaped, read_overrides, read_yaml, told_of, yaml_text


@dataclass
class ModelConfig:
    """A preset with changes, or all of layout, hidden_size and num_heads."""

    preset: str | None = None  # name, such as SparseLatte-XL/2
    layout: str | None = None  # such as 2P 4(1M3S1R1D) 2D
    hidden_size: int | None = None
    num_heads: int | None = None
    patch_size: int | None = None
    mlp_ratio: float | None = None
    transition_positions: bool = True  # sin-cos positions again where tokens become sparse and dense
    residual_upsampling: bool = False  # R adds what the sparse layers changed, rather than their output (not in the paper)
    allow_no_dense: bool = False  # accept modules without a dense layer after R
    # One map of the condition for all layers, and a table of each (adaLN-single), in place of a map of each layer. Default: the
    # preset's; without one, of a model of text true: its condition is time alone, and 6·D² a layer would learn little of it.
    shared_modulation: bool | None = None
    # Whose tokens listen to the prompt in M: dense, those it gathers from, before it; sparse, those that gather, after it.
    # Default: the preset's, or dense.
    merge_text: str | None = None
    attention: str = "sdpa"  # backend: sdpa, its kernels flash, efficient, cudnn, and xformers, math
    checkpoint_layers: str = ""  # kinds of layers, such as RD, whose activations are computed again in the backward pass


@dataclass
class ScheduleConfig:
    """Sparse tokens over diffusion time; without meaning for a dense layout."""

    kind: str = "paper"  # paper: rates below; constant: `grid` at all times; table: `table`
    frames: int | None = None  # paper: t, frames of the sparse grid; default: a quarter of the clip's frames
    frames_table: list[Any] | None = None  # paper: t over time instead, rows [u up to which, t], rising to 1
    r_min: float | None = None  # paper: pruning rate inside a frame at u = 0; default: the preset's
    r_max: float | None = None  # paper: pruning rate inside a frame at u ≥ 3/4; default: the preset's
    grid: list[int] | None = None  # (t, h, w) of the constant schedule
    table: list[Any] | None = None  # rows [u up to which, [t, h, w]], rising to 1


@dataclass
class DataConfig:
    """What to train on. Fields left out come from the card."""

    card: str = "demo"  # a path, or the name of a file in datasets/
    root: str | None = None  # where the videos are; default: as the card says
    split: str | None = None  # the part to train on; all: every video; default: the card's, all if it names none
    # Other keys of the card, as they stand there; those that follow here win.
    card_options: dict[str, Any] = field(default_factory=dict, metadata={AS_TYPED: True})
    fold: int | None = None  # of the card's official lists
    label_order: str | None = None  # sorted, official
    frames: int | None = None
    stride: int | None = None
    rule: str | None = None  # stride, latte_linspace
    short: str | None = None  # videos shorter than a clip: exclude, reduce_stride, repeat_last
    target_fps: float | None = None  # count frames at this rate instead of each video's own; 0: its own
    images: int | None = None  # stills of other videos beside each clip (joint image-video training)
    size: list[int] | None = None  # (height, width) in pixels
    flip: bool | None = None
    display: bool | None = None  # frames as a player shows them (rotation, pixel aspect); false: as they are stored
    decoder: str = "pyav"  # pyav, decord
    cache_frames: bool = False  # decode each video once and keep it, resized, in memory: for sets that fit
    latents: str | None = None  # of `sparsevid encode_latents`, or with fast-DiT's features: read in place of videos
    # Captions with their features: of `sparsevid encode_captions`, or SAM's caption_feature_wmask. The model is one of text
    # then, and classes are names only.
    captions: str | None = None
    strict: bool = False  # an unreadable or damaged video is an error, instead of being passed over and reported
    workers: int = 0  # loader processes of each rank

    def clip(self) -> "ClipConfig":
        """What the run's clips are, once a card has answered what a run leaves out.

        Raises:
            ConfigError: something is said by neither.
        """
        said = {name: getattr(self, name) for name in ClipConfig._fields}
        if unsaid := [name for name, value in said.items() if value is None and name != "target_fps"]:
            raise ConfigError(f"{', '.join(f'data.{name}' for name in unsaid)}: said neither by the run nor by a card")
        height, width = said.pop("size")
        return ClipConfig(**said, size=(height, width))


class ClipConfig(NamedTuple):
    """Settings of clips with nothing left open; each is explained in `DataConfig`."""

    frames: int
    stride: int
    rule: str
    short: str
    target_fps: float | None
    images: int
    size: tuple[int, int]
    flip: bool


@dataclass
class AutoencoderConfig:
    """What turns pixels into latents."""

    # linear: PCA of patches, fitted in seconds; of diffusers, kl: AutoencoderKL, temporal: AutoencoderKLTemporalDecoder, wan:
    # AutoencoderKLWan, causal in time, whose data.frames are one more than a multiple of its time factor; pixels.
    kind: str = "linear"
    source: str | None = None  # kl, temporal, wan: local folder or hub id
    # kl, temporal, wan: float32, bfloat16: in which training encodes; default: bfloat16 on a GPU where the model trains in it.
    precision: str | None = None
    tiling: bool = False  # kl, wan: decode large frames in tiles that overlap, in less memory; seams are blended
    slicing: bool = False  # kl: decode one frame at a time, wan: one clip; less memory, the same pixels
    channels: int = 16  # linear: latent channels
    patch: int = 8  # linear: pixels of a patch's side
    patch_frames: int = 1  # linear: frames of a patch; data.frames is a multiple of it
    fit_clips: int = 64  # linear: training clips to fit on
    whitening: float = 1.0  # linear: how far channels are brought to equal variance, 0: one common scale … 1: unit variance


@dataclass
class ObjectiveConfig:
    """What is minimised."""

    kind: str = "diffusion"  # diffusion: noise and learned variance, hybrid loss; flow: velocity of a rectified flow
    times: str | None = None  # uniform, logit_normal (flow only); default: uniform for diffusion, logit_normal for flow
    label_dropout: float = 0.1  # share of labels replaced by "no class", of captions by "no prompt", for guidance


@dataclass
class TextConfig:
    """What captions and prompts are to a model of text; without meaning for others."""

    encoder: str | None = None  # folder or hub id of the T5 that encodes prompts; default: the one of `data.captions`
    tokens: int = 120  # of a prompt
    # Which tokens of "no prompt" are heard: own, or prompt: as many as of the prompt in its place, as the original PixArt.
    null_mask: str = "own"


@dataclass
class TrainConfig:
    """The loop and its engine."""

    steps: int = 1000  # optimizer steps
    global_batch: int = 16  # clips of an optimizer step over all ranks and accumulation slots
    micro_batch: int | None = None  # clips of a forward on one rank; default: global_batch / ranks
    # Weights to start from: a checkpoint, an exported folder, a public file (.pt, .pth, .safetensors), a hub id; dense ones
    # become sparse.
    init_from: str | None = None
    optimizer: str = "adamw"  # adamw, adam, sgd, muon (for the matrices of layers; all else adamw; ZeRO stage 0)
    lr: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # sgd: the first is its momentum
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: int = 0  # steps of linear warm-up
    lr_schedule: str = "constant"  # constant, cosine (to 0 at the step after the last)
    gradient_clipping: float = 1.0  # 0: off
    max_skipped: int = 10  # steps skipped in a row, for losses or gradients that are not finite, before the run stops
    precision: str = "float32"  # float32, bfloat16, float16 (with a loss scale)
    tf32: bool = False  # on GPUs: let products and convolutions of float32 round their inputs to 10 bits of mantissa
    zero_stage: int | None = None  # DeepSpeed ZeRO: 0, 1, 2, 3; default: what `deepspeed` says, or 0
    deepspeed: str | None = None  # a DeepSpeed JSON file, such as configs/deepspeed/zero2.json, without batch and precision
    ema_decay: float = 0.9999
    ema_device: str | None = None  # cpu: keep the average there; default: with the weights
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2  # newest ones kept
    keep_every: int | None = None  # checkpoints of every k-th step are kept for good
    log_every: int = 10
    compile: bool = False  # the model's layers, each kind once; the first step of each stage then takes its time
    resume: str = "auto"  # auto: the newest checkpoint of the run that verifies; never; a checkpoint's path
    timeout: float = 1800.0  # seconds after which a rank that does not answer ends the run
    silence: float = 45.0  # seconds without a sign of life after which a rank is taken for dead, and the run ends
    start_timeout: float = 300.0  # the same for the check at the start


@dataclass
class DistillConfig:
    """A frozen dense teacher beside the objective."""

    teacher: str | None = None  # a checkpoint, an exported folder, or a hub id; default: no distillation
    output: float = 1.0  # weight of the squared difference of the outputs
    features: float = 0.0  # weight of that of the tokens where dense layers meet sparse modules


@dataclass
class MonitorConfig:
    """What a run looks at on its way; 0 steps: never."""

    validate_every: int = 0  # steps between losses of the average on fixed clips, noise and times
    validate_clips: int = 64
    validate_split: str | None = None  # default: the training split
    sample_every: int = 0  # steps between contact sheets of samples of the average
    sample_clips: int = 8
    score_every: int = 0  # steps between scores of the average's samples
    score_clips: int = 256
    protocol: str = "sparsevid/fd-transnetv2-v2"  # of the score
    protocol_options: list[str] = field(default_factory=list)  # fields of it that are others here, such as real_stride=1
    wandb: bool = False  # log to Weights & Biases too; needs the package wandb
    peak_tflops: float | None = None  # of a device in the run's precision, for the share of it that is used


@dataclass
class SampleConfig:
    """Defaults of sampling from the run's checkpoints."""

    sampler: str | None = None  # default: ddim for diffusion, euler for flow
    steps: int = 50
    guidance: float = 1.0  # scale of classifier-free guidance; 1: none
    guidance_interval: list[float] | None = None  # diffusion times [low, high], 1 = noise, within which it acts; default: all
    guidance_channels: int | None = None  # number of latent channels that are guided; default: all
    savings: list[str] = field(default_factory=list)  # what calls of the model leave out, such as static:every=2


@dataclass
class RecordConfig:
    """What training found out; written into a checkpoint's config, never set by hand."""

    classes: list[str] = field(default_factory=list)  # class names by label
    fps: float | None = None  # frames a second of the trained clips
    fingerprint: str | None = None  # of the data
    text_encoder: str | None = None  # fingerprint of what encoded the captions
    captions: str | None = None  # of which videos have which captions
    versions: dict[str, str] = field(default_factory=dict)


@dataclass
class RunConfig:
    """A run."""

    name: str = "run"
    output: str = "runs"  # folder that holds the run's folder
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    record: RecordConfig = field(default_factory=RecordConfig)

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return Path(self.output) / self.name

    @property
    def sampler(self) -> str:
        """The sampler of `sample`, else the objective's own."""
        return self.sample.sampler or ("euler" if self.objective.kind == "flow" else "ddim")


class ConfigError(ValueError):
    """A config file or override that cannot be used; the message names the key and what is accepted."""


def load_config(path: str | Path | None, overrides: list[str] | None = None) -> RunConfig:
    """Read a run's YAML file, put it over the files that its `base` names, and apply dotted overrides.

    `base` is a path relative to the file's own folder, or a list of them, each above those before it. A file that several
    name counts once, where it is first met. The key is no part of the result: a saved config stands on its own.

    Args:
        path: the file; None starts from the defaults.
        overrides: such as `train.lr=1e-4`; the value is YAML.

    Raises:
        ConfigError: no such file or base, bases in a circle, broken YAML, an unknown key (with the nearest valid one), a value
            of the wrong type, or one that is not among the accepted.
    """
    config = defaults_of(RunConfig)
    if path is not None:
        for source, changes in _read_with_bases(Path(path), ()).items():
            _lay_over(config, changes, str(source))
    try:
        for where, changes in read_overrides(overrides or [], RunConfig):
            _lay_over(config, changes, where)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    try:
        resolved: Any = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:  # a reference to nothing
        raise ConfigError(f"{told_of(error)}; ${{KEY}} stands for another key's value, and \\${{ for itself") from error
    try:
        check_values(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return expand_home(resolved)


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved config as YAML, to be read by `load_config`."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(escaped(asdict(config)))), encoding="utf-8")


def _read_with_bases(path: Path, above: tuple[Path, ...]) -> dict[Path, DictConfig]:
    """The files that make up a run, lowest first; `above` are those on the way here, each the base of the one before it."""
    if path.resolve() in [each.resolve() for each in above]:
        raise ConfigError(f"configs are each other's base: {' → '.join(map(str, [*above, path]))}")
    if above and not path.is_file():
        raise ConfigError(f"{above[-1]}: its base {path} does not exist; paths in base are relative to that file's folder")
    own = _read_yaml(path)
    bases = own.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list | ListConfig) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: base = {bases}; accepted are the path of a YAML file and a list of such paths")
    files: dict[Path, DictConfig] = {}
    for base in bases:
        for source, changes in _read_with_bases(
            Path(os.path.normpath(path.parent / expand_home(base))), (*above, path)
        ).items():
            files.setdefault(source, changes)
    return files | {path: own}


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        own = path / "config.yaml"
        such = f"{own}, which says what the run in this folder is" if own.is_file() else "configs/demo/sparse.yaml"
        what = "; it is a folder" if path.is_dir() else ""
        raise ConfigError(f"no config file {path}{what}; give the path of a YAML file such as {such}")
    try:
        return brought_forward(read_yaml(yaml_text(path), RunConfig, str(path)))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _lay_over(config: DictConfig, changes: DictConfig, source: str) -> None:
    try:
        check_keys(changes, RunConfig, source)
        config.merge_with(changes)  # in place: a copy for each of many overrides takes longer than all else
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {told_of(error)}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
