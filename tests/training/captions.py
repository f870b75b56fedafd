"""Caches of captions whose features are random numbers, in the format that `encode_captions` writes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from sparsevid.system.checksums import file_sha256
from sparsevid.text.cache import DTYPES, NULL, CachedCaption, CaptionShard, TextCache

CHANNELS, TOKENS = 10, 6


def random_cache(
    folder: Path,
    captions: Sequence[str],
    *,
    tokens: int = TOKENS,
    channels: int = CHANNELS,
    dtype: str = "float32",
    seed: int = 0,
) -> TextCache:
    """Write a cache of captions, the empty one among them; a caption has a token a word and one for its end.

    Args:
        folder: made if it is missing.
        captions: each once.
        tokens: L.
        channels: C.
        dtype: that is kept.
        seed: of the features; another one is another encoder.
    """
    rows = [CachedCaption(text, min(tokens, 1 + len(text.split()))) for text in dict.fromkeys([NULL, *captions])]
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(sum(row.tokens for row in rows), channels, generator=generator).to(DTYPES[dtype])
    path = folder / "shards" / "shard-00000.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"text": features}, path)
    shard = CaptionShard(path.name, path.stat().st_size, file_sha256(path), tuple(rows))
    encoder = {"source": "random", "fingerprint": f"random, seed {seed}", "tokens": tokens, "dtype": "float32"}
    cache = TextCache(folder, encoder, channels, dtype, (shard,))
    cache.save()
    return cache
