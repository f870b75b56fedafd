"""`sparsevid analyse`: what attention does in each layer of a checkpoint."""

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsevid.cli import add_json_flag, add_model_options, add_plot_switch, all_ranks, check_least, check_results

if TYPE_CHECKING:
    from sparsevid.generation.pipeline import VideoPipeline
    from sparsevid.study.file import MeasureSettings

EXAMPLES = """examples:
  sparsevid analyse runs/study/paper/dense/seed-0 --out runs/analysis              # 32 held-out clips, 8 intervals of time
  sparsevid analyse runs/study/paper/dense/seed-0 --out runs/analysis --clips 96 --window 2 --again
  sparsevid analyse models/latte --card ucf101 --autoencoder kl:stabilityai/sd-vae-ft-ema --out runs/latte
  torchrun --nproc_per_node 8 -- tools/analyse.py runs/ucf101/dense --out runs/ucf101/analysis

OUT gets analysis.json, all numbers with how they came to be, and the picture analysis.svg and analysis.png. What is there is
shown and not computed again. docs/search.md says what the figures mean.
"""
FILE, PICTURES = "analysis.json", ("analysis.svg", "analysis.png")
COLUMNS = ["layer", "axis", "entropy", "noisiest", "cleanest", "near by", "÷ uniform", "change", "change of loss"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run's folder, a checkpoint, or an exported folder")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the results", required=True)
    parser.add_argument("--clips", type=int, default=32, help="held-out clips; errors are over them")
    text = "of each clip: one in each of so many intervals that training draws equally often"
    parser.add_argument("--times", type=int, default=8, help=text)
    parser.add_argument("--split", default="test", help="of the data, with the clips")
    parser.add_argument("--window", type=int, default=1, help="keys are near by within so many rows and columns, or frames")
    parser.add_argument("--batch", type=int, default=8, help="clips of a forward; figures do not depend on it")
    parser.add_argument("--seed", type=int, default=0, help="of clips, times and noise")
    parser.add_argument("--again", action="store_true", help="compute what is there again, or with other settings")
    add_json_flag(parser)
    add_plot_switch(parser)
    model = parser.add_argument_group("model and data")
    text = "dataset card, in place of the run's; needed by a model that has no run"
    model.add_argument("--card", metavar="CARD", help=text)
    model.add_argument("--root", metavar="DIR", help="where its videos are. Default: where the run, or the card, says")
    text = "of a model of text, the folder of its captions' features. Default: the run's"
    model.add_argument("--captions", metavar="DIR", help=text)
    add_model_options(model)


def run(args: argparse.Namespace) -> int:
    from sparsevid.generation.pipeline import VideoPipeline
    from sparsevid.study.file import MeasureSettings
    from sparsevid.system.distributed import is_main, peers_may_die

    check_least(args, clips=2, times=1, window=0, batch=1)
    with all_ranks(args.device) as device, peers_may_die("an analysis"):
        check_results(args.out, args.plot)
        loading = {"weights": args.weights, "autoencoder": args.autoencoder, "device": device}
        pipeline = VideoPipeline.from_pretrained(args.checkpoint, **loading)
        _choose_data(args, pipeline)
        settings = {name: getattr(args, name) for name in ("split", "clips", "times", "seed")}
        analysis = _analysis(args, pipeline, MeasureSettings(batch=args.batch, **settings))
        if is_main():
            _show(args, analysis)
    return 0


def _choose_data(args: argparse.Namespace, pipeline: "VideoPipeline") -> None:
    """Let the clips be those of the command's card and root, as large as the model takes them.

    Raises:
        ValueError: neither the model's run nor the command says which.
    """
    from sparsevid.runs.config import DataConfig

    config = pipeline.config
    if args.card is None and config.record.fingerprint is None:
        raise ValueError(f"{args.checkpoint} says nothing of the data that it was trained on: give their card, --card CARD")
    data = config.data
    if args.card is not None:
        frames, *size = pipeline.autoencoder.clip_size(pipeline.model.spec.input_size)
        data = DataConfig(card=args.card, frames=frames, size=size, decoder=data.decoder)
    if args.root is not None:
        data = replace(data, root=args.root)
    if args.captions is not None:
        data = replace(data, captions=args.captions)
    elif args.card is not None and pipeline.model.spec.text_channels:
        raise ValueError(f"{args.checkpoint} is of text: beside --card give its captions' features, --captions DIR")
    text = replace(config.text, tokens=pipeline.model.spec.text_tokens)
    pipeline.config = replace(config, data=data, text=text)


def _analysis(args: argparse.Namespace, pipeline: "VideoPipeline", measure: "MeasureSettings") -> dict[str, Any]:
    """What the folder holds, if it is of this model, these clips and settings; else it is computed and written.

    Raises:
        FileExistsError: it holds another analysis.
    """
    from sparsevid.benchmark.report import describe_run
    from sparsevid.data.open import KnownTrees
    from sparsevid.search.attention import measure_attention, summarise
    from sparsevid.search.clips import open_clips
    from sparsevid.study.heldout import time_edges
    from sparsevid.study.results import read_json
    from sparsevid.system.atomic import write_json
    from sparsevid.system.distributed import from_main

    trees = KnownTrees()
    told = from_main(lambda: {"model": pipeline.fingerprint(), "data": trees.fingerprint(pipeline.config.data)})
    told |= {name: getattr(measure, name) for name in ("split", "clips", "times", "seed")} | {"window": args.window}
    kept = {} if args.again else from_main(lambda: read_json(args.out / FILE))
    if kept:
        _check_same(args.out / FILE, kept.get("of", {}), told)
        return kept
    clips = open_clips(pipeline, measure)
    told["data"] = trees.look(pipeline.config.data).fingerprint
    found = summarise(measure_attention(pipeline, clips, measure, window=args.window))
    analysis = {
        "run": describe_run(_command(args), pipeline.device),
        "of": told,
        "spec": pipeline.model.spec.to_dict(),
        "edges": time_edges(pipeline.config, measure.times),
        **found,
    }

    def write() -> None:
        for name in PICTURES:
            (args.out / name).unlink(missing_ok=True)
        write_json(args.out / FILE, analysis)

    from_main(write, (OSError,))
    return analysis


def _check_same(path: Path, said: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Data that are not here, or that nobody has looked into since they changed, do not count."""
    from sparsevid.system.logging import get_logger

    other = [f"{key} {said.get(key)}" for key, value in told.items() if value is not None and said.get(key) != value]
    if other:
        raise FileExistsError(f"{path} is of {', '.join(other)}; --again computes it anew, or give another --out")
    get_logger(__name__).info("%s is there already; --again computes it anew", path)


def _command(args: argparse.Namespace) -> str:
    """The command that a reader repeats."""
    words = ["sparsevid", "analyse", args.checkpoint]
    for name in ("clips", "times", "split", "window", "batch", "seed", "card", "captions", "weights", "autoencoder", "out"):
        words += [f"--{name}", str(value)] if (value := getattr(args, name)) is not None else []
    return shlex.join(words)


def _show(args: argparse.Namespace, analysis: Mapping[str, Any]) -> None:
    """Print the table, and draw the pictures that are not there."""
    from sparsevid.system.logging import get_logger, print_json, print_table

    of, loss = analysis["of"], analysis["loss"]
    title = f"{args.checkpoint}: {of['clips']} clips of {of['split']}, {of['times']} times; window {of['window']}"
    if args.json:
        print_json(analysis)
    else:
        print_table(f"{title}; loss {loss['mean']:.4f} ± {loss['error']:.4f}", COLUMNS, list(map(_cells, analysis["layers"])))
    if args.plot == "on" and (open_ones := [path for name in PICTURES if not (path := args.out / name).is_file()]):
        from sparsevid.search.attention_plot import plot_attention

        plot_attention(open_ones, analysis, title=title)
    get_logger(__name__).info("%s in %s", " and ".join([FILE, *(PICTURES if args.plot == "on" else ())]), args.out)


def _cells(layer: Mapping[str, Any]) -> list[str]:
    entropy, change, loss = (layer[name] for name in ("entropy", "change", "loss_change"))
    share, uniform = (layer[name]["mean"] for name in ("share", "uniform"))
    return [
        f"{layer['index']} {layer['kind']}",
        layer["axis"],
        f"{entropy['mean']:.3f} ± {entropy['error']:.3f}",
        f"{entropy['means'][-1]:.3f}",
        f"{entropy['means'][0]:.3f}",
        f"{share:.3f}",
        f"{share / uniform:.2f}",
        f"{change['mean']:.5f} ± {change['error']:.5f}",
        f"{loss['mean']:+.5f} ± {loss['error']:.5f}",
    ]
