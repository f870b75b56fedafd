"""`sparsevid encode_captions`: a dataset's captions through a text encoder, once, to a cache that training reads."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sparsevid.cli import add_card, all_ranks, check_least
from sparsevid.system.logging import get_logger

if TYPE_CHECKING:
    from sparsevid.data.tree.captions import Captions
    from sparsevid.text.encoder import TextEncoder

EXAMPLES = """examples:
  sparsevid encode_captions atari --root data/atari --out cache/atari-captions --encoder models/t5
  torchrun --nproc_per_node 8 tools/encode_captions.py sam --out cache/sam --encoder PixArt-alpha/PixArt-XL-2-1024-MS
  sparsevid encode_captions atari --root data/atari --out cache/atari-captions --encoder models/t5 --verify
  sparsevid encode_captions atari --root data/atari --out cache/atari-captions --encoder models/words --make-encoder --tokens 24

A run reads the cache with data.captions=FOLDER, and needs no text encoder. All captions of all videos are encoded, whatever
their split, each once, and the empty one, which means "no prompt". The same command given again keeps what is written.
Where the captions of a card are is said by its section `captions` (datasets/README.md).
"""
TOKENS, BATCH, SHARD_MB = 120, 16, 64

logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the card, the cache's folder, and what encodes."""
    parser.epilog = EXAMPLES
    add_card(parser)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the cache", required=True)
    parser.add_argument("--encoder", metavar="DIR_OR_HUB_ID", help="a T5 encoder, or a pipeline of diffusers", required=True)
    text = "where no T5 is at hand: write a small one of random weights, which knows the words of these captions, to the "
    text += "folder that --encoder names, if there is nothing"
    parser.add_argument("--make-encoder", action="store_true", help=text)
    parser.add_argument("--tokens", type=int, default=TOKENS, metavar="L", help="of a caption; longer ones are cut")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="on disk")
    text = "in which the encoder computes; default: bfloat16 on a GPU, else float32"
    parser.add_argument("--precision", choices=("bfloat16", "float32"), help=text)
    parser.add_argument("--batch", type=int, default=BATCH, metavar="N", help="captions of a forward pass")
    parser.add_argument("--shard-mb", type=int, default=SHARD_MB, metavar="MB", help="limit of a file, in MiB")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: the GPU if there is one, else the CPU")
    parser.add_argument("--verify", action="store_true", help="write nothing: check a cache against captions and checksums")


def run(args: argparse.Namespace) -> int:
    """Write the cache, or check it. Returns 0; failures raise."""
    import torch

    from sparsevid.data.tree.captions import open_captions
    from sparsevid.data.tree.cards import load_card, resolve_root
    from sparsevid.data.tree.manifest import open_manifest
    from sparsevid.system.distributed import default_device
    from sparsevid.system.precision import set_float32
    from sparsevid.system.shards import MEGABYTE
    from sparsevid.text.encoder import TextEncoder
    from sparsevid.text.write import write_captions

    check_least(args, batch=1, shard_mb=1, tokens=1)
    card = load_card(args.card, args.card_option or ())
    set_float32()
    with all_ranks(args.device) as device:
        manifest = open_manifest(resolve_root(card, args.root), card.rules())
        captions = open_captions(manifest, card.captions.rules())
        if args.make_encoder:
            _make_encoder(args.encoder, captions)
        dtype = None if args.precision is None else getattr(torch, args.precision)
        encoder = TextEncoder.from_pretrained(args.encoder, tokens=args.tokens, dtype=dtype, device=device or default_device())
        if args.verify:
            _verify(args.out, captions, encoder)
        else:
            options = {"dtype": args.dtype, "batch": args.batch, "shard_bytes": args.shard_mb * MEGABYTE}
            cache = write_captions(args.out, captions.texts, encoder, **options)
            size = sum(shard.bytes for shard in cache.shards) / MEGABYTE
            logger.info(
                "%s holds %d captions, %.1f MB, of %d videos, %d without a caption: data.captions=%s",
                args.out, len(cache.captions), size, len(manifest.videos), len(captions.missing), args.out,
            )  # fmt: skip
    return 0


def _make_encoder(folder: str, captions: "Captions") -> None:
    """Write a small encoder, unless one is there."""
    from sparsevid.system.distributed import from_main
    from sparsevid.text.small import is_taken, make_small_encoder

    def make() -> bool:  # a rank that looks for itself may find what rank 0 is writing
        return not is_taken(Path(folder)) and bool(make_small_encoder(folder, captions.texts))

    if from_main(make):
        logger.info("%s: a small encoder of random weights, which knows the words of %d captions", folder, len(captions.texts))


def _verify(folder: Path, captions: "Captions", encoder: "TextEncoder") -> None:
    """Check a cache. Raises FileNotFoundError, ValueError if it does not hold what it should."""
    from sparsevid.text.cache import TextCache

    cache = TextCache.open(folder)
    if cache.encoder["fingerprint"] != encoder.fingerprint():
        raise ValueError(
            f"{folder} holds features of {cache.described()}, not of {encoder.source} (fingerprint "
            f"{encoder.fingerprint()[:16]}, {encoder.tokens} tokens)"
        )
    if lacking := [caption for caption in captions.texts if caption not in cache]:
        raise ValueError(f"{folder} lacks {len(lacking)} of {len(captions.texts)} captions, such as {lacking[0]!r}")
    cache.verify()
    logger.info("%s holds all %d captions, whole", folder, len(cache.captions))
