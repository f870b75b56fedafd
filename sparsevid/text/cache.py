"""The cache of captions: what a text encoder gives of every caption of a data set, each once; its format, and reading it.

    <cache>/
      captions.json                     what it holds, written last: encoder, tokens, data type, and the shards' records
      shards/shard-00000.safetensors    `text` (N,C): the tokens of whole captions, one after the other; padding is not kept
      shards/shard-00000.json           the shard's record, from which an interrupted writer goes on

The empty caption, which means "no prompt", is always there. `write` makes a cache.

Dimensions: B captions asked for, L tokens of a caption with padding, C channels, N tokens of a shard.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from sparsevid.system.checksums import json_sha256
from sparsevid.system.shards import OpenShards, Shard, ShardedCache
from sparsevid.text.encoder import EncodedText

FORMAT = 1  # of captions.json
CACHE_FILE = "captions.json"
NULL = ""  # the caption of "no prompt"
ENCODER: dict[str, type] = {"source": str, "fingerprint": str, "tokens": int, "dtype": str}  # what is known of it
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class CachedCaption(NamedTuple):
    """A caption of a cache: its text, the tokens that are kept of it, and how many more it has."""

    text: str
    tokens: int
    cut: int = 0

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> "CachedCaption":
        """From its JSON form. Raises ValueError or TypeError if it is not that."""
        text, tokens, cut = row
        return cls(str(text), int(tokens), int(cut))


@dataclass(frozen=True)
class CaptionShard(Shard):
    """What is known of a finished shard.

    Attributes:
        captions: whose tokens fill the rows, in this order.
    """

    captions: tuple[CachedCaption, ...]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CaptionShard":
        """From the JSON form of `asdict`. Raises ValueError, KeyError, TypeError if it is not that."""
        file = cls.file_values(values)
        captions = tuple(map(CachedCaption.from_row, values["captions"]))
        if not captions:
            raise ValueError(f"{values['name']} has no captions")
        return cls(*file, captions)


class _Place(NamedTuple):
    """Where a caption's tokens are."""

    shard: CaptionShard
    row: int
    caption: CachedCaption


@dataclass(frozen=True)
class TextCache(ShardedCache):
    """A finished cache. Can be pickled: each process opens shards for itself, when it needs them.

    Attributes:
        folder: where it lies.
        encoder: `source`, `fingerprint`, `tokens` and `dtype` of the encoder that made it.
        channels: C.
        dtype: name of the data type that is kept.
        shards: their records.
    """

    kind, file, form, dtypes = "cache of captions", CACHE_FILE, FORMAT, DTYPES
    folder: Path
    encoder: dict[str, Any]
    channels: int
    dtype: str
    shards: tuple[CaptionShard, ...]

    @property
    def tokens(self) -> int:
        """L."""
        return self.encoder["tokens"]

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """Every caption once; their places are what `index` gives and `read` takes."""
        return tuple(caption.text for shard in self.shards for caption in shard.captions)

    @classmethod
    def from_values(cls, folder: Path, values: dict[str, Any]) -> "TextCache":
        values["shards"] = tuple(CaptionShard.from_dict(shard) for shard in values["shards"])
        values["encoder"] = {key: kind(values["encoder"][key]) for key, kind in ENCODER.items()}
        values["channels"] = int(values["channels"])
        cache = cls(folder, **values)
        wrong = next((row for shard in cache.shards for row in shard.captions if not 0 < row.tokens <= cache.tokens), None)
        if wrong is not None:
            raise ValueError(f"{wrong.text!r} has {wrong.tokens} tokens; accepted: from 1 to {cache.tokens}")
        if NULL not in cache._places or len(cache._places) < len(cache.captions):
            raise ValueError("the empty caption is missing, or a caption is there twice")
        return cache

    def described(self) -> str:
        """The encoder, in words."""
        return f"{self.encoder['source']} (fingerprint {self.encoder['fingerprint'][:16]}, {self.tokens} tokens)"

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over encoder, captions and shards."""
        shards = [[shard.sha256, [list(caption) for caption in shard.captions]] for shard in self.shards]
        values = [self.encoder["fingerprint"], self.tokens, self.channels, self.dtype, shards]
        return json_sha256(values)

    def __contains__(self, caption: str) -> bool:
        """Whether a caption is there; white space around it does not count."""
        return caption.strip() in self._indices

    def index(self, caption: str) -> int:
        """The place of a caption; white space around it does not count.

        Raises:
            KeyError: it is not there; the message names both.
        """
        place = self._indices.get(caption.strip())
        if place is None:
            raise KeyError(
                f"{self.folder} holds no caption {caption!r}, among {len(self.captions)}: sparsevid encode_captions CARD --out "
                f"{self.folder} adds what the data has now"
            )
        return place

    def read(self, indices: Sequence[int]) -> EncodedText:
        """Captions by their places, on the CPU.

        Args:
            indices: B of them, in any order, repeats allowed.

        Returns:
            (B,L,C) in the cache's data type, with mask; memory of its own.

        Raises:
            IndexError: no such caption.
            ValueError: a shard is missing or damaged.
        """
        wrong = [index for index in indices if not 0 <= index < len(self.captions)]
        if wrong:
            raise IndexError(f"{self.folder}: caption {wrong[0]} asked for, there are {len(self.captions)}")
        places = [self._places[self.captions[index]] for index in indices]
        text = torch.zeros(len(places), self.tokens, self.channels, dtype=DTYPES[self.dtype])
        mask = torch.zeros(len(places), self.tokens, dtype=torch.bool)
        for i, (shard, row, caption) in enumerate(places):
            try:
                rows = self._open(shard).get_slice("text")
                expected = [sum(each.tokens for each in shard.captions), self.channels]
                if rows.get_shape() != expected:
                    raise ValueError(f"{self.folder}: {shard.name} holds {rows.get_shape()}, {CACHE_FILE} says {expected}")
                text[i, : caption.tokens] = rows[row : row + caption.tokens]
            except SafetensorError as error:
                raise ValueError(f"{self.folder}: {shard.name} is damaged: {error}") from error
            mask[i, : caption.tokens] = True
        return EncodedText(text, mask, tuple(place.caption.cut for place in places))

    def null(self) -> EncodedText:
        """What "no prompt" is, of one prompt."""
        return self.read([self._indices[NULL]])

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {caption: i for i, caption in enumerate(self.captions)}

    @cached_property
    def _open(self) -> OpenShards:
        return OpenShards(self.folder)

    @cached_property
    def _places(self) -> dict[str, _Place]:
        places = {}
        for shard in self.shards:
            row = 0
            for caption in shard.captions:
                places[caption.text] = _Place(shard, row, caption)
                row += caption.tokens
        return places
