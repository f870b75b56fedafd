"""How long clips take from noise to file: samplers and models side by side, in one run.

Dimensions: B clips of a batch.

A case either runs as a whole, or is *extrapolated*: one call of the model is timed in each stage of the token schedule, and the
calls that its sampler makes are added up.
"""

import copy
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder
from sparsevid.autoencoder.linear import LinearAutoencoder
from sparsevid.autoencoder.load import load_autoencoder
from sparsevid.autoencoder.pixels import Pixels
from sparsevid.benchmark.model import build_random_model, matmul_rates, plan_matmuls
from sparsevid.benchmark.sampling_cases import PRODUCT_SPARSE, Call, Network, SamplingCase, product_dense
from sparsevid.benchmark.timing import Turns, time_turn
from sparsevid.diffusion.samplers import call_once
from sparsevid.generation.pipeline import DTYPES, VideoPipeline
from sparsevid.models.inputs import drawn_condition
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import ObjectiveConfig, RunConfig
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.distributed import check_device
from sparsevid.system.logging import progress
from sparsevid.text.encoder import EncodedText
from sparsevid.videos.write import FORMATS

FIT_CLIPS, FIT_SIZE = (2, 3, 2), 64  # random clips, and their sides, that the linear autoencoder is fitted to


@dataclass(frozen=True)
class SamplingResult(Turns):
    """What was measured of a case, and of the dense case it is compared with.

    Attributes:
        turns: seconds from noise to latents in each turn, the whole batch; of an extrapolated case the sum over its calls.
        decode_turns, write_turns: seconds from latents to clips, and from clips to files; empty without an autoencoder.
        matmul_rate: multiply-adds a second of the best square matmul of the same dtype in the same run.
        dense: the result of `case.dense`; None for a dense case, and for one of a product.
    """

    case: SamplingCase
    turns: tuple[float, ...]
    decode_turns: tuple[float, ...]
    write_turns: tuple[float, ...]
    matmul_rate: float
    dense: "SamplingResult | None" = None

    @property
    def latent_seconds(self) -> float:
        """Seconds of a clip, from noise to latents."""
        return self.median / self.case.batch

    @property
    def decode_seconds(self) -> float:
        """Seconds of a clip, from latents to pixels; 0 without an autoencoder."""
        return statistics.median(self.decode_turns) / self.case.batch if self.decode_turns else 0.0

    @property
    def write_seconds(self) -> float:
        """Seconds of a clip, from pixels to a file; 0 without an autoencoder."""
        return statistics.median(self.write_turns) / self.case.batch if self.write_turns else 0.0

    @property
    def clip_turns(self) -> tuple[float, ...]:
        """Seconds from noise to files in each turn, the whole batch; to latents without an autoencoder."""
        if not self.decode_turns:
            return self.turns
        return tuple(map(sum, zip(self.turns, self.decode_turns, self.write_turns, strict=True)))

    @property
    def clip_seconds(self) -> float:
        """Seconds of a clip end to end, one part after the other."""
        return self.latent_seconds + self.decode_seconds + self.write_seconds

    @property
    def matmul_share(self) -> float:
        """Counted multiply-adds a second of the sampler over the matmul rate."""
        return self.case.macs / self.median / self.matmul_rate

    @property
    def latent_speed(self) -> float | None:
        """Seconds in latents of the dense case over this one's, median over the turns; None where that was not measured."""
        return None if self.dense is None else _speed(self.dense.turns, self.turns)

    @property
    def clip_speed(self) -> float | None:
        """Seconds end to end of the dense case over this one's, median over the turns; None where that was not measured."""
        return None if self.dense is None else _speed(self.dense.clip_turns, self.clip_turns)

    @property
    def counted_speed(self) -> float:
        """Multiply-adds of the dense case over this one's."""
        return self.case.dense.macs / self.case.macs


class Product(NamedTuple):
    """Few steps of a sparse model against many of its dense one, both extrapolated."""

    dense: SamplingResult
    sparse: SamplingResult

    @property
    def speed(self) -> float:
        """Seconds in latents, dense over sparse, median over the turns."""
        return _speed(self.dense.turns, self.sparse.turns)


@dataclass(frozen=True)
class SamplingMeasurement:
    """All results of a run, the products among them, and the multiply-adds a second of its matmuls by dtype and side."""

    results: tuple[SamplingResult, ...]
    products: tuple[Product, ...]
    matmul_rates: dict[str, dict[int, float]]


def measure_sampling(
    cases: Sequence[SamplingCase],
    autoencoder: Autoencoder | None,
    *,
    repeats: int = 3,
    device: str | torch.device = "cpu",
    matmul_sizes: Sequence[int] | None = None,
    format: str = "ffv1",
    graph: bool = True,
) -> SamplingMeasurement:
    """Time all cases and matmuls of their dtypes in turns, after `warm_turns` through every call, decoding and writing.

    All models are held at once, one for each spec and dtype, with random weights.

    Args:
        cases: as `plan_sampling` gives them: the dense case of each is among them.
        autoencoder: decodes the latents; None: no decoding and no writing.
        repeats: timed turns.
        device: `cpu`, `cuda` or `cuda:N`.
        matmul_sizes: sides of the square matrices; by default those of `benchmark.model.MATMUL_SIZES`.
        format: of the files, see `sparsevid.videos.write.FORMATS`.
        graph: on a GPU replay forwards as CUDA graphs.

    Raises:
        ValueError: a count out of range, no such device, latents that are not the autoencoder's, or no such format.
    """
    if repeats < 1:
        raise ValueError(f"there is at least one timed turn, got repeats={repeats}")
    if format not in FORMATS:
        raise ValueError(f"no clip format {format!r}; accepted are {', '.join(FORMATS)}")
    channels = {case.network.spec.in_channels for case in cases}
    if autoencoder is not None and channels != {autoencoder.channels}:
        raise ValueError(
            f"the models have latents of {', '.join(map(str, channels))} channels, the autoencoder {autoencoder.kind} of "
            f"{autoencoder.channels}: give another, or `none`"
        )
    device = check_device(device)
    # Without an autoencoder nothing is decoded, so any will do for a pipeline.
    pipelines = random_pipelines([case.network for case in cases], autoencoder or Pixels(), device, graph)
    runs = {case: SamplingRun(case, pipelines[case.network]) for case in cases}
    single = {call: part for case, run in runs.items() for call, part in run.single_calls().items()}
    matmuls = plan_matmuls(dict.fromkeys(case.network.dtype for case in cases), device, matmul_sizes)
    added_up = {call: single[call] for case in cases if case.extrapolated for call in case.calls}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        models = {(case, "model"): run.denoise for case, run in runs.items() if not case.extrapolated}
        ends = {} if autoencoder is None else _ends(runs, Path(folder), format)
        for parts in warm_turns(single, ends | matmuls, device):
            time_turn(parts)
        candidates = added_up | models | ends | matmuls
        turns = [time_turn(candidates) for _ in progress(range(repeats), desc="turns")]
    return compare_sampling(cases, turns, matmul_rates(matmuls, turns))


def warm_turns(
    single: Mapping[Call, Callable], others: Mapping[Any, Callable], device: torch.device
) -> list[dict[Any, Callable]]:
    """What runs before the timed turns: everything once, and on a GPU the calls of models once more.

    Args:
        single: one call of a model in each stage.
        others: decoding, writing, matmuls.
        device: where the models are.
    """
    turns: list[dict[Any, Callable]] = [{**single, **others}]
    if device.type == "cuda":
        turns.append(dict(single))  # a CUDA graph is recorded at its second call
    return turns


def compare_sampling(
    cases: Sequence[SamplingCase], turns: Sequence[Mapping[Any, float]], rates: dict[str, dict[int, float]]
) -> SamplingMeasurement:
    """Add up the calls of extrapolated cases, put each case beside its dense one, and the cases of a product together.

    Args:
        cases: with their dense cases, as `plan_sampling` gives them.
        turns: of each turn the seconds by `Call`, and by (case, part) with parts `model`, `decode`, `write`.
        rates: multiply-adds a second of matmuls, by dtype and side.
    """
    results: dict[SamplingCase, SamplingResult] = {}
    for case in sorted(cases, key=lambda case: case.network.spec.is_sparse):  # dense ones first: the others refer to them
        results[case] = SamplingResult(
            case,
            tuple(_model_seconds(case, turn) for turn in turns),
            tuple(turn[case, "decode"] for turn in turns if (case, "decode") in turn),
            tuple(turn[case, "write"] for turn in turns if (case, "write") in turn),
            max(rates[case.network.dtype].values()),
            results.get(case.dense) if case.network.spec.is_sparse else None,
        )
    few = [case for case in cases if case.extrapolated and (case.sampler, case.steps) == PRODUCT_SPARSE]
    products = [Product(results[product_dense(case)], results[case]) for case in few if product_dense(case) in results]
    return SamplingMeasurement(tuple(results[case] for case in cases), tuple(products), rates)


class SamplingRun:
    """The parts of a case, each of which takes what the one before it left.

    Args:
        case: what to sample.
        pipeline: of its network.
    """

    @torch.inference_mode()
    def __init__(self, case: SamplingCase, pipeline: VideoPipeline) -> None:
        self.case, self.pipeline = case, pipeline
        spec, prompts = case.network.spec, None
        if spec.conditioned_on == "text":
            drawn = drawn_condition(spec, case.batch, torch.device("cpu"), torch.float32)["text"]  # (B, L, C)
            prompts = [str(index) for index in range(case.batch)]
            pipeline.remember(prompts, EncodedText(drawn, drawn.new_ones(drawn.shape[:2]), (0,) * case.batch))
        self.sampling = pipeline.sampling(sampler=case.sampler, steps=case.steps, batch=case.batch, prompts=prompts)
        self.latents = torch.randn(case.batch, spec.in_channels, *spec.input_size, device=pipeline.device)
        self.clips = torch.zeros(0)

    @torch.inference_mode()
    def single_calls(self) -> dict[Call, Callable[[], Tensor]]:
        """A call of the model in each stage that the sampler passes, at the first of its times there.

        Inputs are made as a sampler makes them, in inference mode: a compiled model has other graphs for other tensors.
        """
        spec, device = self.case.network.spec, self.pipeline.device
        x = torch.randn(self.case.batch, spec.in_channels, *spec.input_size, device=device)
        condition = self.pipeline.condition(range(len(x)), self.sampling)
        denoiser = self.pipeline.denoiser(self.sampling, condition)
        timed = torch.inference_mode()(partial(call_once, self.case.sampler, denoiser, x, **condition.given))
        return {call: partial(timed, u=times[0]) for call, times in self.case.calls.items()}

    def denoise(self) -> None:
        """From noise to latents."""
        self.latents = self.pipeline.denoise(range(self.case.batch), self.sampling)

    def decode(self) -> None:
        """From latents to clips on the CPU."""
        self.clips = self.pipeline.decode(self.latents)

    def write(self, folder: Path, format: str) -> None:
        """From clips to files."""
        self.pipeline.save(self.clips, folder, format)


def random_pipelines(
    networks: Sequence[Network], autoencoder: Autoencoder, device: torch.device, graph: bool = True
) -> dict[Network, VideoPipeline]:
    """Pipelines of random weights; networks of the same spec and dtype share them, those of one dtype the autoencoder."""
    dtypes = dict.fromkeys(network.dtype for network in networks)
    autoencoders = {dtype: copy.deepcopy(autoencoder).place(device, DTYPES[dtype]) for dtype in dtypes}
    models: dict[tuple[ModelSpec, str], DiffusionTransformer] = {}
    pipelines = {}
    for network in dict.fromkeys(networks):
        spec, schedule, dtype, compiled = network
        if (spec, dtype) not in models:
            models[spec, dtype] = build_random_model(spec, DTYPES[dtype], device)
        config = RunConfig(objective=ObjectiveConfig(kind="diffusion" if spec.learn_sigma else "flow"))
        parts = models[spec, dtype], autoencoders[dtype], config, schedule
        pipelines[network] = VideoPipeline(*parts, compile=compiled, graph=graph)
    return pipelines


def open_autoencoder(source: str, channels: int) -> Autoencoder | None:
    """What decodes in a benchmark.

    Args:
        source: `linear` (fitted to random clips: its time is that of any other), `none`, or the folder of a checkpoint or of a
            saved autoencoder.
        channels: of the latents, for `linear`.

    Raises:
        FileNotFoundError: no autoencoder there.
        ValueError: a damaged one.
    """
    if source == "none":
        return None
    if source == "linear":
        clips = torch.randint(256, (*FIT_CLIPS, FIT_SIZE, FIT_SIZE), dtype=torch.uint8)
        return LinearAutoencoder.fit(clips, channels=channels)
    folder = Path(source)
    return load_autoencoder(folder / "autoencoder" if (folder / "autoencoder").is_dir() else folder)


def _ends(runs: Mapping[SamplingCase, SamplingRun], folder: Path, format: str) -> dict[tuple[SamplingCase, str], Callable]:
    """What follows the model in each case."""
    ends: dict[tuple[SamplingCase, str], Callable] = {}
    for case, run in runs.items():
        ends[case, "decode"] = run.decode
        ends[case, "write"] = partial(run.write, folder, format)
    return ends


def _speed(dense: Sequence[float], this: Sequence[float]) -> float:
    """Median over the turns of the ratio within a turn, in which both ran on a machine that was equally fast."""
    return statistics.median(one / other for one, other in zip(dense, this, strict=True))


def _model_seconds(case: SamplingCase, turn: Mapping[Any, float]) -> float:
    if not case.extrapolated:
        return turn[case, "model"]
    return sum(len(times) * turn[call] for call, times in case.calls.items())
