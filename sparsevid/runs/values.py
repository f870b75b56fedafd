"""Which values a run's settings may have."""

import math
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from sparsevid.diffusion import MASKS
from sparsevid.savings.base import SavingError
from sparsevid.savings.options import parse_savings
from sparsevid.sparsity.layout import KINDS
from sparsevid.sparsity.spec import MERGE_TEXT

CHOICES = {
    "model.merge_text": (None, *MERGE_TEXT),
    "schedule.kind": ("paper", "constant", "table"),
    "data.label_order": (None, "sorted", "official"),
    "data.rule": (None, "stride", "latte_linspace"),
    "data.short": (None, "exclude", "reduce_stride", "repeat_last"),
    "data.decoder": ("pyav", "decord"),
    "autoencoder.kind": ("linear", "kl", "temporal", "wan", "pixels"),
    "autoencoder.precision": (None, "float32", "bfloat16"),
    "text.null_mask": MASKS,
    "objective.kind": ("diffusion", "flow"),
    "objective.times": (None, "uniform", "logit_normal"),
    "train.lr_schedule": ("constant", "cosine"),
    "train.optimizer": ("adamw", "adam", "sgd", "muon"),
    "train.precision": ("float32", "bfloat16", "float16"),
    "train.zero_stage": (None, 0, 1, 2, 3),
    "train.ema_device": (None, "cpu"),
}
TAKEN_BY = {"tiling": ("kl", "wan"), "slicing": ("kl", "wan")}  # options of an autoencoder, and the kinds that have them
POSITIVE = (
    "model.hidden_size",
    "model.num_heads",
    "model.patch_size",
    "autoencoder.channels",
    "autoencoder.patch",
    "autoencoder.patch_frames",
    "autoencoder.fit_clips",
    "data.frames",
    "data.stride",
    "data.fold",
    "text.tokens",
    "train.steps",
    "train.global_batch",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.max_skipped",
    "monitor.validate_clips",
    "monitor.sample_clips",
    "monitor.score_clips",
    "train.micro_batch",
    "train.keep_every",
    "sample.steps",
    "sample.guidance_channels",
)
NOT_NEGATIVE = (
    "data.images",
    "data.workers",
    "data.target_fps",
    "train.warmup",
    "train.gradient_clipping",
    "train.lr",
    "train.weight_decay",
    "monitor.validate_every",
    "monitor.sample_every",
    "monitor.score_every",
)
ABOVE_ZERO = ("train.eps", "train.timeout", "train.start_timeout", "train.silence", "monitor.peak_tflops")
SHARES = ("objective.label_dropout", "autoencoder.whitening")  # in [0, 1]
INT64 = 2**63
DECAYS = ("train.ema_decay", "train.betas")  # in [0, 1), alone or in a list


def check_values(config: DictConfig) -> None:
    """Look at the values of a run's settings, whose keys and types are right.

    Raises:
        ValueError: the first that is not accepted, with its key and what is.
    """
    for key, number in _numbers(OmegaConf.to_container(config)):
        if isinstance(number, int) and not -INT64 <= number < INT64:
            raise ValueError(f"{key} = {number}; accepted are whole numbers of 64 bits, from -2^63 to 2^63 - 1")
        if not math.isfinite(number):
            raise ValueError(f"{key} = {number}; accepted are finite numbers")
    for key, accepted in CHOICES.items():
        value = OmegaConf.select(config, key)
        if value not in accepted:
            raise ValueError(f"{key} = {value!r}; accepted are {', '.join(map(str, accepted))}")
    for key in POSITIVE:
        value = OmegaConf.select(config, key)
        if value is not None and value < 1:
            raise ValueError(f"{key} = {value}; it is at least 1")
    for key in NOT_NEGATIVE:
        value = OmegaConf.select(config, key)
        if value is not None and value < 0:
            raise ValueError(f"{key} = {value}; it is not negative")
    for key in ABOVE_ZERO:
        value = OmegaConf.select(config, key)
        if value is not None and not value > 0:
            raise ValueError(f"{key} = {value}; it is above 0")
    for key in (*SHARES, *DECAYS):
        value = OmegaConf.select(config, key)
        for each in value if isinstance(value, list | ListConfig) else [value]:
            if not 0.0 <= each <= 1.0 or (each == 1.0 and key in DECAYS):
                raise ValueError(f"{key} = {value}; accepted is 0 up to 1{', without 1 itself' if key in DECAYS else ''}")
    if len(config.train.betas) != 2:
        raise ValueError(f"train.betas = {list(config.train.betas)}; they are two, such as [0.9, 0.999]")
    if unknown := sorted(set(config.model.checkpoint_layers) - set(KINDS)):
        raise ValueError(
            f"model.checkpoint_layers = {config.model.checkpoint_layers!r}: {''.join(unknown)} is no kind of layer; "
            f"accepted are {', '.join(KINDS)}, together such as RD"
        )
    size = config.data.size
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"data.size = {list(size)}; it is [height, width] in pixels, both from 1")
    interval = config.sample.guidance_interval
    if interval is not None and (len(interval) != 2 or not 0.0 <= interval[0] <= interval[1] <= 1.0):
        raise ValueError(f"sample.guidance_interval = {list(interval)}; it is [low, high] with 0 ≤ low ≤ high ≤ 1")
    try:
        parse_savings(config.sample.savings)
    except SavingError as error:
        raise ValueError(f"sample.savings: {error}") from error
    if config.data.images and config.autoencoder.kind == "linear" and config.autoencoder.patch_frames > 1:
        raise ValueError(f"data.images = {config.data.images}: stills cannot be cut into patches of several frames; take "
                         "autoencoder.patch_frames=1")  # fmt: skip
    if config.data.images and config.autoencoder.kind == "wan":
        raise ValueError(
            f"data.images = {config.data.images}: autoencoder.kind=wan encodes clips as a whole, and no stills after them"
        )
    for option, kinds in TAKEN_BY.items():
        if config.autoencoder[option] and config.autoencoder.kind not in kinds:
            raise ValueError(
                f"autoencoder.{option} goes with autoencoder.kind {' and '.join(kinds)}, not {config.autoencoder.kind}"
            )
    if config.data.cache_frames and config.data.workers:
        raise ValueError("data.cache_frames keeps all frames in this process, and data.workers would copy them: take 0")


def _numbers(values: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number of a configuration, under its dotted key."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _numbers(value, f"{key}.{name}" if key else name)
    elif isinstance(values, list):
        for value in values:
            yield from _numbers(value, key)
    elif isinstance(values, int | float):
        yield key, values
