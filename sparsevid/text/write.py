"""Writing a cache of captions: by all ranks, resumable, the same files for any number of ranks, as `shards.ShardWriter` writes.

Captions are encoded in batches of one size, the last one filled up: so a caption's features are the same to the bit in whatever
shard it comes to lie.

Dimensions: L tokens of a caption with padding, C channels, N tokens of a shard.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsevid.system.distributed import from_main
from sparsevid.system.shards import MEGABYTE, ShardPlan, ShardWriter
from sparsevid.system.threads import own_threads
from sparsevid.text.cache import CACHE_FILE, DTYPES, NULL, CachedCaption, CaptionShard, TextCache
from sparsevid.text.encoder import AT_ONCE, TextEncoder, warn_cut

SHARD_BYTES = 64 * MEGABYTE  # smaller than those of latents, so that there are some for each rank
MAX_THREADS = 8


def write_captions(
    folder: str | Path,
    captions: Iterable[str],
    encoder: TextEncoder,
    *,
    dtype: str = "float16",
    shard_bytes: int = SHARD_BYTES,
    batch: int = AT_ONCE,
) -> TextCache:
    """Write the cache of some captions, on all ranks at once.

    Each is written once, and the empty one always. Whole shards of an earlier writing are kept if all their captions are
    wanted.

    Args:
        folder: the cache; made if need be.
        captions: white space around them does not count.
        encoder: where they are encoded.
        dtype: name of the data type on disk, a key of `DTYPES`.
        shard_bytes: limit of a shard, which is held in memory twice while it is written.
        batch: captions of a forward pass.

    Returns:
        The finished cache, on every rank.

    Raises:
        ValueError: an argument is out of range, or features do not fit the data type; and as `ShardWriter.write`.
        OSError: the folder cannot be written.
    """
    if min(shard_bytes, batch) < 1:
        raise ValueError(f"shard_bytes and batch count from 1, got {shard_bytes} and {batch}")
    if dtype not in DTYPES:
        raise ValueError(f"data type {dtype!r} for a cache of captions; accepted: {', '.join(DTYPES)}")
    writer = CaptionWriter(Path(folder), encoder, dtype, shard_bytes, batch)
    items = measured(encoder, [NULL, *captions])
    warn_cut([item.text for item in items], [item.cut for item in items], encoder.tokens)
    writer.write(items)
    return TextCache.open(folder)


def measured(encoder: TextEncoder, captions: Iterable[str]) -> list[CachedCaption]:
    """Captions, each once, with the tokens that an encoder makes of them."""
    texts = list(dict.fromkeys(caption.strip() for caption in captions))
    lengths = [length for first in range(0, len(texts), 1024) for length in encoder.lengths(texts[first : first + 1024])]
    limit = encoder.tokens
    return [
        CachedCaption(text, min(length, limit), max(0, length - limit)) for text, length in zip(texts, lengths, strict=True)
    ]


class CaptionWriter(ShardWriter[CachedCaption, CaptionShard]):
    """A writing of captions; see `write_captions` for the arguments."""

    index = CACHE_FILE
    what, unit = "captions", "captions"

    def __init__(self, folder: Path, encoder: TextEncoder, dtype: str, shard_bytes: int, batch: int) -> None:
        self.encoder, self.dtype, self.batch = encoder, dtype, batch
        self.described = {
            "source": encoder.source,
            "fingerprint": from_main(encoder.fingerprint),  # which reads all weights
            "tokens": encoder.tokens,
            "dtype": str(encoder.dtype).removeprefix("torch."),
        }
        settings = {
            "encoder": self.described["fingerprint"],
            "computed": self.described["dtype"],
            "tokens": encoder.tokens,
            "dtype": dtype,
            "shard_bytes": shard_bytes,
        }
        super().__init__(folder, settings, own_threads(MAX_THREADS))

    def key(self, item: CachedCaption) -> CachedCaption:
        return item

    def bytes_of(self, item: CachedCaption) -> int:
        return item.tokens * self.encoder.channels * DTYPES[self.dtype].itemsize

    def units(self, item: CachedCaption) -> int:
        return 1

    def read_record(self, values: dict[str, Any]) -> CaptionShard:
        return CaptionShard.from_dict(values)

    def keys_of(self, shard: CaptionShard) -> tuple[CachedCaption, ...]:
        return shard.captions

    def named(self) -> set[str]:
        return {shard.name for shard in TextCache.open(self.folder).shards}

    def record(self, plan: ShardPlan[CachedCaption], size: int, sha256: str) -> CaptionShard:
        return CaptionShard(plan.name, size, sha256, plan.items)

    def tensors(self, plan: ShardPlan[CachedCaption], report: Callable[[int], Any]) -> dict[str, Tensor]:
        """Encode a shard's captions: `text` (N,C)."""
        rows = sum(item.tokens for item in plan.items)
        text = torch.empty(rows, self.encoder.channels, dtype=DTYPES[self.dtype])
        row = 0
        for first in range(0, len(plan.items), self.batch):
            items = plan.items[first : first + self.batch]
            for item, features in zip(items, self._encode(items), strict=True):
                if not torch.isfinite(features).all():
                    other = "bfloat16 and float32 hold larger ones" if self.dtype == "float16" else "see the encoder's own type"
                    raise ValueError(f"caption {item.text!r}: features are not finite in {self.dtype}; {other}")
                text[row : row + item.tokens] = features
                row += item.tokens
            report(len(items))
        return {"text": text}

    def _encode(self, items: Sequence[CachedCaption]) -> list[Tensor]:
        """Features (tokens,C) of some captions, on the CPU."""
        prompts = [item.text for item in items] + [NULL] * (self.batch - len(items))
        features, _ = self.encoder.encode(prompts)
        features = features.to(DTYPES[self.dtype]).cpu()
        return [features[i, : item.tokens] for i, item in enumerate(items)]

    def finish(self, shards: list[CaptionShard]) -> None:
        TextCache(self.folder, self.described, self.encoder.channels, self.dtype, tuple(shards)).save()
