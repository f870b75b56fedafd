"""`sparsevid encode_latents`: a dataset through an autoencoder, once, to a cache that training reads in place of videos."""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sparsevid.cli import add_card, all_ranks, check_least
from sparsevid.system.logging import get_logger

if TYPE_CHECKING:
    from sparsevid.autoencoder.base import Autoencoder

EXAMPLES = """examples:
  sparsevid encode_latents ucf101 --out latents/ucf101 --source stabilityai/sd-vae-ft-ema
  torchrun --nproc_per_node 8 tools/encode_latents.py ucf101 --out latents/ucf101 --source models/vae
  sparsevid encode_latents demo --out latents/demo --autoencoder pixels
  sparsevid encode_latents demo --out latents/demo --autoencoder pixels --verify

A run reads the cache with data.latents=FOLDER. Any clip rule, split and order of labels works from one cache; autoencoder,
size, videos and --display must be the run's. --autoencoder pixels keeps resized frames.
The same command given again keeps what is written. If a video cannot be decoded, let sparsevid prepare_data CARD --full-scan
leave out all such videos first.
"""
SHARD_MB = 256
BATCH = 16

logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the card, the cache's folder, and how frames are encoded."""
    parser.epilog = EXAMPLES
    add_card(parser)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the cache", required=True)
    parser.add_argument("--autoencoder", choices=("kl", "temporal", "pixels"), default="kl", help="what encodes")
    parser.add_argument("--source", metavar="DIR_OR_HUB_ID", help="kl, temporal: its weights")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of frames, in pixels; default: the card's")
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, help="mirrored frames too; default: as the card says")
    shown = "frames as a player shows them, or as they are stored; default: as the card says"
    parser.add_argument("--display", action=argparse.BooleanOptionalAction, help=shown)
    parser.add_argument("--batch", type=int, default=BATCH, metavar="N", help="frames of a forward pass")
    parser.add_argument("--dtype", choices=("float16", "float32", "uint8"), help="default: float16, of pixels uint8")
    parser.add_argument("--shard-mb", type=int, default=SHARD_MB, metavar="MB", help="limit of a file, in MiB")
    parser.add_argument("--workers", type=int, metavar="N", help="decoding threads of each rank; default: its cores, 8 at most")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: the GPU if there is one, else the CPU")
    parser.add_argument("--verify", action="store_true", help="write nothing: check a cache against card and checksums")


def run(args: argparse.Namespace) -> int:
    """Write the cache, or check it. Returns 0; failures raise."""
    from sparsevid.data.latents.read import LatentCache
    from sparsevid.data.latents.write import write_cache
    from sparsevid.data.tree.cards import load_card, resolve_root
    from sparsevid.data.tree.manifest import open_manifest
    from sparsevid.system.precision import set_float32
    from sparsevid.system.shards import MEGABYTE

    check_least(args, batch=1, shard_mb=1, workers=1)
    card = load_card(args.card, args.card_option or ())
    set_float32()
    autoencoder = _open_autoencoder(args)
    size = tuple(args.size or card.clip.size)
    flip = card.clip.flip if args.flip is None else args.flip
    with all_ranks(args.device) as device:
        rules = card.rules() if args.display is None else replace(card.rules(), display=args.display)
        manifest = open_manifest(resolve_root(card, args.root), rules)
        if args.verify:
            cache = LatentCache.open(args.out)
            cache.check(manifest, autoencoder, size, flip)
            cache.verify()
        else:
            cache = write_cache(
                args.out, manifest, autoencoder, size, flip,
                rule_record=asdict(card.clip.clip_rule()), dtype=args.dtype, shard_bytes=args.shard_mb * MEGABYTE,
                batch_frames=args.batch, device=device, workers=args.workers,
            )  # fmt: skip
    logger.info("%s holds %d frames of %d videos: data.latents=%s", args.out, cache.frames, len(manifest.videos), args.out)
    return 0


def _open_autoencoder(args: argparse.Namespace) -> "Autoencoder":
    from sparsevid.autoencoder.load import PRETRAINED
    from sparsevid.autoencoder.pixels import Pixels

    if args.autoencoder in PRETRAINED:
        return PRETRAINED[args.autoencoder].from_source(args.source, args.batch, option="--source FOLDER")
    if args.source:
        raise ValueError(f"--source is where the weights of kl and temporal are; pixels has none, got {args.source}")
    return Pixels()
