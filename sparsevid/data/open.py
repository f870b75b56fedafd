"""From a run's configuration to its clips."""

from dataclasses import replace
from typing import NamedTuple

import torch

from sparsevid import __version__
from sparsevid.autoencoder.base import Autoencoder
from sparsevid.data.clips import ClipDataset, usable_videos
from sparsevid.data.latents.read import LatentCache, LatentFrames
from sparsevid.data.sources import MemoryFrames, VideoFrames
from sparsevid.data.tree.cards import Card, load_card, resolve_root
from sparsevid.data.tree.clip_rule import ClipRule
from sparsevid.data.tree.manifest import ALL, Manifest, open_manifest
from sparsevid.data.tree.rules import TreeRules
from sparsevid.runs.config import ConfigError, DataConfig, RecordConfig, RunConfig
from sparsevid.videos.read import DEFAULT_BACKEND, describe_decoder

_FROM_CARD = ("frames", "stride", "rule", "short", "target_fps", "images", "size", "flip", "display")


class RunData(NamedTuple):
    """The run with what its card answers filled in, the manifest of the whole tree, and the clips to train on."""

    config: RunConfig
    manifest: Manifest
    dataset: ClipDataset


def open_data(config: RunConfig) -> RunData:
    """Open what a run trains on. All ranks call it together: one looks at the tree, the others are told.

    Raises:
        ConfigError: settings that exclude one another.
        FileNotFoundError, ValueError: card, tree or clip rule cannot be used; see `load_card`, `open_manifest`, `ClipDataset`.
        DecodeError: a video cannot be read, with `data.strict` or `data.cache_frames`.
    """
    card = load_card(config.data.card, config.data.card_options)
    data = config.data
    filled = {name: getattr(card.clip, name) if (value := getattr(data, name)) is None else value for name in _FROM_CARD}
    filled |= {"size": list(filled["size"]), "target_fps": filled["target_fps"] or None}
    data = replace(data, **filled)
    if data.latents and data.cache_frames:
        raise ConfigError("data.latents and data.cache_frames are two ways not to decode videos again: choose one")
    if data.latents and config.autoencoder.kind == "linear":
        raise ConfigError("data.latents is of a fixed autoencoder, and autoencoder.kind=linear is fitted by each run")
    rules = replace(tree_rules(card, data.label_order, data.fold), display=data.display)
    manifest = open_manifest(resolve_root(card, data.root), rules, strict=data.strict)
    if data.split is not None:
        selected = manifest.select(data.split)
    else:  # the card's split, for trees that have splits
        selected = manifest.select(card.split.default, or_all=True)
        data = replace(data, split=card.split.default if manifest.splits and card.split.default else ALL)
    rule = ClipRule(data.frames, data.stride, data.rule, data.short, data.target_fps)
    if data.cache_frames:
        source = MemoryFrames(replace(selected, videos=usable_videos(selected, rule)), tuple(data.size))
    else:
        source = VideoFrames(manifest.root, tuple(data.size), data.decoder)
    dataset = ClipDataset(selected, rule, source, flip=data.flip, seed=config.seed, images=data.images)
    record = RecordConfig(
        classes=list(manifest.classes),
        fps=clip_fps(dataset),
        fingerprint=manifest.fingerprint,
        versions={"sparsevid": __version__, "torch": torch.__version__} | _decoder(data),
    )
    return RunData(replace(config, data=data, record=record), manifest, dataset)


def _decoder(data: DataConfig) -> dict[str, str]:
    """What decodes a run's videos; nothing for a latent cache, which says it itself. Whole videos are read by the default."""
    if data.latents:
        return {}
    return {"decoder": describe_decoder(DEFAULT_BACKEND if data.cache_frames else data.decoder)}


def tree_rules(card: Card, label_order: str | None = None, fold: int | None = None) -> TreeRules:
    """A card's rules, with another order of labels or another of its official divisions."""
    rules = card.rules()
    rules = rules if label_order is None else replace(rules, label_order=label_order)
    return rules if fold is None else replace(rules, split=replace(rules.split, fold=fold))


def clip_fps(dataset: ClipDataset) -> float:
    """Frames a second of the clips, the mean over videos."""
    rule = dataset.rule
    step = rule.span / rule.frames if rule.rule == "latte_linspace" else rule.stride
    rates = [rule.target_fps or video.fps for video in dataset.videos]
    return sum(rates) / len(rates) / step


def use_latents(data: RunData, autoencoder: Autoencoder) -> None:
    """Let the clips come from the run's latent cache; without `data.latents` nothing changes.

    Raises:
        FileNotFoundError: there is no such cache.
        ValueError: the cache is of other videos, another autoencoder, or another size.
    """
    settings = data.config.data
    if settings.latents is None:
        return
    cache = LatentCache.open(settings.latents)
    cache.check(data.dataset.manifest, autoencoder, tuple(settings.size), settings.flip)
    data.dataset.source = LatentFrames(cache)
