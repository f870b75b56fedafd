"""`sparsevid sample`: clips from a checkpoint, as files."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsevid.cli import add_model_options, add_prompt_options, add_sampler_options, all_ranks
from sparsevid.generation import OF_PROMPTS
from sparsevid.generation.formats import LOSSLESS_FIRST, SHEET
from sparsevid.savings.options import list_savings
from sparsevid.system.logging import get_logger

if TYPE_CHECKING:
    import torch

EXAMPLES = """presets (what is given beside them wins):
  demo       8 clips as MP4 and GIF
  benchmark  2048 clips as lossless FFV1, 250 steps (ddpm, or euler of a flow model): what published FVD is measured on

examples:
  python tools/sample.py runs/demo/sparse --num 8 --steps 50 --out samples
  python tools/sample.py runs/ucf101/sparse --classes Archery Bowling 17 --guidance 4 --sampler dpm++ --steps 20
  torchrun --nproc_per_node 8 -- tools/sample.py runs/ucf101/sparse --preset benchmark --dtype bfloat16 --compile --out fakes
  python tools/sample.py runs/ucf101/sparse --saving static:every=2 --saving guidance:every=2 --guidance 4
  python tools/sample.py models/pixart --prompts "a green frog crosses a road" more.txt --guidance 4.5
  python tools/sample.py models/latte --autoencoder kl:stabilityai/sd-vae-ft-ema --num 4
  torchrun --nproc_per_node 8 -- tools/sample.py runs/imagenet/dense_b2 --num 50000 --format npz --out samples --batch 32

With torchrun, put -- before the script or write -n: it takes --num for a short form of its own --numa-binding.
"""
MOST = 10**7  # samples of a folder; a slip of the hand would be walked through by number first
DEFAULTS: dict[str, Any] = {"num": 8, "batch": 8, "format": ["mp4"]}
PRESETS: dict[str, dict[str, Any]] = {
    "demo": {"num": 8, "format": ["mp4", "gif"]},
    "benchmark": {"num": 2048, "batch": 16, "format": ["ffv1"], "steps": 250},
}
BENCHMARK_SAMPLERS = {"diffusion": "ddpm", "flow": "euler"}  # of published scores: ancestral sampling in 250 steps
OPTIONS = ("classes", *OF_PROMPTS, "sampler", "steps", "guidance", "guidance_interval", "guidance_channels", "schedule",
           "savings", "eta", "seed", "batch", "size", "frames")  # fmt: skip
logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{EXAMPLES}\nsavings, with all options and their defaults (docs/generation.md):\n{list_savings()}\n"
    parser.add_argument(
        "checkpoint",
        help="a run's folder (its newest checkpoint), a checkpoint, an exported folder, a hub id, or a converted public model",
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), help="a set of defaults, listed below")
    parser.add_argument("-n", "--num", type=int, help="number of clips in all; may grow from call to call. Default: 8")
    classes = (
        "class names or labels to go through in turn; digits that are a class's name mean it. Default: all, in a drawn order"
    )
    parser.add_argument("--classes", nargs="+", help=classes)
    seed = "the noise of sample i depends on (seed, i) alone, the sample on the other settings too, on --batch by rounding"
    parser.add_argument("--seed", type=int, default=0, help=seed)
    batch = "clips denoised together; another number changes rounding, and what some savings decide. Default: 8"
    parser.add_argument("--batch", type=int, help=batch)
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder to write to, or to complete")
    formats = (
        f"one or more of {', '.join(LOSSLESS_FIRST)}, by spaces or commas; several get a folder each. Default: mp4. Images: "
    )
    formats += "png, or npz, which is one archive of all, OUT.npz, as ADM's evaluator takes it"
    parser.add_argument("--format", nargs="+", type=_format_names, metavar="FORMAT", help=formats)
    parser.add_argument("--grid", action="store_true", help="also write the first clips side by side, as OUT-grid.mp4")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels, if not as trained")
    parser.add_argument("--frames", type=int, help="if not as trained")
    add_prompt_options(parser)
    _add_sampler_arguments(parser.add_argument_group("sampler; defaults are those of the run's config"))
    model = parser.add_argument_group("model")
    add_model_options(model, dtype="the model and an autoencoder kl compute")
    tf32 = "on a GPU: let products and convolutions of float32 round their inputs to 10 bits of mantissa, which is faster"
    model.add_argument("--tf32", action="store_true", help=tf32)
    model.add_argument("--compile", action="store_true", help="compile the model's layers, which changes rounding")
    graph = "record forwards as CUDA graphs, which changes no bit: on a GPU, or never. Default: on"
    model.add_argument("--graph", choices=("on", "off"), default="on", help=graph)


def _add_sampler_arguments(group: argparse._ArgumentGroup) -> None:
    add_sampler_options(group)
    group.add_argument("--eta", type=float, default=0.0, help="noise of ddim, 0 to 1")
    interval = "diffusion times, 0 = data to 1 = noise, between which guidance acts"
    group.add_argument("--guidance-interval", type=float, nargs=2, metavar=("LO", "HI"), help=interval)
    group.add_argument("--guidance-channels", type=int, metavar="N", help="guide the first N latent channels only")
    saving = "what calls of the model leave out, listed below; may be given again; none: nothing, whatever the config says"
    group.add_argument("--saving", action="append", dest="savings", metavar="NAME:OPTIONS", help=saving)
    group.add_argument("--reuse-every", type=_gone, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    from sparsevid.generation.prompts import read_prompts
    from sparsevid.generation.sampling import saving_texts

    chosen = chosen_settings(args)
    if not 1 <= chosen["num"] <= MOST:
        raise ValueError(f"--num is from 1 to {MOST}, got {chosen['num']}")
    saving_texts(chosen["savings"] or ())  # raises before anything is loaded
    if chosen["prompts"] is not None:
        chosen["prompts"] = read_prompts(chosen["prompts"])
    with all_ranks(args.device) as device:
        _sample(args, chosen, device)
    return 0


def _sample(args: argparse.Namespace, chosen: dict[str, Any], device: "torch.device | None") -> None:
    """Load the checkpoint, sample it, and say what was made."""
    from sparsevid.generation.job import generate
    from sparsevid.generation.pipeline import VideoPipeline
    from sparsevid.generation.pretrained import find_pretrained
    from sparsevid.system.distributed import from_main, is_main, peers_may_die

    loading = {name: chosen[name] for name in ("weights", "dtype", "tf32", "compile", "autoencoder", "text_encoder")}

    def find() -> str | Path:
        """The checkpoint itself of a run that lies here; a hub id is fetched by each host."""
        return find_pretrained(args.checkpoint) if Path(args.checkpoint).is_dir() else args.checkpoint

    with peers_may_die("loading the checkpoint"):
        source = from_main(find, (OSError, ValueError))  # the newest may be another by the time that another rank looks
        pipeline = VideoPipeline.from_pretrained(source, device=device, graph=args.graph == "on", **loading)
    if args.preset == "benchmark" and chosen["sampler"] is None:
        chosen["sampler"] = BENCHMARK_SAMPLERS[pipeline.config.objective.kind]
    sampling = pipeline.sampling(**{name: chosen[name] for name in OPTIONS})
    acting = {text.partition(":")[0] for text in sampling.savings}
    if idle := [text for text in chosen["savings"] or () if text.partition(":")[0] not in acting]:
        why = "" if sampling.guidance != 1.0 else ", without guidance"
        logger.warning("%s: nothing is left out with these options%s", ", ".join(idle), why)
    report = generate(pipeline, sampling, chosen["num"], args.out, tuple(chosen["format"]), grid=args.grid)
    if is_main():
        times = report.times
        more = f" (which holds {report.there})" if report.there > report.clips else ""
        logger.info("%d clips in %s%s, %d of them new: %d steps of %s on %s, %s; seconds of rank 0: %.1f in all, model %.1f, "
                    "decode %.1f, write %.1f", report.clips, args.out, more, report.written, sampling.steps, sampling.sampler,
                    pipeline.device, args.dtype, times.total, times.model, times.decode, times.write)  # fmt: skip
        logger.info("the first of them side by side: %s", args.out / SHEET)
        if report.share is not None:
            logger.info("%s: %.0f%% of the layers computed", ", ".join(sampling.savings), 100 * report.share)


def chosen_settings(args: argparse.Namespace) -> dict[str, Any]:
    """All options; those that are not given come from the preset, else they are the defaults."""
    below = DEFAULTS | PRESETS.get(args.preset, {})
    given = vars(args) | {"format": args.format and [name for names in args.format for name in names]}
    chosen = {name: below.get(name) if value is None else value for name, value in given.items()}
    return chosen | ({"savings": []} if chosen["savings"] == ["none"] else {})


def _gone(every: str) -> None:
    """Says what `--reuse-every N` is now."""
    raise argparse.ArgumentTypeError(f"it is a saving now: --saving steps:every={every}")


def _format_names(text: str) -> list[str]:
    """Names of formats between commas."""
    names = text.split(",")
    for name in names:
        if name not in LOSSLESS_FIRST:
            raise argparse.ArgumentTypeError(f"invalid choice: {name!r} (choose from {', '.join(LOSSLESS_FIRST)})")
    return names
