"""`sparsevid benchmark`: models, reading of clips, training steps, sampling, and what samplers make of a checkpoint."""

import argparse
import json
import shlex
from pathlib import Path

from sparsevid.cli import add_card_option
from sparsevid.cli.benchmarked import RUN, add_models, clips_of_card, clips_of_run, named_models
from sparsevid.diffusion.samplers import SAMPLERS
from sparsevid.models.presets import PRESETS
from sparsevid.sparsity.grid import Grid
from sparsevid.system.atomic import check_writable, renamed
from sparsevid.system.distributed import check_device, default_device, is_main
from sparsevid.system.logging import print_table
from sparsevid.videos.write import FORMATS

NAME = "benchmark"
HELP = "Time models, training, sampling and the reading of clips; compare what samplers make of a checkpoint."
EXAMPLES = """examples:
  sparsevid benchmark model --presets Latte-XL/2 SparseLatte-XL/2
  sparsevid benchmark model --presets SparseLatte-B/2 --grids 4,8,8 4,6,6 4,4,4 --batch 1 4 --json bench.json
  sparsevid benchmark model --presets Latte-S/2 --against-naive --dtype float32 bfloat16
  sparsevid benchmark model --presets SparseLatte-S/2 --input-size 8 16 16 --grids 2,4,4 --device cpu
  sparsevid benchmark model --presets SparseLatte-XL/2 --layouts '2P 4(1M3S1R1D) 2D' '2P 3(1M4S1R1D) 5D'
  sparsevid benchmark model --config configs/demo/sparse.yaml model.hidden_size=256 --device cpu

  sparsevid benchmark data demo
  sparsevid benchmark data ucf101 --decoders pyav decord --workers 1 2 4 --latents latents/ucf101 --json data.json
  sparsevid benchmark data demo --frames 16 --stride 3 --size 256 256 --preset Latte-S/2 --device cpu --markdown

  sparsevid benchmark training --presets Latte-S/2 SparseLatte-S/2
  sparsevid benchmark training --config runs/demo/sparse --batch 4

  sparsevid benchmark sampling --presets SparseLatte-XL/2 --samplers ddim --steps 20
  sparsevid benchmark sampling --presets SparseLatte-XL/2 --steps 20 --extrapolate --product --json sampling.json
  sparsevid benchmark sampling --presets SparseLatte-S/2 --input-size 8 16 16 --steps 5 --autoencoder none --device cpu
  sparsevid benchmark sampling --presets SparseLatte-XL/2 --dtype bfloat16 --batch 1 4 16 32 --compile off on --extrapolate
  sparsevid benchmark sampling --config runs/demo/sparse --steps 50

  sparsevid benchmark quality runs/demo/sparse --steps 5 10 20 50 --out quality
  sparsevid benchmark quality runs/demo/sparse --samplers heun --steps 5 20 --reuse-every 1 2 4 --clips 256

  sparsevid benchmark distance --sizes 2048,400 512,1408
"""
TF32 = "on a GPU: let products and convolutions of float32 round their inputs to 10 bits of mantissa"
# Arguments that say nothing about what is measured.
_SILENT = ("action", "command", "json", "markdown", "out")
_POSITIONAL = ("card", "checkpoint")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    style = {"formatter_class": parser.formatter_class, "epilog": EXAMPLES}
    _add_model_arguments(actions.add_parser("model", help="forwards of models", **style))
    _add_data_arguments(actions.add_parser("data", help="reading of clips", **style))
    _add_training_arguments(actions.add_parser("training", help="training steps of models", **style))
    _add_sampling_arguments(actions.add_parser("sampling", help="clips from noise to file", **style))
    _add_quality_arguments(actions.add_parser("quality", help="samplers and steps on a checkpoint", **style))
    _add_distance_arguments(actions.add_parser("distance", help="the Fréchet distance in two forms", **style))


def _add_model_arguments(model: argparse.ArgumentParser) -> None:
    add_models(model, "model", f"of {', '.join(PRESETS)}")
    model.add_argument("--layouts", nargs="+", metavar="LAYOUT", help="layouts of the presets' depth; default: their own")
    model.add_argument("--grids", nargs="+", type=_grid, metavar="T,H,W", help="sparse grids; default: the presets' own")
    model.add_argument("--batch", nargs="+", type=int, default=[1], metavar="B", help="clips of a forward")
    model.add_argument("--dtype", nargs="+", default=["float32"], metavar="NAME", help="float32 or bfloat16, or both")
    model.add_argument("--tf32", action="store_true", help=TF32)
    model.add_argument("--input-size", type=int, nargs=3, metavar=("T", "H", "W"), help="latent frames, height, width")
    model.add_argument("--against-naive", action="store_true", help="time the dense models as public code writes them too")
    model.add_argument("--repeats", type=int, default=5, metavar="N", help="timed turns; each goes through all cases")
    model.add_argument("--warmup", type=int, default=1, metavar="N", help="untimed turns before")
    model.add_argument("--matmul-sizes", nargs="+", type=int, metavar="N", help="sides of the square matmuls")
    model.add_argument("--device", help="cpu, cuda or cuda:N; default: the GPU if there is one, else the CPU")
    model.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here too")


def _add_data_arguments(data: argparse.ArgumentParser) -> None:
    data.add_argument("card", nargs="?", metavar="CARD", help="a dataset card: a name or a YAML file; default: demo")
    add_card_option(data)
    data.add_argument("--config", **RUN, help="clips and model of a run: its YAML file or folder, and dotted settings over it")
    data.add_argument("--root", metavar="DIR", help="the folder with the data; default: the card's")
    data.add_argument("--decoders", nargs="+", default=["pyav", "decord"], metavar="NAME", help="decoding backends")
    data.add_argument("--latents", metavar="DIR", help="read from this latent cache too")
    data.add_argument("--workers", nargs="+", type=int, default=[1, 2], metavar="N", help="processes that read; 0: this one")
    data.add_argument("--frames", type=int, metavar="T", help="of a clip; default: the card's")
    data.add_argument("--stride", type=int, metavar="N", help="of a clip's frames; default: the card's")
    data.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of a clip in pixels; default: the card's")
    data.add_argument("--clips", type=int, default=64, metavar="N", help="timed clips of a turn")
    data.add_argument("--batch", type=int, default=4, metavar="B", help="clips of a batch that is read")
    data.add_argument("--repeats", type=int, default=3, metavar="N", help="timed turns; each goes through everything")
    data.add_argument("--preset", metavar="NAME", help="the model that takes the clips in training; default: Latte-S/2")
    data.add_argument("--step-batch", type=int, default=1, metavar="B", help="clips of a training step")
    data.add_argument("--device", help="where the model trains; default: the GPU if there is one, else the CPU")
    data.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here too")
    data.add_argument("--markdown", action="store_true", help="print a Markdown list and table")


def _add_training_arguments(training: argparse.ArgumentParser) -> None:
    add_models(training, "training", "the first is 1")
    training.add_argument("--frames", type=int, metavar="T", help="of a clip of the presets; default: 16")
    training.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of it in pixels; default: 256 256")
    training.add_argument("--batch", type=int, default=1, metavar="B", help="clips of a step")
    training.add_argument("--tf32", action="store_true", help=TF32)
    training.add_argument("--repeats", type=int, default=3, metavar="N", help="timed turns; each goes through everything")
    training.add_argument("--device", help="cpu, cuda or cuda:N; default: the GPU if there is one, else the CPU")
    training.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here too")


def _add_sampling_arguments(sampling: argparse.ArgumentParser) -> None:
    add_models(sampling, "sampling", "each beside the dense model of its size")
    samplers = f"of {', '.join(SAMPLERS)}; default: the run's, without one ddim"
    sampling.add_argument("--samplers", nargs="+", metavar="NAME", help=samplers)
    sampling.add_argument("--steps", nargs="+", type=int, default=[20], metavar="N", help="of the samplers")
    sampling.add_argument("--batch", nargs="+", type=int, default=[1], metavar="B", help="clips denoised together")
    sampling.add_argument("--dtype", nargs="+", default=["float32"], metavar="NAME", help="float32 or bfloat16, or both")
    sampling.add_argument("--tf32", action="store_true", help=TF32)
    sampling.add_argument(
        "--compile", nargs="+", default=["off"], choices=("off", "on"), help="a graph for each stage, or both"
    )
    sampling.add_argument("--input-size", type=int, nargs=3, metavar=("T", "H", "W"), help="latent frames, height, width")
    sampling.add_argument("--extrapolate", action="store_true", help="time single calls of the model and add them up")
    sampling.add_argument("--product", action="store_true", help="also 5 flow steps, sparse, against 250 of DDPM, dense")
    sampling.add_argument(
        "--autoencoder", default="linear", metavar="WHAT", help="linear, none, or the folder of a checkpoint or autoencoder"
    )
    sampling.add_argument("--format", default="ffv1", choices=tuple(FORMATS), help="of the files that are written")
    sampling.add_argument("--repeats", type=int, default=3, metavar="N", help="timed turns; each goes through everything")
    sampling.add_argument("--matmul-sizes", nargs="+", type=int, metavar="N", help="sides of the square matmuls")
    sampling.add_argument("--device", help="cpu, cuda or cuda:N; default: the GPU if there is one, else the CPU")
    sampling.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here too")


def _add_quality_arguments(quality: argparse.ArgumentParser) -> None:
    quality.add_argument("checkpoint", metavar="CHECKPOINT", help="of a run that was trained here, or the run's folder")
    quality.add_argument("--samplers", nargs="+", metavar="NAME", help="default: all that fit the checkpoint's objective")
    quality.add_argument("--steps", nargs="+", type=int, default=[5, 10, 20, 50], metavar="N", help="of each sampler")
    quality.add_argument("--reuse-every", nargs="+", type=int, default=[1], metavar="N", help="also with step reuse")
    quality.add_argument("--clips", type=int, default=64, metavar="N", help="samples of each case, and real clips")
    quality.add_argument("--protocol", metavar="NAME", help="of the scores; default: the run's")
    quality.add_argument("--data-root", metavar="DIR", help="the folder with the real videos; default: as the run says")
    quality.add_argument("--weights", choices=("ema", "model"), help="averaged or raw weights; default: averaged")
    quality.add_argument("--autoencoder", metavar="WHAT", help="kl:SOURCE or linear:FOLDER, in place of the checkpoint's own")
    quality.add_argument("--seed", type=int, default=0, help="sample i starts from the same noise in all cases")
    quality.add_argument("--batch", type=int, default=16, metavar="B", help="clips denoised together")
    quality.add_argument("--scale", type=int, default=1, metavar="N", help="pixels of the picture for one of a clip")
    quality.add_argument("--device", help="cpu, cuda or cuda:N; default: the GPU if there is one, else the CPU")
    quality.add_argument("--out", type=Path, default=Path("quality"), metavar="DIR", help="for quality.png and quality.json")


def _add_distance_arguments(distance: argparse.ArgumentParser) -> None:
    sizes = [(2048, 400), (2048, 1408), (512, 1408)]  # of FVD, of content-debiased FVD, and of that with few clips
    distance.add_argument("--sizes", nargs="+", type=_size, default=sizes, metavar="N,D", help="clips on each side, dimensions")
    distance.add_argument("--repeats", type=int, default=5, metavar="N", help="timed turns of each size")
    distance.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here too")


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, and write the JSON file if one is named. Returns 0; failures raise."""
    from sparsevid.system.precision import set_float32

    set_float32(getattr(args, "tf32", False))
    if args.action == "quality":
        return _quality(args)
    if args.json is not None:
        _check_json(args.json)
    measure = {"model": _model, "data": _data, "training": _training, "sampling": _sampling, "distance": _distance}
    values = measure[args.action](args)
    if is_main() and args.json is not None:
        _write_json(args.json, values)
    return 0


def _model(args: argparse.Namespace) -> dict:
    """Measure models, print them, and return everything as plain values."""
    from sparsevid.benchmark.model import PEAK_METHOD, measure_cases, plan_cases
    from sparsevid.benchmark.report import MODEL_COLUMNS, as_markdown, describe_run, model_as_json, model_lines, model_rows

    cases = plan_cases(
        named_models(args),
        layouts=args.layouts or (),
        grids=args.grids or (),
        batches=args.batch,
        dtypes=args.dtype,
        input_size=None if args.input_size is None else tuple(args.input_size),
        against_naive=args.against_naive,
    )
    device = check_device(args.device or default_device())
    header = describe_run(command_line(args), device) | {"peak_memory": PEAK_METHOD[device.type]}
    measured = measure_cases(cases, repeats=args.repeats, warmup=args.warmup, device=device, matmul_sizes=args.matmul_sizes)
    if is_main():
        print(as_markdown(header, model_lines(measured), MODEL_COLUMNS, model_rows(measured)))
    return model_as_json(header, measured)


def _training(args: argparse.Namespace) -> dict:
    """Measure training steps, print them, and return everything as plain values."""
    from dataclasses import asdict

    from sparsevid.benchmark.report import TRAINING_COLUMNS, as_markdown, describe_run, training_lines, training_rows
    from sparsevid.benchmark.training import measure_training

    models = named_models(args)
    if args.config is not None and not args.presets and models[0].spec.is_sparse:
        models.insert(0, models[0].dense)
    args.frames, args.size = args.frames or 16, args.size or [256, 256]
    device = check_device(args.device or default_device())
    header = describe_run(command_line(args), device)
    options = {"frames": args.frames, "size": tuple(args.size), "batch": args.batch, "repeats": args.repeats}
    measured = measure_training(models, device=device, **options)
    if is_main():
        print(as_markdown(header, training_lines(measured), TRAINING_COLUMNS, training_rows(measured)))
    return {"header": header, "steps": [asdict(time) for time in measured]}


def _data(args: argparse.Namespace) -> dict:
    """Measure ways to read clips, print them, and return everything as plain values."""
    from sparsevid.benchmark.data import measure_data, open_sources
    from sparsevid.benchmark.report import (
        DATA_COLUMNS,
        as_markdown,
        data_as_json,
        data_lines,
        data_rows,
        describe_run,
        header_lines,
    )
    from sparsevid.benchmark.training import TrainingStep

    title, model, spec, manifest, rule, size = clips_of_card(args) if args.config is None else clips_of_run(args)
    device = check_device(args.device or default_device())
    sources = open_sources(manifest, rule, size, args.decoders, args.latents)
    step = TrainingStep(spec, args.step_batch, device)
    header = describe_run(command_line(args), device) | {"data": f"{len(manifest.videos)} videos, {manifest.fingerprint}"}
    sizes = {"clips": args.clips, "batch": args.batch, "repeats": args.repeats}
    measured = measure_data(sources, args.workers, step, args.step_batch, **sizes)
    lines, rows = data_lines(measured, model, rule), data_rows(measured)
    if is_main() and args.markdown:
        print(as_markdown(header, lines, DATA_COLUMNS, rows))
    elif is_main():
        print("\n".join(header_lines(header)))
        print_table(f"reading clips of {title}", list(DATA_COLUMNS), rows)
        print("\n".join(lines))
    return data_as_json(header, measured)


def _sampling(args: argparse.Namespace) -> dict:
    """Measure sampling, print it, and return everything as plain values."""
    from sparsevid.benchmark.report import as_markdown, describe_run
    from sparsevid.benchmark.sampling import measure_sampling, open_autoencoder
    from sparsevid.benchmark.sampling_cases import plan_sampling
    from sparsevid.benchmark.sampling_report import SAMPLING_COLUMNS, sampling_as_json, sampling_lines, sampling_rows

    models = named_models(args)
    args.samplers = args.samplers or ["ddim" if isinstance(models[-1], str) else models[-1].sampler]
    cases = plan_sampling(
        models,
        samplers=args.samplers,
        steps=args.steps,
        batches=args.batch,
        dtypes=args.dtype,
        compiled=[each == "on" for each in args.compile],
        input_size=None if args.input_size is None else tuple(args.input_size),
        extrapolate=args.extrapolate,
        product=args.product,
    )
    device = check_device(args.device or default_device())
    autoencoder = open_autoencoder(args.autoencoder, cases[0].network.spec.in_channels)
    header = describe_run(command_line(args), device)
    options = {"repeats": args.repeats, "matmul_sizes": args.matmul_sizes, "format": args.format}
    measured = measure_sampling(cases, autoencoder, device=device, **options)
    if is_main():
        lines = sampling_lines(measured, args.autoencoder)
        print(as_markdown(header, lines, SAMPLING_COLUMNS, sampling_rows(measured)))
    return sampling_as_json(header, measured)


def _distance(args: argparse.Namespace) -> dict:
    """Measure distances, print them, and return everything as plain values."""
    import torch

    from sparsevid.benchmark.distance import DISTANCE_COLUMNS, distance_as_json, distance_rows, measure_distances
    from sparsevid.benchmark.report import as_markdown, describe_run

    header = describe_run(command_line(args), torch.device("cpu"))
    measured = measure_distances(args.sizes, repeats=args.repeats)
    print(as_markdown(header, [], DISTANCE_COLUMNS, distance_rows(measured)))
    return distance_as_json(header, measured)


def _quality(args: argparse.Namespace) -> int:
    """Sample a checkpoint in all ways, score, print the table, and write picture and JSON."""
    from sparsevid.benchmark.quality import (
        QUALITY_COLUMNS,
        measure_quality,
        open_scoring,
        plan_quality,
        quality_as_json,
        quality_lines,
        quality_rows,
        write_picture,
    )
    from sparsevid.benchmark.report import as_markdown, describe_run
    from sparsevid.generation.pipeline import VideoPipeline

    if args.scale < 1:
        raise ValueError(f"--scale is a whole number from 1, got {args.scale}")
    device = check_device(args.device or default_device())
    pipeline = VideoPipeline.from_pretrained(args.checkpoint, weights=args.weights, device=device, autoencoder=args.autoencoder)
    cases = plan_quality(pipeline, args.samplers, args.steps, args.reuse_every, batch=args.batch)
    args.out.mkdir(parents=True, exist_ok=True)
    check_writable(args.out)
    scoring = open_scoring(pipeline, args.clips, args.protocol, args.data_root)
    header = describe_run(command_line(args), device)
    results = measure_quality(pipeline, scoring, cases, clips=args.clips, seed=args.seed, batch=args.batch)
    print(as_markdown(header, quality_lines(scoring, args.clips), QUALITY_COLUMNS, quality_rows(results)))
    _write_json(args.out / "quality.json", quality_as_json(header, results))
    write_picture(args.out / "quality.png", results, args.scale)
    return 0


def _check_json(path: Path) -> None:
    """Raise before the work if `--json` names what `_write_json` could not write, or would put a file in the place of."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"--json {path}: there is no folder {folder}")
    if path.exists() and not path.is_file():
        raise ValueError(f"--json {path} is there and no file")
    check_writable(folder)


def _write_json(path: Path, values: dict) -> None:
    with renamed(path.resolve()) as draft:  # of a link, what it names is replaced
        draft.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def command_line(args: argparse.Namespace) -> str:
    """The command with every option that rules the numbers, defaults included."""
    words = ["sparsevid", NAME, args.action]
    words += [value for name in _POSITIONAL if (value := getattr(args, name, None)) is not None]
    for name, value in vars(args).items():
        if value is None or value is False or name in (*_SILENT, *_POSITIONAL):
            continue
        if name == "card_option":  # given again for each
            words += [word for each in value for word in ("--card-option", each)]
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            each = value if isinstance(value, list) else [value]
            words += [",".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in each]
    return shlex.join(words)


def _size(text: str) -> tuple[int, int]:
    """`2048,400` as (N, D)."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"a size is N,D such as 2048,400, got {text!r}")
    return int(parts[0]), int(parts[1])


def _grid(text: str) -> Grid:
    """`4,8,8` as a grid."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"a sparse grid is T,H,W such as 4,8,8, got {text!r}")
    return Grid(*map(int, parts))
