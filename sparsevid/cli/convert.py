"""`sparsevid convert`: public checkpoints and folders of diffusers ↔ ours, and a sparse model from a dense one."""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sparsevid.cli import add_json_flag, refuse
from sparsevid.models.convert import ENTRIES, FAMILIES
from sparsevid.sparsity.spec import MERGE_TEXT
from sparsevid.system.atomic import filled, renamed
from sparsevid.system.logging import get_logger, print_json, print_table

if TYPE_CHECKING:
    from sparsevid.autoencoder.kl import KLAutoencoder
    from sparsevid.models.convert.conversion import Conversion

EXAMPLES = """examples:
  sparsevid convert latte.pt models/latte --preset Latte-XL/2
  sparsevid convert latte-ucf101.pt models/latte-ucf101 --preset Latte-XL/2 --classes 101
  sparsevid convert models/latte models/sparse --to-sparse "2P 4(1M3S1R1D) 2D" --sparse-grid 4 8 8
  sparsevid convert sparsedit.pt models/sparsedit --heads 16 --sparse-grid 1 8 8
  sparsevid convert models/latte latte.safetensors --to-public latte
  sparsevid convert PixArt-XL-2-512x512 models/pixart
  sparsevid convert PixArt-XL-2-256x256.pth models/pixart-256 --preset PixArt-XL/2-256
  sparsevid convert models/pixart PixArt-again --to-diffusers
  sparsevid convert runs/mine models/mine --weights ema
"""
SOURCE_OPTIONS = ("preset", "heads", "classes", "input_size")  # a folder of ours says all this itself
SPARSE_OPTIONS = ("no_transition_positions", "residual_upsampling", "merge_text")
logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument(
        "source",
        type=Path,
        help="public .pt, .pth or .safetensors file, a folder of a transformer or pipeline of diffusers, one with our "
        "config.json, or a run or checkpoint of ours",
    )
    parser.add_argument("out", type=Path, help="folder to write; with --to-public a .pt or .safetensors file")
    public = parser.add_argument_group("what a public file does not say")
    public.add_argument("--preset", help="name of the model, such as Latte-XL/2: gives heads and sparse grid")
    public.add_argument("--heads", type=int, help="attention heads, instead of a preset")
    public.add_argument("--classes", type=int, metavar="N", help="of a class-conditional model, if the preset has others")
    public.add_argument("--input-size", type=int, nargs=3, metavar=("T", "H", "W"), help="latents, if they are not square")
    public.add_argument(
        "--weights",
        choices=ENTRIES,
        help="which weights of a training checkpoint; default: the first it has, of a run of ours `ema`",
    )
    scores = "scores of this model, as `sparsevid evaluate score` wrote them, for the card; those of a run are found"
    parser.add_argument("--scores", type=Path, nargs="+", default=[], metavar="FILE", help=scores)
    sparse = parser.add_argument_group("sparse models")
    sparse.add_argument("--to-sparse", metavar="LAYOUT", help="make a dense model sparse, such as '2P 4(1M3S1R1D) 2D'")
    sparse.add_argument("--sparse-grid", type=int, nargs=3, metavar=("T", "H", "W"), help="default grid of the sparse tokens")
    sparse.add_argument("--no-transition-positions", action="store_true", help="as public SparseDiT; with --to-sparse")
    sparse.add_argument("--residual-upsampling", action="store_true", help="W1 = 1 on what changed; with --to-sparse")
    add_json_flag(parser)
    sparse.add_argument(
        "--merge-text", choices=MERGE_TEXT, help="whose tokens listen to the prompt in M (dense); with --to-sparse"
    )
    original = "let a DiT of diffusers compute as the original, which public weights were trained by, and not as diffusers"
    parser.add_argument("--original-dit", action="store_true", help=original)
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--to-public", choices=FAMILIES, help="write official names and position tables")
    target.add_argument("--to-diffusers", action="store_true", help="write a folder that diffusers loads")


def run(args: argparse.Namespace) -> int:
    _check_arguments(args)
    from sparsevid.models.convert.diffusers_folder import find_diffusers

    theirs = args.source.is_dir() and find_diffusers(args.source) is not None
    if args.original_dit and not theirs:
        raise ValueError(f"--original-dit is of folders of diffusers, and {args.source} is none")
    folder = _model_folder(args) if args.source.is_dir() and not theirs else None
    conversion = _read(args, folder, theirs)
    if args.to_sparse is not None:
        conversion = _make_sparse(conversion, args)
    autoencoder = _open_autoencoder(args) if theirs else None
    if args.to_public is not None:
        _write_public(conversion, args)
    else:
        with filled(args.out) as draft:
            conversion = _write(conversion, args, folder, draft)
            if autoencoder is not None:
                autoencoder.save(draft / "autoencoder")
            if theirs and not args.to_diffusers:
                _note_text_encoder(args, conversion.spec.text_tokens, draft)
    spec, report = conversion.spec, conversion.report
    if args.json:
        changes = [dict(zip(("tensor", "change", "reason"), row, strict=True)) for row in report.rows()]
        print_json({"out": str(args.out), "spec": spec.to_dict(), "carried": report.carried, "changes": changes})
        return 0
    grid = f", sparse grid {'×'.join(map(str, spec.sparse_grid))}" if spec.sparse_grid else ""
    title = f"{spec.layout}, latents {'×'.join(map(str, spec.input_size))}{grid}: {report.carried} tensors from {args.source}"
    print_table(title, ["tensor", "", "why or how"], report.rows() or [["nothing dropped or initialised", "", ""]])
    logger.info("written to %s", args.out)
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    """Raise before any work what would fail after it."""
    if not args.source.exists():
        raise FileNotFoundError(f"there is no file or folder {args.source}")
    if args.to_public is not None and args.out.suffix not in (".pt", ".pth", ".safetensors"):
        raise ValueError(f"--to-public writes a .pt, .pth or .safetensors file, found {args.out}")
    if args.out.is_dir() and args.to_public is None:
        from sparsevid.models.convert.diffusers_folder import WEIGHTS

        taken = [name for name in ("config.json", "model.safetensors", WEIGHTS) if (args.out / name).exists()]
        if taken:
            raise FileExistsError(f"{args.out} has {' and '.join(taken)} already; nothing is overwritten")
    elif args.out.exists():
        raise FileExistsError(f"{args.out} exists already; nothing is overwritten")
    if args.source.is_dir():
        refuse(args, SOURCE_OPTIONS, f"{args.source} is a folder with a config.json of its own")
        if args.to_sparse is None:
            refuse(args, ("sparse_grid",), "a model's folder has its sparse grid")
    if args.to_sparse is None:
        refuse(args, SPARSE_OPTIONS, "they belong to --to-sparse")
    if args.to_diffusers and args.to_sparse is not None:
        raise ValueError("--to-diffusers writes dense models alone: diffusers has no sparse layers")


def _read(args: argparse.Namespace, folder: Path | None, theirs: bool) -> "Conversion":
    """The model of the source: of a folder of ours, of one of diffusers (`theirs`), or of a public file."""
    from sparsevid.generation.pretrained import load_model
    from sparsevid.models.convert.checkpoint_file import read_checkpoint
    from sparsevid.models.convert.conversion import Conversion, ConversionReport
    from sparsevid.models.convert.public import from_public
    from sparsevid.models.convert.text_files import from_text_file, text_family

    if theirs:
        refuse(args, ("weights",), f"{args.source} holds one model")
        from sparsevid.models.convert.diffusers_folder import from_diffusers

        return from_diffusers(args.source, original_dit=args.original_dit)
    if folder is not None:
        model = load_model(folder)
        weights = model.state_dict()
        return Conversion(weights, model.spec, ConversionReport(len(weights)))
    # With --to-sparse the grid is that of the result.
    grid = args.sparse_grid if args.to_sparse is None else None
    options = {"preset": args.preset, "num_heads": args.heads, "input_size": args.input_size}
    weights = read_checkpoint(args.source, args.weights)
    if family := text_family(weights):
        refuse(args, ("classes",), f"{args.source} is of text ({family})")
        if grid is not None:
            raise ValueError(f"--sparse-grid cannot be used here: files of {family} are of dense models")
        return from_text_file(weights, **options)
    return from_public(weights, sparse_grid=grid, num_classes=args.classes, **options)


def _model_folder(args: argparse.Namespace) -> Path:
    """A folder of ours itself, or the one of a checkpoint with the weights that are asked for."""
    from sparsevid.generation.pretrained import find_checkpoint_folder

    if (args.source / "config.json").is_file():
        refuse(args, ("weights",), f"{args.source} holds one model")
        return args.source
    folder = find_checkpoint_folder(args.source) / (args.weights or "ema")
    if not folder.is_dir():
        raise ValueError(f"--weights {args.weights}: a checkpoint of ours has ema and model")
    return folder


def _open_autoencoder(args: argparse.Namespace) -> "KLAutoencoder | None":
    """Of a pipeline's folder its autoencoder, for a folder of ours beside the model."""
    from sparsevid.autoencoder.kl import KLAutoencoder
    from sparsevid.models.convert.diffusers_folder import pipeline_autoencoder

    found = pipeline_autoencoder(args.source)
    if found is None or args.to_public is not None or args.to_diffusers:
        return None
    return KLAutoencoder.from_source(str(found), option="vae/ of the pipeline")


def _note_text_encoder(args: argparse.Namespace, tokens: int, out: Path) -> None:
    """Of a pipeline's folder, note where its text encoder lies: it is too large to be copied."""
    from sparsevid.generation.pretrained import write_text_encoder
    from sparsevid.models.convert.diffusers_folder import pipeline_text_encoder

    if (found := pipeline_text_encoder(args.source)) is not None:
        write_text_encoder(out, found, tokens)


def _make_sparse(conversion: "Conversion", args: argparse.Namespace) -> "Conversion":
    from sparsevid.models.convert.conversion import Conversion
    from sparsevid.models.convert.dense_to_sparse import dense_to_sparse

    spec = replace(
        conversion.spec,
        layout=args.to_sparse,
        sparse_grid=args.sparse_grid,
        transition_positions=not args.no_transition_positions,
        residual_upsampling=args.residual_upsampling,
        merge_text=args.merge_text or conversion.spec.merge_text,
    )
    weights, report = dense_to_sparse(conversion.weights, conversion.spec, spec)
    return Conversion(weights, spec, conversion.report.then(report))


def _write(conversion: "Conversion", args: argparse.Namespace, folder: Path | None, out: Path) -> "Conversion":
    """Write the folder of a model that is asked for; the conversion with what has no place in it."""
    import torch

    from sparsevid.generation.pretrained import run_beside
    from sparsevid.models.convert.conversion import ConversionReport
    from sparsevid.models.transformer import DiffusionTransformer

    if args.to_diffusers:
        from sparsevid.models.convert.diffusers_folder import write_diffusers

        dropped = write_diffusers(conversion.weights, conversion.spec, out)
        report = conversion.report.then(ConversionReport(conversion.report.carried - len(dropped), dropped))
        return conversion._replace(report=report)
    with torch.device("meta"):
        model = DiffusionTransformer(conversion.spec)
    model.load_state_dict(conversion.weights, assign=True)
    run = run_beside(folder) if folder is not None else None
    model.save_pretrained(out, model_card_kwargs={"sections": _sections(run, args.scores), "whole": run is not None})
    if run is not None:
        shutil.copyfile(run / "config.yaml", out / "config.yaml")
        shutil.copytree(run / "autoencoder", out / "autoencoder", dirs_exist_ok=True)
    elif folder is not None:
        _copy_notes(folder, out)
    return conversion


def _write_public(conversion: "Conversion", args: argparse.Namespace) -> None:
    """Write the model as a file with official names."""
    import torch
    from safetensors.torch import save_file

    from sparsevid.models.convert.public import to_public

    public = to_public(conversion.weights, conversion.spec, args.to_public)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with renamed(args.out) as draft:
        if args.out.suffix == ".safetensors":
            save_file(public, draft, {"format": "pt"})
        else:
            torch.save(public, draft)


def _copy_notes(folder: Path, out: Path) -> None:
    """Of a converted model of a pipeline, what its conversion noted beside it."""
    from sparsevid.generation.pretrained import TEXT_ENCODER

    if (folder / "autoencoder").is_dir():
        shutil.copytree(folder / "autoencoder", out / "autoencoder", dirs_exist_ok=True)
    if (folder / TEXT_ENCODER).is_file():
        shutil.copyfile(folder / TEXT_ENCODER, out / TEXT_ENCODER)


def _sections(run: Path | None, scores: list[Path]) -> dict[str, str]:
    """What is known of a model beside its spec, for its card."""
    from sparsevid.evaluation.card import score_sections
    from sparsevid.runs.card import run_sections
    from sparsevid.runs.config import load_config

    if run is None:
        return score_sections(None, scores)
    folder = run.resolve()
    return run_sections(load_config(run / "config.yaml"), folder.name) | score_sections(folder.parents[1], scores)
