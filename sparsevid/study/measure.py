"""What is measured of a row whose run is trained: held-out loss, samples and what they are like, cost, seconds.

Dimensions: N samples, T frames, H×W pixels, B clips of a batch.
"""

import gc
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsevid import __version__
from sparsevid.benchmark.savings import warm_call
from sparsevid.benchmark.timing import time_turn
from sparsevid.evaluation.classifier import ClipClassifier, shuffled_share
from sparsevid.evaluation.comparison import Extras
from sparsevid.evaluation.evaluate import measure as score_clips
from sparsevid.generation.calibration import fit_all
from sparsevid.generation.calibration import measure as measure_calls
from sparsevid.generation.job import generate
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.generation.sampling import Sampling
from sparsevid.savings.fits import FittedPolicy, fit_file
from sparsevid.savings.options import parse_saving
from sparsevid.savings.tally import Tally
from sparsevid.sparsity.cost import parameter_count
from sparsevid.study import StudyError
from sparsevid.study.file import changed
from sparsevid.study.heldout import SampleCaptions, heldout_losses, sample_captions, time_edges
from sparsevid.study.measurements import short_hash
from sparsevid.study.plan import Plan
from sparsevid.study.reference import FEATURES, Reference, open_reference, save_shown
from sparsevid.study.results import Line, check_line, digest, read_json
from sparsevid.study.train import seconds_trained, weights_of
from sparsevid.system.atomic import write_json
from sparsevid.system.distributed import from_main, world_size
from sparsevid.system.logging import get_logger
from sparsevid.training.scoring import real_videos
from sparsevid.videos.read import read_frames
from sparsevid.videos.write import clip_path

SAMPLES = "samples"  # folder of a row's samples, until it is measured
FITS = "fits"  # folder of what a row's savings have fitted to its model
LOSSES = "losses.json"  # in a run's folder: its held-out losses, which rows that sample it otherwise share
SHOWN = "shown-{}.npz"  # a sample of each class, of the same noise in all rows; named by what tells it apart
FORMAT = "ffv1"
CALIBRATION_SAMPLES = 16  # on which caches that need it are fitted to a model
DIGITS = 6  # of a loss that is kept
logger = get_logger(__name__)


@dataclass(frozen=True)
class Circumstances:
    """What every line says of how its figures came to be.

    Attributes:
        header: as `describe_run` gives it.
        results: file of the lines; what they name lies relative to its folder.
    """

    header: dict[str, Any]
    results: Path

    @property
    def hardware(self) -> str:
        """On what, in one line: figures of time are compared where these are the same."""
        cores, threads, ranks = self.header["cores"], self.header["threads"], world_size()
        plural = {number: "" if number == 1 else "s" for number in (cores, threads, ranks)}
        return (
            f"{self.header['device']}, {cores} core{plural[cores]}, {ranks} rank{plural[ranks]} of {threads} "
            f"thread{plural[threads]}"
        )

    def line(self, plan: Plan) -> Line:
        """The beginning of a line."""
        header = self.header
        row = plan.row
        return {
            "study": row.study.name,
            "row": row.name,
            "seed": plan.seed,
            "note": row.settings.note,
            "control": row.study.control(row.name),
            "settings": plan.settings,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": header["commit"],
            "hardware": self.hardware,
            "command": header["command"],
            "versions": {"sparsevid": __version__} | {name: header[name] for name in ("python", "torch")},
            **{key: value for key, value in plan.of_figures.items() if value is not None},
        }


def measure_row(plan: Plan, circumstances: Circumstances) -> Line:
    """All figures of a row, as a line of results. All ranks call it together; samples that are there are kept.

    Raises:
        StudyError: a figure that is not finite, or a row that cannot be measured.
        GenerationError, ValueError, OSError, …: as what it calls.
    """
    pipeline, captions = open_pipeline(plan), sample_captions(plan.config, plan.measure, plan.sample.clips)
    reference = open_reference(pipeline.config, plan.measure, plan.sample.clips, plan.row.study.runs)
    began = time.monotonic()  # the reference is made once for all rows
    line = circumstances.line(plan) | _of_training(plan, pipeline) | _losses(plan, pipeline)
    sampling = sampling_of(plan, pipeline, from_main(partial(fitted, plan, pipeline, captions)), captions)
    samples = plan.own_folder / SAMPLES / from_main(partial(own_key, plan))
    report = generate(pipeline, sampling, plan.sample.clips, samples, (FORMAT,), sheet=False)
    line |= _distance(plan, pipeline, reference, samples)
    frames = pipeline.autoencoder.clip_size(sampling.input_size)[0]
    drawn = (sampling.label(index) for index in range(plan.sample.clips))
    labels = [label for label in drawn if label is not None] if captions is None else captions.labels
    line |= from_main(partial(_of_samples, plan, labels, reference, samples, frames, circumstances.results.parent))
    if captions is not None:  # what follows other prompts is another measurement
        line["measured"] = digest([line["measured"], captions.texts])
    line |= from_main(partial(_cost, plan, pipeline, sampling))
    del pipeline
    gc.collect()
    whole = report.written == plan.sample.clips  # else another process has done some of it
    line["measuring_seconds"] = round(time.monotonic() - began, 1) if whole else None
    check_line(line)
    return line


def own_key(plan: Plan) -> str:
    """What samples and fits of a row are told apart by: its settings, and the weights that are there."""
    return digest([plan.settings, weights_of(plan.source)])


def drop_samples(plan: Plan) -> None:
    """Remove a row's samples, once its line is written. On rank 0."""
    shutil.rmtree(plan.own_folder / SAMPLES, ignore_errors=True)


def open_pipeline(plan: Plan) -> VideoPipeline:
    """The trained run, where its data are now and sampled as the study's file says, not as the checkpoint remembers.

    Raises:
        StudyError: the checkpoint is of another model than the study counts, or of other data than are at hand.
    """
    pipeline, own = VideoPipeline.from_pretrained(plan.folder), plan.config
    if pipeline.model.spec != plan.run.spec:
        raise StudyError(f"{plan.folder} holds {pipeline.model.spec}, and the study says {plan.run.spec}")
    trained_on, at_hand = pipeline.config.record.fingerprint, plan.of_training["data"]
    if trained_on is not None and at_hand is not None and trained_on != at_hand:
        raise StudyError(
            f"{plan.folder} was trained on other data (fingerprint {short_hash(trained_on)}) than data.root = {own.data.root} "
            f"holds ({short_hash(at_hand)}), and would be measured on these: give the root that it was trained on, or another "
            "--out to train it anew"
        )
    data = replace(pipeline.config.data, root=own.data.root, decoder=own.data.decoder, captions=own.data.captions)
    pipeline.config = replace(pipeline.config, sample=own.sample, monitor=own.monitor, data=data)
    return pipeline


def sampling_of(
    plan: Plan, pipeline: VideoPipeline, savings: Sequence[str], captions: SampleCaptions | None = None
) -> Sampling:
    """How a row is sampled, with these savings; a model of text by these captions, whose features its pipeline knows then.

    Raises:
        ValueError: as `VideoPipeline.sampling`.
    """
    sample = plan.sample
    if captions is not None:
        pipeline.remember(captions.texts, captions.encoded)
    return pipeline.sampling(
        prompts=None if captions is None else captions.texts,
        sampler=sample.sampler, steps=sample.steps, seed=sample.seed, batch=min(sample.batch, sample.clips),
        guidance=sample.guidance, guidance_interval=sample.guidance_interval, schedule=sample.schedule, savings=list(savings),
    )  # fmt: skip


def fitted(plan: Plan, pipeline: VideoPipeline, captions: SampleCaptions | None) -> list[str]:
    """The row's savings, with fits of its own of those that look at a model first: on other noise than it is measured on.

    On rank 0.
    """
    policies, folder = list(map(parse_saving, plan.sample.savings)), plan.own_folder / FITS / own_key(plan)
    fitting = [each for each in policies if isinstance(each, FittedPolicy)]  # those of `CALIBRATED`
    named = {each.name for each in fitting if each.fit is None and not each.changes_nothing}
    if lacking := sorted(name for name in named if not fit_file(folder, name).is_file()):
        sampling = replace(sampling_of(plan, pipeline, (), captions), seed=plan.sample.seed + 1)
        measured = measure_calls(pipeline, sampling, CALIBRATION_SAMPLES)
        for fit in fit_all(pipeline, sampling, CALIBRATION_SAMPLES, measured, lacking):
            fit.save(fit_file(folder, fit.saving))
    own = [
        replace(each, fit=str(fit_file(folder, each.name))) if isinstance(each, FittedPolicy) and each.name in named else each
        for each in policies
    ]
    return list(map(str, own))


def _of_training(plan: Plan, pipeline: VideoPipeline) -> dict[str, Any]:
    source, schedule = plan.source, pipeline.schedule
    found = {
        "steps": source.config.train.steps,
        "total_steps": source.total_steps,
        "training_macs": source.training_macs,
        "total_training_macs": source.total_macs,
        "training_seconds": round(from_main(lambda: seconds_trained(source)), 1),
        "parameters": parameter_count(pipeline.model.spec),
        "layout": pipeline.model.spec.layout,
        "data": pipeline.config.record.fingerprint,
        "run": f"{source.row.study.name}/{source.row.name}",
        "weights": from_main(lambda: weights_of(source)),
        "sample": changed(vars(plan.sample), {}),
    }
    if schedule is not None:
        found["schedule"] = [[stage.high, stage.grid.tokens] for stage in schedule.stages]
    return found


def _losses(plan: Plan, pipeline: VideoPipeline) -> dict[str, Any]:
    """Held-out loss with that of each clip and of each interval of times; of a run it is computed once.

    Raises:
        StudyError: a loss that is not finite.
    """
    measure = plan.measure
    told = _told(plan)
    kept = from_main(lambda: read_json(plan.folder / LOSSES))
    if kept.get("told") != told:
        losses = heldout_losses(pipeline, measure)
        if not losses.isfinite().all():
            raise StudyError(f"held-out losses of {plan.folder} are not finite (NaN or infinite): its training went astray")
        kept = {"told": told, "clips": losses.mean(dim=1).tolist(), "intervals": losses.mean(dim=0).tolist()}
        from_main(partial(write_json, plan.folder / LOSSES, kept))
    edges = time_edges(pipeline.config, measure.times)
    return {
        "loss": statistics.fmean(kept["clips"]),
        "losses": [round(loss, DIGITS) for loss in kept["clips"]],
        "stages": [
            {"u": [round(edges[number], DIGITS), round(edges[number + 1], DIGITS)], "loss": round(loss, DIGITS)}
            for number, loss in enumerate(kept["intervals"])
        ],
    }


def kept_losses(plan: Plan) -> list[float] | None:
    """Of each clip, as lines have it, where they have been computed of the run that is there."""
    kept = read_json(plan.folder / LOSSES)
    return [round(loss, DIGITS) for loss in kept["clips"]] if kept.get("told") == _told(plan) else None


def _told(plan: Plan) -> dict[str, Any]:
    """By what held-out losses are told apart."""
    return {"trained": plan.trained, **{name: getattr(plan.measure, name) for name in ("split", "clips", "times", "seed")}}


def _distance(plan: Plan, pipeline: VideoPipeline, reference: Reference, samples: Path) -> dict[str, Any]:
    keep, extras = plan.row.study.runs / FEATURES, Extras(bootstrap=plan.measure.bootstrap, halves=True)
    source = real_videos(pipeline.config.data)
    record = score_clips(source, samples, protocol=reference.protocol, extras=extras, keep=keep).record
    from_main(partial(_remove_features, keep))
    interval = record.interval
    return {
        "metric": record.metric,
        "distance": record.score,
        "distance_interval": None if interval is None else [interval["low"], interval["high"]],
        "distance_halves": [] if interval is None else [round(value, 3) for value in interval["halves"]],
        "distance_real": reference.distance,
        "measured": reference.name,
    }


def _remove_features(folder: Path) -> None:
    """Of samples: ten megabytes a row, and needed no more."""
    for path in folder.glob("fake-*"):
        path.unlink()


def _of_samples(
    plan: Plan, labels: Sequence[int], reference: Reference, samples: Path, frames: int, beside: Path
) -> dict[str, Any]:
    """Accuracy, the share of samples that show the class they were asked for (`labels`), and clips to look at. On rank 0."""
    count, batch = plan.sample.clips, plan.sample.batch
    classifier = ClipClassifier.load(reference.classifier)
    shown: dict[int, Tensor] = {}
    found: list[int] = []
    for first in range(0, count, batch):
        own = labels[first : first + batch]
        clips = torch.stack([_read(samples, index, frames) for index in range(first, first + len(own))])
        found += classifier.logits(clips).argmax(dim=1).tolist()
        for label, clip in zip(own, clips, strict=True):
            shown.setdefault(label, clip)
    path = plan.own_folder / SHOWN.format(digest([plan.settings, plan.of_figures]))
    classes = [reference.classes[label] for label in sorted(shown)]
    save_shown(path, torch.stack([shown[label] for label in sorted(shown)]), classes)
    return {
        "clips": count,
        "accuracy": sum(one == other for one, other in zip(found, labels, strict=True)) / count,
        "accuracy_shuffled": shuffled_share(found, labels),
        "accuracy_real": reference.accuracy,
        "classes": classes,
        "shown": os.path.relpath(path.resolve(), beside.resolve()),
        "shown_real": os.path.relpath(reference.shown.resolve(), beside.resolve()),
    }


def _read(samples: Path, index: int, frames: int) -> Tensor:
    """A sample, uint8 (3, T, H, W)."""
    return read_frames(clip_path(samples / f"{index:06d}", FORMAT), range(frames)).transpose(0, 1)


def _cost(plan: Plan, pipeline: VideoPipeline, sampling: Sampling) -> dict[str, Any]:
    """Multiply-adds of a sampled clip, as they were counted in the first batch, and its seconds from noise to latents, warm.

    On rank 0, while the others wait.
    """
    tally = Tally()
    pipeline.denoise(range(sampling.batch), sampling, tally=tally)
    call = warm_call(pipeline, sampling)
    turns = [time_turn({"row": call})["row"] for _ in range(plan.measure.repeats)]
    return {"macs": tally.macs / sampling.batch, "layers": tally.share} | seconds_of(turns, sampling.batch)


def seconds_of(turns: Sequence[float], batch: int) -> dict[str, Any]:
    """What a line says of the seconds that a batch took in each of some turns."""
    return {"seconds": statistics.median(turns) / batch, "seconds_of_turns": [turn / batch for turn in turns]}
