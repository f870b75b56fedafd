"""What savings, samplers and numbers of steps make of models: cost, time, memory, distance, likeness.

Dimensions: N clips, B clips of a batch.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsevid.benchmark.model import peak_memory
from sparsevid.benchmark.savings_cases import SavingsCase, SavingsPlan, settings
from sparsevid.benchmark.timing import Turns, time_turn
from sparsevid.evaluation.comparison import Extras, check_counts
from sparsevid.evaluation.metrics.likeness import psnr, ssim
from sparsevid.evaluation.record import ProtocolRecord
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.generation.sampling import Sampling
from sparsevid.runs.checkpoints import step_of
from sparsevid.runs.config import ConfigError
from sparsevid.savings.tally import Tally
from sparsevid.system.errors import ExpectedError
from sparsevid.system.logging import get_logger, progress
from sparsevid.training.scoring import Scoring

SHOWN_CLIPS = 3  # of each row in the picture
DISTANCES = ("frechet", "kid", "kvd")  # metrics of which less is better
RESAMPLINGS = 200  # for the interval of a distance
logger = get_logger(__name__)


@dataclass(frozen=True)
class SavingsResult(Turns):
    """What was found of a row.

    Attributes:
        record: the distance to the real clips with all that it depends on; its `fake` has all settings of the samples, and the
            stages of their tokens.
        macs: multiply-adds of a clip, without what was left out.
        share: of the layers, what was computed.
        peak_bytes: what denoising a batch needs beyond what is held before it (`peak_memory`); None if the system does not
            tell.
        batch: B.
        shown: the first clips, uint8 (n, 3, T, H, W).
        psnr, ssim: of the clips to those of the same model, noise and steps without a saving; None for these.
        turns: seconds of a batch from noise to latents, in each turn.
    """

    case: SavingsCase
    record: ProtocolRecord
    macs: float
    share: float
    peak_bytes: int | None
    batch: int
    shown: Tensor
    psnr: float | None = None
    ssim: float | None = None
    turns: tuple[float, ...] = ()

    @property
    def score(self) -> float:
        """Distance to the real clips, by the protocol."""
        return self.record.score

    @property
    def seconds(self) -> float | None:
        """Of a clip, from noise to latents: median over the turns; None before the first of them."""
        return self.median / self.batch if self.turns else None


@dataclass
class SavingsMeasurement:
    """What is found so far: results in the order of the plan, and of rows that failed the reason."""

    plan: SavingsPlan
    results: dict[SavingsCase, SavingsResult] = field(default_factory=dict)
    failed: dict[SavingsCase, str] = field(default_factory=dict)


def open_scoring(
    models: Mapping[str, VideoPipeline],
    clips: int,
    protocol: str | None = None,
    data_root: str | None = None,
    bootstrap: int = RESAMPLINGS,
    protocol_options: Sequence[str] = (),
) -> Scoring:
    """The scoring of all models' samples, against the real clips of the first one's run.

    Args:
        models: by name; the first from a checkpoint of a run, whose config says where its clips are.
        clips: real clips, and samples of each row.
        protocol: name or path; default: that of the first one's run.
        data_root: where the videos are, if not where that run read them.
        bootstrap: resamplings for the intervals to come, 0 for none.
        protocol_options: fields of the protocol that are others here, as of `with_fields`; default: those of that run, where
            its protocol is taken too.

    Raises:
        ConfigError: the config does not name its data, or the protocol does not fit the clips, or compares by no distance.
        FileNotFoundError, ValueError, DecodeError: see `Scoring` and `check_counts`.
    """
    first, *others = models
    config = models[first].config
    if config.data.frames is None or config.data.size is None:
        raise ConfigError(f"{first}: the config does not tell size and frames of its clips: it is not of a run made here")
    said = config.monitor
    changes = list(protocol_options or (said.protocol_options if protocol is None else ()))
    monitor = replace(said, protocol=protocol or said.protocol, protocol_options=changes, score_clips=clips)
    data = replace(config.data, root=data_root or config.data.root)
    scoring = Scoring(replace(config, monitor=monitor, data=data), models[first].device)
    rule = scoring.protocol
    if rule.metrics[0] not in DISTANCES:
        accepted = ", ".join(DISTANCES)
        raise ConfigError(f"protocol {rule.name} begins with {rule.metrics[0]}, which is no distance; accepted are {accepted}")
    check_counts(rule, Extras(bootstrap=bootstrap), len(scoring.real.clip_ids), clips)
    own = _clip_size(models[first])
    for name in others:
        frames, *size = _clip_size(models[name])
        if (rule.frames - 1) * rule.fake_stride >= frames or (rule.size is None and size != own[1:]):
            raise ConfigError(
                f"clips of {name}, {frames} frames of {size[0]}×{size[1]}, cannot be compared by protocol {rule.name} with the "
                f"real clips of {first}, {own[0]} frames of {own[1]}×{own[2]}"
            )
        if models[name].config.record.fingerprint != config.record.fingerprint:
            logger.warning("%s was trained on other data than %s, with whose real clips all are compared", name, first)
    return scoring


def measure_savings(
    models: Mapping[str, VideoPipeline],
    scoring: Scoring,
    plan: SavingsPlan,
    *,
    clips: int,
    batch: int = 16,
    bootstrap: int = RESAMPLINGS,
    on_change: Callable[[SavingsMeasurement], object] = lambda measured: None,
    **options: Any,
) -> SavingsMeasurement:
    """Sample all rows from the same noise, count what they compute, score them, and take their peak memory.

    Nothing is replayed as a CUDA graph here, rows without a saving neither: memory that a graph holds would not be told. A row
    that fails is logged and kept with its reason.

    Args:
        models: by name.
        scoring: the real clips' features and the detector.
        plan: as `plan_savings` gives it: the row without a saving precedes those with.
        clips: N, samples of each row.
        batch: clips denoised together.
        bootstrap: resamplings for an interval of each distance, 0 for none.
        on_change: told after each row what there is so far.
        options: further ones of `VideoPipeline.sampling`; sample i starts from the same noise in all rows of the same shape.
    """
    measured = SavingsMeasurement(plan)
    options["batch"] = min(batch, clips)
    scoring.detector.to(next(iter(models.values())).device)
    plain: dict[SavingsCase, Tensor] = {}  # of the last row without a saving its clips
    for case in progress(plan.cases, desc="rows"):
        try:
            result, samples = _measure(models[case.model], scoring, case, clips, bootstrap, options)
        except (ExpectedError, torch.OutOfMemoryError) as error:
            reason = str(error).partition("\n")[0]
            logger.warning("%s: %s", case.name, reason)
            measured.failed[case] = reason
        else:
            if not case.savings:
                plain = {case: samples}
            elif case.plain in plain:
                same = plain[case.plain]
                result = replace(result, psnr=psnr(samples, same), ssim=_ssim(samples, same, models[case.model].device))
            measured.results[case] = result
        on_change(measured)
    scoring.detector.to("cpu")
    return measured


def time_savings(
    models: Mapping[str, VideoPipeline],
    measured: SavingsMeasurement,
    *,
    repeats: int = 3,
    on_change: Callable[[SavingsMeasurement], object] = lambda measured: None,
    **options: Any,
) -> SavingsMeasurement:
    """Time a batch of each row that was measured, in turns over all rows, warm.

    Rows without a saving run as `sample` runs them: on a GPU by CUDA graphs, unless the model is opened without.

    Args:
        models: by name.
        measured: as `measure_savings` gives it; the turns are added to it.
        repeats: timed turns.
        on_change: told after each turn what there is so far.
        options: as for `measure_savings`.
    """
    candidates = {}
    for case, result in measured.results.items():
        pipeline = models[case.model]
        candidates[case] = warm_call(pipeline, settings(pipeline, case, **options | {"batch": result.batch}))
    for _ in progress(range(repeats), desc="turns"):
        for case, seconds in time_turn(candidates).items():
            result = measured.results[case]
            measured.results[case] = replace(result, turns=(*result.turns, seconds))
        on_change(measured)
    return measured


def warm_call(pipeline: VideoPipeline, sampling: Sampling) -> Callable[[], Tensor]:
    """What denoises the first batch of these settings, to be timed: as `sample` does it, on a GPU by CUDA graphs.

    Args:
        pipeline: of the model.
        sampling: its batch has been denoised before, but for the graphs.
    """
    if pipeline.graphed and not sampling.savings:
        pipeline.warm_up(sampling)
    return partial(pipeline.denoise, range(sampling.batch), sampling)


def _measure(
    pipeline: VideoPipeline, scoring: Scoring, case: SavingsCase, clips: int, bootstrap: int, options: dict
) -> tuple[SavingsResult, Tensor]:
    """What is found of a row, but for what it takes other rows to tell, and its clips, uint8 (N, 3, T, H, W)."""
    sampling, tally = settings(pipeline, case, **options), Tally()
    samples = _sample(pipeline, sampling, clips, tally)
    features = torch.cat([scoring.features(part.to(pipeline.device)) for part in samples.split(sampling.batch)])
    record = sampling.record(pipeline.token_schedule(sampling), pipeline.classes)
    record |= {"root": str(pipeline.config.folder), "weights": str(pipeline.weights_file)}
    record |= {"savings": [policy.record() for policy in pipeline.policies(sampling)]}
    compared = scoring.compare(features, _step(pipeline), record, Extras(bootstrap=bootstrap))
    once = partial(pipeline.denoise, range(sampling.batch), sampling, tally=Tally())
    peak = peak_memory(once, pipeline.device)
    shown = samples[:SHOWN_CLIPS].clone()
    return SavingsResult(case, compared, tally.macs / clips, tally.share, peak, sampling.batch, shown), samples


def _sample(pipeline: VideoPipeline, sampling: Sampling, clips: int, tally: Tally) -> Tensor:
    """Clips of the same noise in each row, uint8 (N, 3, T, H, W)."""
    pipeline.encode_prompts(sampling, range(clips))
    samples = []
    for first in range(0, clips, sampling.batch):
        indices = range(first, min(first + sampling.batch, clips))
        samples.append(pipeline.decode(pipeline.denoise(indices, sampling, tally=tally)))
    return torch.cat(samples)


def _ssim(samples: Tensor, same: Tensor, device: torch.device) -> float:
    """Clip by clip where the model computes."""
    pairs = zip(samples.split(1), same.split(1), strict=True)
    return sum(ssim(one.to(device), other.to(device)) for one, other in pairs) / len(samples)


def _clip_size(pipeline: VideoPipeline) -> list[int]:
    """Frames, height and width of a model's clips."""
    return list(pipeline.autoencoder.clip_size(pipeline.model.spec.input_size))


def _step(pipeline: VideoPipeline) -> int | None:
    """The optimizer step of a run's checkpoint; None of weights that lie elsewhere, such as an exported folder."""
    folders = [] if pipeline.weights_file is None else pipeline.weights_file.absolute().parents
    return next((step_of(folder) for folder in folders if re.fullmatch("step-[0-9]+", folder.name)), None)
