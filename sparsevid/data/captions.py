"""What a clip is told: a caption of its video, drawn, and its features out of a cache or out of files as PixArt has them.

<folder>/NAME.npz, as PixArt keeps features of SAM's captions (`caption_feature_wmask`): of the image NAME `caption_feature`
(1,L,C) or (L,C), float, and `attention_mask` (1,L) or (L,). A file `null.npz` there, if any, is "no prompt".

Dimensions: L tokens of a caption, C channels of its features.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sparsevid.data.tree.captions import CaptionRules, Captions, captioned, open_captions
from sparsevid.data.tree.manifest import Manifest, Video
from sparsevid.data.tree.walk import own_name
from sparsevid.runs.config import TextConfig
from sparsevid.system.distributed import from_main
from sparsevid.system.logging import get_logger
from sparsevid.text.cache import TextCache
from sparsevid.text.encoder import EncodedText, source_fingerprint

FEATURES, MASK = "caption_feature", "attention_mask"  # arrays of a file
NULL_FILE = "null.npz"

logger = get_logger(__name__)


class CaptionFeatures(Protocol):
    """Features of captions.

    Attributes:
        channels: C.
        tokens: L.
        folder: where they are.
    """

    channels: int
    tokens: int
    folder: Path

    def read_caption(self, video: Video, caption: str) -> tuple[Tensor, Tensor]:
        """Features (L,C) and mask (L,) bool of a video's caption, on the CPU; zero where the mask is not set.

        Raises:
            ValueError: there are none, or they are not as they should be.
        """

    def null(self) -> EncodedText | None:
        """What "no prompt" is, of one prompt; None if they do not say it."""


class CachedFeatures:
    """Features out of a cache of captions; see `CaptionFeatures`.

    Args:
        cache: where from.
    """

    def __init__(self, cache: TextCache) -> None:
        self.cache, self.folder = cache, cache.folder
        self.channels, self.tokens = cache.channels, cache.tokens

    def read_caption(self, video: Video, caption: str) -> tuple[Tensor, Tensor]:
        """See `CaptionFeatures`."""
        text, mask, _ = self.cache.read([self.cache.index(caption)])
        return text[0], mask[0]

    def null(self) -> EncodedText:
        """See `CaptionFeatures`."""
        return self.cache.null()


class FileFeatures:
    """Features of one caption for each video, in a file by the video's name; see `CaptionFeatures`.

    Args:
        folder: with NAME.npz.

    Raises:
        ValueError: there is no such file, or the first is of another layout.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        first = min((path for path in self.folder.glob("*.npz") if path.name != NULL_FILE), default=None)
        if first is None:
            raise ValueError(f"{folder} holds no NAME.npz with {FEATURES} and {MASK}")
        features, _ = _load(first)
        (self.tokens, self.channels), self.dtype = features.shape, features.dtype

    def names(self) -> set[str]:
        """Names of all videos of which there are features."""
        return {entry.name.removesuffix(".npz") for entry in os.scandir(self.folder) if entry.name.endswith(".npz")}

    def read_caption(self, video: Video, caption: str) -> tuple[Tensor, Tensor]:
        """See `CaptionFeatures`. A video without a caption is told nothing."""
        path = self.folder / f"{own_name(video.path)}.npz"
        if not path.is_file():
            if caption:
                raise ValueError(f"{path} is missing: {video.path} has the caption {caption!r}, and no features of it")
            text, mask, _ = self.told_nothing()
            return text[0], mask[0]
        return self._read(path)

    def null(self) -> EncodedText | None:
        """See `CaptionFeatures`."""
        path = self.folder / NULL_FILE
        if not path.is_file():
            return None
        text, mask = self._read(path)
        return EncodedText(text[None], mask[None], (0,))

    def told_nothing(self) -> EncodedText:
        """What videos without features are told. Raises ValueError if that is not known."""
        null = self.null()
        if null is None:
            raise ValueError(
                f'{self.folder} does not say what "no prompt" is, which videos without features are told: put features of the '
                f"empty caption there as {NULL_FILE}, {FEATURES} ({self.tokens},{self.channels}) and {MASK}, or take "
                "captions.missing=exclude"
            )
        return null

    def _read(self, path: Path) -> tuple[Tensor, Tensor]:
        features, mask = _load(path)
        if features.shape != (self.tokens, self.channels):
            raise ValueError(f"{path}: {FEATURES} is {tuple(features.shape)}, others are {(self.tokens, self.channels)}")
        return features.to(self.dtype), mask


class ClipCaptions:
    """The captions of a dataset's videos with their features. Can be pickled.

    Args:
        captions: of the videos.
        features: where features are.

    Attributes:
        texts: every caption once; a batch's `caption` is a place in it.
        channels: C.
        tokens: L.
    """

    def __init__(self, captions: Captions, features: CaptionFeatures) -> None:
        self.captions, self.features = captions, features
        self.texts, self.channels, self.tokens = captions.texts, features.channels, features.tokens

    def draw(self, video: Video, generator: torch.Generator) -> int:
        """The place of one of a video's captions."""
        places = self.captions.of(video.path)
        return places[int(torch.randint(len(places), (), generator=generator))]

    def read(self, videos: Sequence[Video], places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Features (B,L,C) and mask (B,L) of captions of B videos."""
        text, mask = zip(*map(self.features.read_caption, videos, (self.texts[place] for place in places)), strict=True)
        return torch.stack(text), torch.stack(mask)

    def null(self) -> EncodedText | None:
        """What "no prompt" is, of one prompt; None if that is not known."""
        return self.features.null()

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over what captions which videos have."""
        digest = hashlib.sha256()
        for path, places in sorted(self.captions.places.items()):
            digest.update(json.dumps([path, *(self.texts[place] for place in places)]).encode("ascii"))
        return digest.hexdigest()


def open_clip_captions(
    folder: str, text: TextConfig, rules: CaptionRules, manifest: Manifest, tree: Manifest
) -> tuple[ClipCaptions, Manifest, TextConfig, str | None]:
    """The captions that a run hears. All ranks call it together.

    Args:
        folder: `data.captions`: a cache of captions, or a folder of NAME.npz.
        text: the run's settings of text.
        rules: where captions are.
        manifest: the videos to train on.
        tree: all videos, of which these are a part.

    Returns:
        The captions; the videos that are to be used; the settings, with the encoder filled in; and its fingerprint, None where
        the folder does not say it.

    Raises:
        FileNotFoundError: no such folder, or no captions.
        ValueError: captions or features that do not fit the run, see `open_captions`, `TextCache`, `FileFeatures`.
    """
    place = Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(f"data.captions = {folder}: no such folder; `sparsevid encode_captions CARD --out` makes one")
    if next(place.glob("*.npz"), None) is not None:
        found = FileFeatures(place)
        texts = open_captions(manifest, rules, tree=tree, required=False)
        texts, manifest = _with_features(texts, found, rules, manifest)
        captions, fingerprint = ClipCaptions(texts, found), None
    else:
        cache = TextCache.open(place)
        _check_encoder(cache, text)
        texts = open_captions(manifest, rules, tree=tree)
        manifest = captioned(manifest, texts, rules)
        lacking = [each for each in texts.texts if each not in cache]
        if lacking:
            raise ValueError(
                f"{folder} lacks {len(lacking)} of the data's {len(texts.texts)} captions, such as {lacking[0]!r}: the command "
                "that made it, given again, adds them"
            )
        captions, fingerprint = ClipCaptions(texts, CachedFeatures(cache)), cache.encoder["fingerprint"]
        text = replace(text, encoder=text.encoder or cache.encoder["source"])
    if captions.tokens != text.tokens:
        raise ValueError(
            f"data.captions = {folder} holds {captions.tokens} tokens of a caption, and text.tokens = {text.tokens}: "
            f"set text.tokens={captions.tokens}, or encode again"
        )
    return captions, manifest, text, fingerprint


def _with_features(
    texts: Captions, features: FileFeatures, rules: CaptionRules, manifest: Manifest
) -> tuple[Captions, Manifest]:
    """Captions and videos of which there are features, or as `rules.missing` says of others."""
    names = from_main(features.names, (OSError,))
    own: dict[str, str] = {}
    for path in dict.fromkeys(video.path for video in manifest.videos):
        other = own.setdefault(own_name(path), path)
        if other != path:
            raise ValueError(f"{features.folder}: features are found by name, and {other} and {path} have one name")
    missing = tuple(path for name, path in own.items() if name not in names)
    if len(missing) == len(own):
        raise ValueError(f"{features.folder} holds features of none of {len(own)} videos, such as {missing[0]}")
    places = {path: place for path, place in texts.places.items() if own_name(path) in names}
    texts = replace(texts, places=places, missing=missing)
    if missing:
        text = f"{features.folder} holds no features of {len(missing)} of {len(own)} videos, such as {missing[0]}"
        if rules.missing == "error":
            raise ValueError(f"{text}; captions.missing accepts null and exclude too")
        if rules.missing == "null":
            features.told_nothing()
        logger.warning("%s: %s", text, "they are left out" if rules.missing == "exclude" else "they are told nothing")
    return texts, captioned(manifest, texts, rules)


def _check_encoder(cache: TextCache, text: TextConfig) -> None:
    """Raise ValueError if a cache's encoder is another than the run's; what is not here cannot be compared, and is logged."""
    encoder = text.encoder
    if encoder is None or encoder == cache.encoder["source"]:
        return
    try:
        mine = from_main(lambda: source_fingerprint(encoder, cache.tokens, fetch=False), (OSError, ValueError))
    except FileNotFoundError:
        logger.warning(
            "text.encoder = %s is not here to be compared with %s, of which %s holds features",
            text.encoder, cache.described(), cache.folder,
        )  # fmt: skip
        return
    if mine != cache.encoder["fingerprint"]:
        raise ValueError(
            f"{cache.folder} holds features of {cache.described()}, and text.encoder = {text.encoder} is another (fingerprint "
            f"{mine[:16]}): encode with the run's, or leave text.encoder out"
        )


def _load(path: Path) -> tuple[Tensor, Tensor]:
    """Features (L,C), and mask (L,) bool, of a file; features are zero where the mask is not set.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            features, mask = (np.asarray(arrays[name]) for name in (FEATURES, MASK))
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} holds no {FEATURES} and {MASK} that can be read: {error}") from error
    features, mask = (array[0] if array.ndim == rank + 1 and len(array) == 1 else array for array, rank in
                      ((features, 2), (mask, 1)))  # fmt: skip
    if features.ndim != 2 or features.dtype.kind != "f":
        raise ValueError(f"{path}: {FEATURES} is {features.dtype} {features.shape}; accepted: floats (1,L,C) or (L,C)")
    if mask.shape != features.shape[:1]:
        raise ValueError(f"{path}: {MASK} is {mask.shape}, and {FEATURES} {features.shape}; accepted: as many tokens in both")
    if mask.dtype.kind not in "biuf":
        raise ValueError(f"{path}: {MASK} is {mask.dtype}; accepted: numbers, 0 where no token is")
    heard = torch.from_numpy(mask != 0)
    if not heard.any():
        raise ValueError(f"{path}: {MASK} is 0 everywhere: no token would be heard")
    told = torch.from_numpy(features).masked_fill(~heard[:, None], 0.0)
    if not torch.isfinite(told).all():
        raise ValueError(f"{path}: {FEATURES} is not finite where {MASK} is set")
    return told, heard
