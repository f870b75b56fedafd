"""What samplers and numbers of steps make of a checkpoint: scores, pictures, and how far step reuse moves the samples.

Dimensions: N clips, D features of a clip.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from sparsevid.benchmark.report import MISSING
from sparsevid.diffusion.samplers import DIFFUSION_SAMPLERS, FLOW_SAMPLERS, sampler_times
from sparsevid.evaluation.record import ProtocolRecord
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.generation.sampling import Sampling
from sparsevid.runs.checkpoints import step_of
from sparsevid.runs.config import ConfigError
from sparsevid.system.logging import progress
from sparsevid.training.scoring import Scoring
from sparsevid.videos.sheets import contact_sheet, write_board

QUALITY_COLUMNS = ("sampler", "steps", "model calls", "reuse every", "score", "pixels off", "latents off")
SHOWN_CLIPS, SHOWN_FRAMES = 3, 4  # of each block in the picture


@dataclass(frozen=True)
class QualityCase:
    """A way to sample.

    Attributes:
        sampler: a key of `SAMPLERS` that fits the checkpoint.
        steps: of the sampler.
        reuse_every: sparse layers are computed at every n-th call; 1 is no reuse.
    """

    sampler: str
    steps: int
    reuse_every: int = 1

    @property
    def name(self) -> str:
        """Such as `ddim 20`, or `ddim 20, reuse 2`."""
        return f"{self.sampler} {self.steps}" + (f", reuse {self.reuse_every}" if self.reuse_every > 1 else "")


@dataclass(frozen=True)
class QualityResult:
    """What was found of a case.

    Attributes:
        record: the score, and all it depends on; its `fake` has all settings of the samples, and the stages of their tokens.
        shown: the first clips, uint8 (n, 3, T, H, W).
        pixel_error: mean absolute difference to the same samples without reuse, in grey levels; None without reuse.
        latent_error: the same of the latents, which have about unit variance.
    """

    case: QualityCase
    record: ProtocolRecord
    shown: Tensor
    pixel_error: float | None = None
    latent_error: float | None = None

    @property
    def score(self) -> float:
        """Distance to the real clips, by the protocol."""
        return self.record.score

    @property
    def caption(self) -> str:
        """Such as `ddim 20: FD 95.1`."""
        return f"{self.case.name}: FD {self.score:.1f}"


def plan_quality(
    pipeline: VideoPipeline,
    samplers: Sequence[str] | None = None,
    steps: Sequence[int] = (5, 10, 20, 50),
    reuse: Sequence[int] = (1,),
    batch: int = 16,
) -> list[QualityCase]:
    """Every combination; with reuse, the case without it comes before.

    Args:
        samplers: keys of `SAMPLERS`; default: all that fit the checkpoint's objective.
        steps: of each sampler.
        reuse: sparse layers are computed at every n-th call.
        batch: clips denoised together.

    Raises:
        ValueError: what the checkpoint cannot be sampled with.
    """
    fitting = FLOW_SAMPLERS if pipeline.config.objective.kind == "flow" else DIFFUSION_SAMPLERS
    reuse = [1, *(every for every in dict.fromkeys(reuse) if every != 1)]
    cases = [QualityCase(*each) for each in product(fitting if samplers is None else samplers, dict.fromkeys(steps), reuse)]
    for case in cases:
        _settings(pipeline, case, batch=batch)  # refuses what does not fit
    return cases


def open_scoring(pipeline: VideoPipeline, clips: int, protocol: str | None = None, data_root: str | None = None) -> Scoring:
    """The scoring of a checkpoint's samples against the real clips of its run.

    Args:
        pipeline: from a checkpoint of a run, whose config says where its clips are.
        clips: real clips, and samples of each case.
        protocol: name or path; default: the run's.
        data_root: where the videos are, if not where the run read them.

    Raises:
        ConfigError: the config does not name its data, or the protocol does not fit its clips.
        FileNotFoundError, ValueError, DecodeError: see `Scoring`.
    """
    config = pipeline.config
    if config.data.frames is None or config.data.size is None:
        raise ConfigError("the checkpoint's config does not tell size and frames of its clips: it is not of a run made here")
    monitor = replace(config.monitor, protocol=protocol or config.monitor.protocol, score_clips=clips)
    data = replace(config.data, root=data_root or config.data.root)
    return Scoring(replace(config, monitor=monitor, data=data), pipeline.device)


@torch.inference_mode()
def measure_quality(
    pipeline: VideoPipeline, scoring: Scoring, cases: Sequence[QualityCase], *, clips: int, seed: int = 0, batch: int = 16
) -> list[QualityResult]:
    """Sample with the same noise in every case, and score.

    Args:
        pipeline: the checkpoint.
        scoring: the real clips' features and the detector.
        cases: as `plan_quality` gives them: the case without reuse precedes those with.
        clips: N, samples of each case.
        seed: of the noise; sample i starts from the same noise in all cases.
        batch: clips denoised together.
    """
    results: list[QualityResult] = []
    without: tuple[Tensor, Tensor] | None = None
    step = _step(pipeline)
    scoring.detector.to(pipeline.device)
    for case in progress(cases, desc="cases"):
        sampling = _settings(pipeline, case, seed=seed, batch=batch)
        latents, samples = _sample(pipeline, sampling, clips)
        features = torch.cat([scoring.features(part) for part in samples.to(pipeline.device).split(batch)])
        settings = sampling.record(pipeline.token_schedule(sampling), pipeline.classes)
        record = scoring.compare(features, step, settings | {"weights": str(pipeline.weights_file)})
        errors = {}
        if case.reuse_every == 1:
            without = latents, samples
        else:
            errors = {"latent_error": _difference(latents, without[0]), "pixel_error": _difference(samples, without[1])}
        results.append(QualityResult(case, record, samples[:SHOWN_CLIPS].clone(), **errors))
    return results


def write_picture(path: str | Path, results: Sequence[QualityResult], scale: int = 1) -> None:
    """One picture with a contact sheet for each case: a row of blocks for each sampler and reuse, steps from left to right.

    Args:
        path: a PNG file; its folder exists.
        results: as `measure_quality` gives them.
        scale: each pixel becomes this many in width and in height.
    """
    rows = list(dict.fromkeys((result.case.sampler, result.case.reuse_every) for result in results))
    results = sorted(
        results, key=lambda result: (rows.index((result.case.sampler, result.case.reuse_every)), result.case.steps)
    )
    blocks = [contact_sheet(result.shown, max_frames=SHOWN_FRAMES, scale=scale) for result in results]
    write_board(path, blocks, [result.caption for result in results], columns=len({result.case.steps for result in results}))


def quality_rows(results: Sequence[QualityResult]) -> list[list[str]]:
    """A row of `QUALITY_COLUMNS` for each case."""
    return [
        [
            result.case.sampler,
            str(result.case.steps),
            str(len(sampler_times(result.case.sampler, result.case.steps))),
            str(result.case.reuse_every),
            f"{result.score:.1f}",
            MISSING if result.pixel_error is None else f"{result.pixel_error:.2f}",
            MISSING if result.latent_error is None else f"{result.latent_error:.3f}",
        ]
        for result in results
    ]


def quality_lines(scoring: Scoring, clips: int) -> list[str]:
    """What a reader of the table has to know, a line each."""
    return [
        f"score: {scoring.detector.metric} by {scoring.protocol.name}, {clips} samples against {len(scoring.real.clip_ids)} "
        f"real clips, from memory; the protocol intends {scoring.protocol.fake_count} of each",
        "pixels off (grey levels), latents off (of about unit variance): mean absolute difference to the samples of the same "
        "noise without step reuse",
    ]


def quality_as_json(header: dict, results: Sequence[QualityResult]) -> dict:
    """Everything measured, as plain values.

    Args:
        header: as `describe_run` gives it.
        results: as `measure_quality` gives them.
    """
    return {
        "header": header,
        "results": [
            {
                "sampler": result.case.sampler,
                "steps": result.case.steps,
                "model_calls": len(sampler_times(result.case.sampler, result.case.steps)),
                "reuse_every": result.case.reuse_every,
                "pixel_error": result.pixel_error,
                "latent_error": result.latent_error,
                "record": result.record.as_dict(),
            }
            for result in results
        ],
    }


def _settings(pipeline: VideoPipeline, case: QualityCase, **options: int) -> Sampling:
    """How a case is sampled; what neither it nor the options say comes from the checkpoint's config."""
    savings = [] if case.reuse_every == 1 else f"steps:every={case.reuse_every}"
    return pipeline.sampling(sampler=case.sampler, steps=case.steps, savings=savings, **options)


def _sample(pipeline: VideoPipeline, sampling: Sampling, clips: int) -> tuple[Tensor, Tensor]:
    """Latents (N, C, T, H, W) on the CPU and their clips, uint8 (N, 3, T, H, W)."""
    latents, samples = [], []
    for first in range(0, clips, sampling.batch):
        latents.append(pipeline.denoise(range(first, min(first + sampling.batch, clips)), sampling))
        samples.append(pipeline.decode(latents[-1]))
    return torch.cat(latents).cpu(), torch.cat(samples)


def _step(pipeline: VideoPipeline) -> int | None:
    """The optimizer step of a run's checkpoint; None of weights that lie elsewhere, such as an exported folder."""
    folders = [] if pipeline.weights_file is None else pipeline.weights_file.absolute().parents
    return next((step_of(folder) for folder in folders if re.fullmatch("step-[0-9]+", folder.name)), None)


def _difference(one: Tensor, other: Tensor) -> float:
    return (one.float() - other.float()).abs().mean().item()
