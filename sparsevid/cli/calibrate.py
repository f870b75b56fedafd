"""`sparsevid calibrate`: what savings have to know of one checkpoint."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsevid.cli import (
    add_json_flag,
    add_model_options,
    add_plot_switch,
    add_prompt_options,
    add_sampler_options,
    check_least,
    check_results,
)
from sparsevid.savings.options import CALIBRATED
from sparsevid.system.logging import get_logger, print_json, print_table

if TYPE_CHECKING:
    from sparsevid.savings.calibrate import Measured
    from sparsevid.savings.fits import Fit

EXAMPLES = """examples:
  sparsevid calibrate runs/demo/sparse
  sparsevid calibrate runs/ucf101/sparse --saving teacache --samples 64 --sampler ddim --steps 50 --guidance 4
  sparsevid sample runs/demo/sparse --saving teacache:threshold=0.1

A fit belongs to one checkpoint, and lies in the folder `savings` beside its weights, where `sample` finds it.
"""
THRESHOLDS = (0.05, 0.1, 0.2)
POOR = 0.5  # R² below which a fit is said to be poor
OPTIONS = ("classes", "prompts", "negative", "null_caption", "null_mask", "padding", "sampler", "steps", "guidance",
           "schedule", "seed", "batch", "size", "frames")  # fmt: skip
logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("model", metavar="MODEL", help="a run's folder, a checkpoint, an exported folder, or a converted model")
    saving = f"what to fit; may be given again. Default: {' and '.join(CALIBRATED)}"
    parser.add_argument("--saving", action="append", choices=tuple(CALIBRATED), help=saving)
    parser.add_argument("-n", "--samples", type=int, default=16, help="to measure; fits of few say little of others")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="for SAVING.json and SAVING.png. Default: savings, by the weights"
    )
    parser.add_argument("--overwrite", action="store_true", help="put new files in the place of those that are there")
    add_json_flag(parser)
    add_plot_switch(parser, "points and fit")
    samples = parser.add_argument_group("samples; defaults are those of the run's config")
    samples.add_argument("--classes", nargs="+", help="class names or labels to go through in turn. Default: all")
    add_sampler_options(samples)
    samples.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels, if not as trained")
    samples.add_argument("--frames", type=int, help="if not as trained")
    samples.add_argument("--seed", type=int, default=0, help="of the samples' noise")
    samples.add_argument("--batch", type=int, default=8, help="clips denoised together")
    add_prompt_options(parser)
    where = "the GPU where there is one"
    add_model_options(parser.add_argument_group("model"), where, dtype="the model computes")


def run(args: argparse.Namespace) -> int:
    from sparsevid.generation.calibration import fit_all, measure
    from sparsevid.generation.pipeline import VideoPipeline
    from sparsevid.generation.prompts import read_prompts
    from sparsevid.savings.fits import fit_file, fits_folder
    from sparsevid.system.distributed import check_device

    check_least(args, samples=1, batch=1, steps=1)
    savings = list(dict.fromkeys(args.saving or CALIBRATED))
    device = None if args.device is None else check_device(args.device)
    loading = {name: getattr(args, name) for name in ("weights", "dtype", "autoencoder", "text_encoder")}
    args.prompts = None if args.prompts is None else read_prompts(args.prompts)
    pipeline = VideoPipeline.from_pretrained(args.model, device=device, **loading)
    sampling = pipeline.sampling(savings=[], **{name: getattr(args, name) for name in OPTIONS})
    folder = args.out
    if folder is None:
        assert pipeline.weights_file is not None  # it was read
        folder = fits_folder(pipeline.weights_file)
    taken = [f"{saving}.json" for saving in savings if fit_file(folder, saving).exists()]
    if taken and not args.overwrite:
        raise FileExistsError(f"{folder} has {' and '.join(taken)} already; --overwrite puts new ones in their place")
    check_results(folder, args.plot)
    measured = measure(pipeline, sampling, args.samples)
    fits = fit_all(pipeline, sampling, args.samples, measured, savings)
    for fit in fits:
        _write(fit, folder, args.plot == "on")
    title = f"{args.samples} samples, {len(sampling.times())} calls of {sampling.sampler}, guidance {sampling.guidance:g}"
    _print(fits, measured, title, args.json)
    for fit in fits:
        if fit.quality["r2"] < POOR:
            logger.warning(
                "%s: the fit explains little of what was measured, and a threshold says little of this model: hold it against "
                "fewer steps, by `sparsevid benchmark savings`",
                fit.saving,
            )
    pictures = ", with pictures," if args.plot == "on" else ""
    logger.info("%s%s in %s", " and ".join(f"{fit.saving}.json" for fit in fits), pictures, folder)
    return 0


def _write(fit: "Fit", folder: Path, draws: bool) -> None:
    from sparsevid.evaluation.plot import plot_fit
    from sparsevid.savings.calibrate import AXES, curve
    from sparsevid.savings.fits import fit_file

    fit.save(fit_file(folder, fit.saving))
    if draws:
        title = f"{fit.saving}: R² {fit.quality['r2']:.3f}, {fit.quality['points']} points"
        path = fit_file(folder, fit.saving).with_suffix(".png")
        plot_fit(path, fit.points, curve(fit), title=title, labels=AXES[fit.saving])


def _print(fits: Sequence["Fit"], measured: Sequence["Measured"], title: str, as_json: bool) -> None:
    from sparsevid.savings.calibrate import thresholds_left_out

    if as_json:
        left_out = [
            dict(zip(map(str, THRESHOLDS), thresholds_left_out(fit, THRESHOLDS, measured), strict=True)) for fit in fits
        ]
        print_json([{"saving": fit.saving, **fit.quality, "left_out": each} for fit, each in zip(fits, left_out, strict=True)])
        return
    columns = ["fit", "points", "R²", "correlation", *(f"calls left out at {threshold:g}" for threshold in THRESHOLDS)]
    rows = []
    for fit in fits:
        shares = [f"{share:.0%}" for share in thresholds_left_out(fit, THRESHOLDS, measured)]
        quality = fit.quality
        rows.append([fit.saving, f"{quality['points']}", f"{quality['r2']:.3f}", f"{quality['correlation']:.3f}", *shares])
    print_table(title, columns, rows)
