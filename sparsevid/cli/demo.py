"""`sparsevid demo`: the whole path in some minutes: make the data, train, sample, score, and a table."""

import argparse
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sparsevid.cli import add_json_flag, check_least
from sparsevid.data.made import MADE
from sparsevid.data.tree.shipped import shipped
from sparsevid.system.atomic import make_writable, write_json
from sparsevid.system.errors import ExpectedError
from sparsevid.system.logging import get_logger, metric_by_step, print_json, print_table

if TYPE_CHECKING:
    from torch import Tensor

    from sparsevid.diffusion.samplers import Model
    from sparsevid.generation.pipeline import VideoPipeline
    from sparsevid.runs.config import RunConfig

EXAMPLES = """examples:
  sparsevid demo                                       # some minutes: runs/demo gets the run, samples, sheets, summary.json
  sparsevid demo train.steps=40 --out runs/short --processes 1
  sparsevid demo --config configs/demo/natural.yaml --out runs/natural --json

Given again, training goes on where it was, and a finished run is not trained anew; samples and scores are made again.
"""
CONFIG = shipped("configs") / "demo" / "sparse.yaml"
SCORED_CLIPS = 192  # of 60 the score is by a quarter another for other noise, of these by a twentieth
SHOWN_CLIPS = 12  # of a run without classes; else one a class
PLAYING = 5  # clips of a class in the sheet that plays
TIMED_STEPS = 10
logger = get_logger(__name__)


@dataclass
class Summary:
    """What `summary.json` holds. Costs are multiply-adds of a forward of one clip, seconds those of a denoising step.

    `classes` are shares of the samples of each class whose nearest real clip, by the detector's features, is of their class.
    """

    parameters: int
    dense_macs: int
    sparse_macs: float
    dense_step_seconds: float
    sparse_step_seconds: float
    loss_first: float
    loss_last: float
    score: float
    score_untrained: float
    score_real_again: float
    score_real_frozen: float
    motion_samples: float
    motion_real: float
    contact_sheet: str
    classes: dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("--config", type=Path, default=CONFIG, help="the run")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write to")
    parser.add_argument("--processes", type=int, help="training processes; default: one a GPU, or 2 on the CPU. "
                        "A batch that they cannot share evenly is enlarged to the next that they can")  # fmt: skip
    add_json_flag(parser, "print summary.json in place of the table; what training says goes to standard error then")
    parser.add_argument("overrides", nargs="*", default=[], help="dotted settings such as train.steps=100")


def run(args: argparse.Namespace) -> int:
    from sparsevid.runs.config import ConfigError, load_config

    check_least(args, processes=1)
    make_writable(args.out)
    overrides = [*args.overrides, f"output={args.out}", "name=sparse"]
    config, processes = load_config(args.config, overrides), args.processes or _default_processes()
    if config.data.captions is not None:
        raise ConfigError(
            f"{args.config} has data.captions: the demo is of classes or of none. `sparsevid train` trains a run of text, and "
            "`sparsevid sample --prompts` samples it"
        )
    batch = batch_for(processes, config.train.global_batch, config.train.micro_batch)
    if batch != config.train.global_batch and not any(each.startswith("train.global_batch=") for each in args.overrides):
        logger.info("train.global_batch = %d in place of %d: %d processes share it evenly", batch, config.train.global_batch,
                    processes)  # fmt: skip
        overrides.append(f"train.global_batch={batch}")
    _make_data(config)
    _train(args.config, overrides, processes, sys.stderr if args.json else None)
    summary = _evaluate(config.folder, args.out)
    write_json(args.out / "summary.json", asdict(summary))
    if args.json:
        print_json(asdict(summary))
    else:
        _print(summary, args.out, config.folder)
    return 0


def _make_data(config: "RunConfig") -> None:
    """If the run's data set is one that a program makes, make it, as far as it is not there."""
    from sparsevid.data.made.default import make_default
    from sparsevid.data.tree.cards import load_card, root_folder

    card = load_card(config.data.card, config.data.card_options)
    if card.name in MADE:
        make_default(card.name, root_folder(card, config.data.root), workers=len(os.sched_getaffinity(0)))


def batch_for(processes: int, global_batch: int, micro_batch: int | None) -> int:
    """The smallest batch from `global_batch` on that these processes share evenly, in whole micro-batches if they are given."""
    share = processes * (micro_batch or 1)
    return -(-global_batch // share) * share


def _default_processes() -> int:
    import torch

    return torch.cuda.device_count() or 2


def _train(config: Path, overrides: list[str], processes: int, printed_to: TextIO | None) -> None:
    """Train in processes of their own, which share the cores that this one may use; None: they print where this one does."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "sparsevid.cli", "train", str(config), *overrides]
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdout=printed_to, check=False)
    if done.returncode:
        raise ExpectedError(f"training ended with exit code {done.returncode}; its own message is above")


def _evaluate(run_folder: Path, out: Path) -> Summary:
    import torch

    from sparsevid.evaluation.detectors import build_detector
    from sparsevid.generation.pipeline import VideoPipeline
    from sparsevid.models.transformer import DiffusionTransformer
    from sparsevid.sparsity.cost import parameter_count, sampling_macs

    pipeline = VideoPipeline.from_pretrained(run_folder)
    spec, steps, names = pipeline.model.spec, pipeline.config.sample.steps, pipeline.classes
    options: dict[str, Any] = {"batch": 32, "classes": names or None}  # sample i is of class i mod their number
    count = max(SCORED_CLIPS, len(names))
    samples = pipeline(count, **options)
    torch.manual_seed(0)
    fresh = DiffusionTransformer(spec).to(pipeline.device).eval()
    untrained = VideoPipeline(fresh, pipeline.autoencoder, pipeline.config, pipeline.schedule)
    # An untrained model predicts zero (adaLN-Zero), so that its samples are the same for any number of steps.
    noise = untrained(count, **options, steps=2, guidance=1.0)
    held_out, trained_on = pipeline.config.monitor.validate_split or pipeline.config.data.split, pipeline.config.data.split
    real, labels = _real_clips(pipeline.config, held_out, range(count))
    again, more = _real_clips(pipeline.config, trained_on, range(count, 2 * count) if trained_on == held_out else range(count))
    frozen = again[:, :, :1].expand_as(again)
    sets = {"real": real, "samples": samples, "untrained": noise, "again": again, "frozen": frozen}
    detector = build_detector("transnetv2")
    features = {name: torch.cat([detector(part) for part in each.contiguous().split(16)]) for name, each in sets.items()}
    scores = _scores(features)
    sheet = _write_clips(out, samples, real, labels, names, pipeline.fps)
    seconds = _step_seconds(pipeline)
    cost = sampling_macs(spec, pipeline.schedule, _times(pipeline, steps))
    first, last = _losses(run_folder)
    return Summary(
        parameters=parameter_count(spec),
        dense_macs=cost.dense_macs,
        sparse_macs=cost.mean_macs,
        dense_step_seconds=seconds["dense"],
        sparse_step_seconds=seconds["sparse"],
        loss_first=first,
        loss_last=last,
        score=scores["samples"],
        score_untrained=scores["untrained"],
        score_real_again=scores["again"],
        score_real_frozen=scores["frozen"],
        motion_samples=_motion(samples),
        motion_real=_motion(real),
        contact_sheet=str(sheet),
        classes=recognised(features, labels + more, names),
    )


def _real_clips(config: "RunConfig", split: str | None, numbers: range) -> "tuple[Tensor, list[int]]":
    """Real clips of a split, by number in a drawn order: uint8 (N, 3, T, H, W), with their labels."""
    import torch

    from sparsevid.data.clips import fixed_clips
    from sparsevid.data.open import open_data

    _, _, dataset = open_data(replace(config, data=replace(config.data, split=split, cache_frames=False)))
    chosen = [dataset[key] for key in fixed_clips(dataset, numbers.stop, dataset.seed)[numbers.start :]]
    return torch.stack([each["clip"] for each in chosen]), [int(each["label"]) for each in chosen]


def _scores(features: dict) -> dict[str, float]:
    """FD-TransNetV2 of each set of features to that of the real clips."""
    from sparsevid.evaluation.metrics.distances import frechet_distance

    return {name: frechet_distance(features["real"], each) for name, each in features.items() if name != "real"}


def recognised(features: dict, labels: list[int], names: list[str]) -> dict[str, float]:
    """By class the share of its samples whose nearest real clip is of it."""
    import torch

    real = torch.cat([features["real"], features["again"]])
    nearest = torch.cdist(features["samples"], real).argmin(1).tolist()
    of_class = [labels[index] == sample % len(names) for sample, index in enumerate(nearest)] if names else []
    shares = [of_class[label :: len(names)] for label in range(len(names))]
    return {name: sum(each) / len(each) for name, each in zip(names, shares, strict=True)}


def _motion(clips: "Tensor") -> float:
    """Mean absolute difference between neighbouring frames, in grey levels."""
    return clips.float().diff(dim=2).abs().mean().item()


def _times(pipeline: "VideoPipeline", steps: int) -> list[float]:
    from sparsevid.diffusion.samplers import sampler_times

    return sampler_times(pipeline.default_sampler, steps)


def _step_seconds(pipeline: "VideoPipeline") -> dict[str, float]:
    """Median seconds of a denoising step of 8 clips, dense and sparse in turns, over steps from noise to data."""
    import torch

    from sparsevid.benchmark.timing import time_alternately
    from sparsevid.diffusion.samplers import call_once
    from sparsevid.models.transformer import DiffusionTransformer

    spec, sampler, times = pipeline.model.spec, pipeline.default_sampler, _times(pipeline, TIMED_STEPS)
    dense = DiffusionTransformer(spec.dense()).to(pipeline.device).eval()
    x = torch.randn(8, spec.in_channels, *spec.input_size, device=pipeline.device)
    condition = {"labels": torch.zeros(8, dtype=torch.long, device=pipeline.device)} if spec.num_classes else {}
    unguided = pipeline.sampling(guidance=1.0)

    @torch.inference_mode()
    def walk(model: "Model") -> None:
        for u in times:
            call_once(sampler, model, x, u, **condition)

    seconds = time_alternately({"dense": lambda: walk(dense), "sparse": lambda: walk(pipeline.denoiser(unguided))})
    return {name: value / TIMED_STEPS for name, value in seconds.items()}


def _losses(run_folder: Path) -> tuple[float, float]:
    """Means of the logged loss over the first and the last tenth of the run."""
    losses = list(metric_by_step(run_folder, "train/loss").values())
    tenth = max(1, len(losses) // 10)
    return sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth


def _write_clips(out: Path, samples: "Tensor", real: "Tensor", labels: list[int], names: list[str], fps: float) -> Path:
    """The clips as files, and sheets: one row a class, its name beside it, and a playing one."""
    from sparsevid.videos.sheets import write_contact_sheet, write_grid
    from sparsevid.videos.write import write_gif, write_mp4

    folder, count = out / "samples", len(names) or min(SHOWN_CLIPS, len(samples))
    folder.mkdir(parents=True, exist_ok=True)
    for index, clip in enumerate(samples[:count]):
        write_mp4(folder / f"{index:06d}.mp4", clip, fps)
        write_gif(folder / f"{index:06d}.gif", clip, fps, scale=4)
    there = sorted(set(labels)) if names else []  # a split may lack a class
    shown = [labels.index(label) for label in there] or range(count)
    real_names = [names[label] for label in there] or None
    write_contact_sheet(out / "real_clips.png", [real[index] for index in shown], real_names, scale=2, beside=True)
    write_contact_sheet(out / "contact_sheet.png", samples[:count], names or None, scale=2, beside=True)
    columns = min(PLAYING, len(samples) // count) if names else 4
    playing = [samples[row + column * count] for row in range(count) for column in range(columns)] if names else samples[:count]
    write_grid(out / "contact_sheet.gif", playing, fps, columns, scale=2, names=names or None)
    return out / "contact_sheet.png"


def _print(summary: Summary, out: Path, run_folder: Path) -> None:
    rows = [
        ["parameters", f"{summary.parameters / 1e6:.2f} M", ""],
        ["multiply-adds of a forward, dense", f"{summary.dense_macs / 1e6:.0f} M", ""],
        [
            "multiply-adds of a forward, sparse",
            f"{summary.sparse_macs / 1e6:.0f} M",
            f"{summary.sparse_macs / summary.dense_macs:.2f}×",
        ],
        ["seconds a denoising step of 8 clips, dense", f"{summary.dense_step_seconds:.3f}", ""],
        [
            "seconds a denoising step of 8 clips, sparse",
            f"{summary.sparse_step_seconds:.3f}",
            f"{summary.sparse_step_seconds / summary.dense_step_seconds:.2f}×",
        ],
        ["training loss, first tenth → last tenth", f"{summary.loss_first:.3f} → {summary.loss_last:.3f}", ""],
        ["FD-TransNetV2 of the samples", f"{summary.score:.1f}", f"{summary.score / summary.score_untrained:.2f}×"],
        ["  of the untrained model's samples", f"{summary.score_untrained:.1f}", "1.00×"],
        ["  of a second draw of real clips", f"{summary.score_real_again:.1f}", ""],
        ["  of real clips frozen on their first frame", f"{summary.score_real_frozen:.1f}", ""],
        [
            "mean difference of neighbouring frames, samples",
            f"{summary.motion_samples:.2f}",
            f"{summary.motion_samples / summary.motion_real:.2f}×",
        ],
        ["  real clips", f"{summary.motion_real:.2f}", "1.00×"],
    ]
    rows += [
        [f"samples nearest to a real clip of their class: {name}", f"{share:.0%}", ""]
        for name, share in summary.classes.items()
    ]
    print_table("demo", ["what", "value", "ratio"], rows)
    for name, path in {
        "contact sheet": summary.contact_sheet,
        "playing": out / "contact_sheet.gif",
        "real clips": out / "real_clips.png",
        "clips": out / "samples",
        "checkpoint": run_folder / "checkpoints",
        "summary": out / "summary.json",
    }.items():
        print(f"{name + ':':15}{path}")
