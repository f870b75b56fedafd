"""What savings need to know of a model, measured on samples of its own that leave nothing out."""

from collections.abc import Sequence

from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.generation.sampling import Sampling
from sparsevid.savings.calibrate import Measured, Probe, fit_saving
from sparsevid.savings.fits import Fit
from sparsevid.system.checksums import file_sha256
from sparsevid.system.logging import progress


def measure(pipeline: VideoPipeline, sampling: Sampling, samples: int) -> list[Measured]:
    """Denoise samples 0 … samples − 1, with a progress bar, and measure every call of the model against the one before."""
    probe, size = Probe(), sampling.batch
    batches = [range(first, min(first + size, samples)) for first in range(0, samples, size)]
    pipeline.encode_prompts(sampling, range(samples))
    with progress(total=len(batches) * sampling.steps, desc="calibrate", unit="step") as bar:
        for indices, noise in zip(batches, pipeline.noises(batches, sampling), strict=True):
            pipeline.denoise(indices, sampling, lambda *_: bar.update(), noise, savings=[probe])
    return probe.measured


def fit_all(
    pipeline: VideoPipeline, sampling: Sampling, samples: int, measured: Sequence[Measured], savings: Sequence[str]
) -> list[Fit]:
    """Fit what these savings need to what was measured on so many samples.

    Raises:
        SavingError: as `fit_saving`.
    """
    weights = None if pipeline.weights_file is None else file_sha256(pipeline.weights_file)
    said = {"samples": samples, **sampling.record(pipeline.token_schedule(sampling), pipeline.classes)}
    return [fit_saving(saving, measured, pipeline.model.spec, weights, said) for saving in savings]
