"""From a run's configuration to its clips."""

import json
from dataclasses import replace
from typing import NamedTuple

import torch

from sparsevid import __version__
from sparsevid.autoencoder.base import Autoencoder
from sparsevid.autoencoder.load import CACHEABLE
from sparsevid.data.captions import open_clip_captions
from sparsevid.data.clips import ClipDataset, usable_videos
from sparsevid.data.latents.features import FeatureFolder
from sparsevid.data.latents.moments import MomentFolder
from sparsevid.data.latents.read import LatentCache, LatentFrames
from sparsevid.data.latents.stored import StoredLatents
from sparsevid.data.sources import FrameSource, MemoryFrames, VideoFrames
from sparsevid.data.tree.cards import Card, load_card, resolve_root
from sparsevid.data.tree.clip_rule import ClipRule
from sparsevid.data.tree.manifest import ALL, Manifest, kept_manifest, open_manifest
from sparsevid.data.tree.rules import TreeRules
from sparsevid.runs.config import ConfigError, DataConfig, RecordConfig, RunConfig
from sparsevid.system.distributed import from_main
from sparsevid.videos.read import DEFAULT_BACKEND, describe_decoder

_FROM_CARD = ("frames", "stride", "rule", "short", "target_fps", "images", "size", "flip", "display")


class RunData(NamedTuple):
    """The run with what its card answers filled in, the manifest of the whole tree, and the clips to train on."""

    config: RunConfig
    manifest: Manifest
    dataset: ClipDataset


def filled_from_card(data: DataConfig, card: Card) -> DataConfig:
    """Settings of clips with what the card answers where a run says nothing; a `target_fps` of 0 is none."""
    filled = {name: getattr(card.clip, name) if (value := getattr(data, name)) is None else value for name in _FROM_CARD}
    filled |= {"size": list(filled["size"]), "target_fps": filled["target_fps"] or None}
    return replace(data, **filled)


def open_data(config: RunConfig) -> RunData:
    """Open what a run trains on. All ranks call it together: one looks at the tree, the others are told.

    Raises:
        ConfigError: settings that exclude one another.
        FileNotFoundError, ValueError: card, tree or clip rule cannot be used; see `load_card`, `open_manifest`, `ClipDataset`.
        DecodeError: a video cannot be read, with `data.strict` or `data.cache_frames`.
    """
    card = load_card(config.data.card, config.data.card_options)
    data = filled_from_card(config.data, card)
    if data.latents and data.cache_frames:
        raise ConfigError("data.latents and data.cache_frames are two ways not to decode videos again: choose one")
    if data.latents and config.autoencoder.kind not in CACHEABLE:
        raise ConfigError(
            f"data.latents holds single frames of a fixed autoencoder, which autoencoder.kind={config.autoencoder.kind} cannot "
            f"be read from; accepted are {', '.join(CACHEABLE)}"
        )
    clip = data.clip()
    stored = _stored_latents(data)
    if stored is None:
        manifest = open_manifest(resolve_root(card, data.root), _run_rules(card, data), strict=data.strict)
    else:  # of images that need not be here
        factor, classes = clip.size[0] // stored.shape[1], card.counts.get("classes", 0)
        rules = _run_rules(card, data)
        manifest = from_main(
            lambda: stored.manifest(factor, classes, rules, lambda: resolve_root(card, data.root)), (ValueError, OSError)
        )
    if data.split is not None:
        selected = manifest.select(data.split)
    else:  # the card's split, for trees that have splits
        selected = manifest.select(card.split.default, or_all=True)
        data = replace(data, split=card.split.default if manifest.splits and card.split.default else ALL)
    captions, text, encoded_by = None, config.text, None
    if data.captions is not None:
        captions, selected, text, encoded_by = open_clip_captions(
            data.captions, text, card.captions.rules(), selected, manifest
        )
    rule = ClipRule(clip.frames, clip.stride, clip.rule, clip.short, clip.target_fps)
    source: FrameSource
    if data.cache_frames:
        source = MemoryFrames(replace(selected, videos=usable_videos(selected, rule)), clip.size)
    else:
        source = VideoFrames(manifest.root, clip.size, data.decoder)
    dataset = ClipDataset(selected, rule, source, flip=clip.flip, seed=config.seed, images=clip.images, captions=captions)
    record = RecordConfig(
        classes=list(manifest.classes),
        fps=clip_fps(dataset),
        fingerprint=manifest.fingerprint,
        text_encoder=encoded_by,
        captions=None if captions is None else captions.fingerprint(),
        versions={"sparsevid": __version__, "torch": torch.__version__} | _decoder(data),
    )
    return RunData(replace(config, data=data, text=text, record=record), manifest, dataset)


def _stored_latents(data: DataConfig) -> StoredLatents | None:
    """Latents of others that `data.latents` names; None for a cache, or without."""
    return None if data.latents is None else FeatureFolder.find(data.latents) or MomentFolder.find(data.latents)


class KnownTrees:
    """What there is of data that runs would be trained on, each tree asked for once."""

    def __init__(self) -> None:
        self._fingerprints: dict[str, str | None] = {}
        self._manifests: dict[str, Manifest] = {}

    def look(self, data: DataConfig) -> Manifest:
        """The manifest of a run's data, as `open_data` opens it. All ranks call it together.

        Raises:
            FileNotFoundError, ValueError, DecodeError: as `load_card`, `resolve_root`, `open_manifest`.
        """
        place = _place(data)
        if place not in self._manifests:
            card = load_card(data.card, data.card_options)
            root = from_main(lambda: resolve_root(card, data.root), (FileNotFoundError, ValueError))
            self._manifests[place] = open_manifest(root, _run_rules(card, data), strict=data.strict)
            self._fingerprints[place] = self._manifests[place].fingerprint
        return self._manifests[place]

    def fingerprint(self, data: DataConfig) -> str | None:
        """Of a run's data, if it is known: None where there are none, they are not as the card says, or nobody has looked into
        them since they changed. A process asks for itself.
        """
        place = _place(data)
        if place not in self._fingerprints:
            self._fingerprints[place] = _kept_fingerprint(data)
        return self._fingerprints[place]


def _place(data: DataConfig) -> str:
    """What decides where data are looked for, and how their tree is read."""
    return json.dumps([data.card, data.card_options, data.root, data.fold, data.label_order, data.display], sort_keys=True)


def _kept_fingerprint(data: DataConfig) -> str | None:
    try:
        card = load_card(data.card, data.card_options)
        manifest = kept_manifest(resolve_root(card, data.root), _run_rules(card, data))
    except (OSError, ValueError):
        return None
    return None if manifest is None else manifest.fingerprint


def _run_rules(card: Card, data: DataConfig) -> TreeRules:
    """A card's rules, with what a run says of them."""
    display = card.clip.display if data.display is None else data.display
    return replace(tree_rules(card, data.label_order, data.fold), display=display)


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
    """Let the clips come from the run's latent cache, or its folders of features; without `data.latents` nothing changes.

    Raises:
        FileNotFoundError: there is no such cache.
        ValueError: the cache is of other videos, another autoencoder, or another size; or features are to be mirrored.
    """
    settings = data.config.data
    if settings.latents is None:
        return
    clip = settings.clip()
    if stored := _stored_latents(settings):
        stored.check(autoencoder, clip.size, clip.flip)
        data.dataset.source = stored.frames(autoencoder.configuration()["scaling_factor"])
        return
    cache = LatentCache.open(settings.latents)
    cache.check(data.dataset.manifest, autoencoder, clip.size, clip.flip)
    data.dataset.source = LatentFrames(cache)
