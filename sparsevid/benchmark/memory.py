"""What a run's training needs, counted before anything is built: batch, tokens, multiply–adds, and memory by part.

From configuration and card alone: no data, no weights, no device.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparsevid.benchmark.candidates import Candidate
from sparsevid.data.feed import split_batch
from sparsevid.runs.config import ConfigError, TrainConfig
from sparsevid.sparsity.cost import parameter_count
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.memory import ALL_REDUCE, LIVE, RankMemory, Sharding, activation_memory, rank_memory
from sparsevid.training.deepspeed_file import read_settings
from sparsevid.training.throughput import dense_tokens, layer_tokens, training_flops

ZERO_STAGES = (0, 1, 2, 3)
USUAL_GPUS = (1, 2, 4, 8)
GIB = 2**30
RANK_COLUMNS = ["GPUs", "ZeRO", "clips×slots", "weights", "grads", "buffers", "optim.", "EMA", "activ.", "at most", "on host"]

STAGES_NOTE = "u: 0 is data, 1 is noise; share: of a run's forwards; tokens a layer: of a clip, the mean over layers"
RANKS_NOTE = (
    "*: as the run says; clips×slots: of a rank in a forward, and forwards of a step; buffers: DeepSpeed's, large for small "
    "models too; at most: the most held at one time, which must fit; on host: in the CPU's memory"
)


@dataclass(frozen=True)
class StageNeed:
    """What a stage of the token schedule asks of training.

    Attributes:
        low, high: its diffusion times.
        grid: sparse tokens; None for a dense model.
        share: of training's micro-batches that are in this stage.
        layer_tokens: tokens of a clip that a layer works on, the mean over layers.
        macs: multiply-adds of forward and backward pass for a clip with its stills.
    """

    low: float
    high: float
    grid: Grid | None
    share: float
    layer_tokens: float
    macs: int


@dataclass(frozen=True)
class RankNeed:
    """What a rank holds with one number of GPUs and one stage of ZeRO.

    Attributes:
        gpus: ranks.
        zero_stage: of ZeRO.
        micro_batch: clips of a forward on a rank.
        accumulation: micro-batches of an optimizer step on a rank.
        by_stage: memory in each stage of the token schedule.
    """

    gpus: int
    zero_stage: int
    micro_batch: int
    accumulation: int
    by_stage: tuple[RankMemory, ...]

    @property
    def most(self) -> RankMemory:
        """Memory in the stage that needs most."""
        return max(self.by_stage, key=lambda each: each.most)


@dataclass(frozen=True)
class TrainingNeed:
    """What a run's training needs.

    Attributes:
        model: of the run.
        zero_stage: the run's own.
        parameters: trainable ones.
        dense_tokens: of a clip and its stills.
        stages: of the token schedule; one for a dense model.
        ranks: by number of GPUs and stage of ZeRO.
    """

    model: Candidate
    zero_stage: int
    parameters: int
    dense_tokens: int
    stages: tuple[StageNeed, ...]
    ranks: tuple[RankNeed, ...]

    @property
    def macs(self) -> float:
        """Multiply-adds of an optimizer step, the mean over the stages by their share."""
        return self.model.run_config.train.global_batch * sum(each.share * each.macs for each in self.stages)


def training_need(model: Candidate, gpus: Sequence[int] | None = None) -> TrainingNeed:
    """Count what a run's training needs.

    Args:
        model: of a run.
        gpus: numbers of ranks; default: those of 1, 2, 4 and 8 that the batch can be split over.

    Raises:
        ConfigError: the batch cannot be split over a number that is given; or a DeepSpeed file that cannot be used.
    """
    config, spec = model.run_config, model.spec
    train, images = config.train, config.data.images or 0
    own = _settings(train)
    grids = [None] if model.schedule is None else [each.grid for each in model.schedule.stages]
    bounds = [(0.0, 1.0)] if model.schedule is None else [each[:2] for each in model.schedule.stages]
    shares = [1.0] if model.schedule is None else [model.times.mass(each) for each in model.schedule.stages]
    stages = tuple(
        StageNeed(low, high, grid, share, layer_tokens(spec, grid, images), training_flops(spec, grid, images) // 2)
        for (low, high), grid, share in zip(bounds, grids, shares, strict=True)
    )
    ranks = []
    for count, (micro_batch, accumulation) in _splits(train, gpus).items():
        activations = partial(
            activation_memory, spec, micro_batch, precision=train.precision, images=images, attention=config.model.attention,
            checkpoint_layers=config.model.checkpoint_layers,
        )  # fmt: skip
        layers = [activations(grid=grid) for grid in grids]
        for stage in _possible(train):
            of_rank = partial(
                rank_memory, spec, sharding=_sharding(own, stage, count), precision=train.precision, optimizer=train.optimizer,
                accumulation=accumulation, average_on_host=train.ema_device == "cpu",
            )  # fmt: skip
            by_stage = tuple(map(of_rank, layers))
            ranks.append(RankNeed(count, stage, micro_batch, accumulation, by_stage))
    parameters, tokens = parameter_count(spec), dense_tokens(spec, images)
    return TrainingNeed(model, own.get("stage", 0), parameters, tokens, stages, tuple(ranks))


def need_as_json(need: TrainingNeed) -> dict[str, Any]:
    """All of it, in plain values: bytes, multiply-adds, shares."""
    spec, config = need.model.spec, need.model.run_config
    ranks = [
        {name: value for name, value in asdict(each).items() if name != "by_stage"}
        | {"at_most": each.most.most, "by_stage": [asdict(memory) for memory in each.by_stage]}
        for each in need.ranks
    ]
    return {
        "run": need.model.name,
        "layout": spec.layout,
        "latents": [spec.in_channels, *spec.input_size],
        "parameters": need.parameters,
        "dense_tokens": need.dense_tokens,
        "global_batch": config.train.global_batch,
        "precision": config.train.precision,
        "optimizer": config.train.optimizer,
        "zero_stage": need.zero_stage,
        "checkpoint_layers": config.model.checkpoint_layers,
        "macs_per_step": need.macs,
        "stages": [asdict(each) | {"grid": each.grid and list(each.grid)} for each in need.stages],
        "ranks": ranks,
    }


def need_tables(need: TrainingNeed) -> list[tuple[str, list[str], list[list[str]], str]]:
    """Title, columns, rows and how to read it of three tables: run, stages of its token schedule, what a rank holds."""
    spec, config = need.model.spec, need.model.run_config
    train, again = config.train, config.model.checkpoint_layers
    run = [
        ["layout", f"{spec.layout}, {spec.hidden_size} channels"],
        ["parameters", f"{need.parameters / 1e6:.2f} M"],
        ["latents", "{} channels, {} frames of {}×{}".format(spec.in_channels, *spec.input_size)],
        ["dense tokens of a clip", str(need.dense_tokens)],
        ["clips of a step", str(train.global_batch)],
        ["multiply–adds of a step", f"{need.macs / 1e12:.3f} T"],
        ["computes in", train.precision],
        ["optimizer", train.optimizer],
        ["layers computed again in the backward pass", again or "none"],
    ]
    counts = list(dict.fromkeys((each.gpus, each.micro_batch) for each in need.ranks))
    first = {each.gpus: each for each in reversed(need.ranks)}  # activations are the same at all stages of ZeRO
    columns = ["diffusion time u", "sparse grid", "share", "tokens a layer", "GMACs a clip"]
    columns += [f"activations of {clips} clips ({_gpus(count)})" for count, clips in counts]
    stages = [
        [
            f"{each.low:.3f} – {each.high:.3f}",
            str(each.grid or "none"),
            f"{each.share:.3f}",
            f"{each.layer_tokens:.0f}",
            f"{each.macs / 1e9:.2f}",
            *(_gib(first[count].by_stage[number].activations) for count, _ in counts),
        ]
        for number, each in enumerate(need.stages)
    ]
    ranks = []
    for each in need.ranks:
        most, own = each.most, " *" if each.zero_stage == need.zero_stage else ""
        parts = (most.weights, most.gradients, most.buffers, most.optimizer, most.average, most.activations, most.most)
        row = [str(each.gpus), f"{each.zero_stage}{own}", f"{each.micro_batch}×{each.accumulation}"]
        ranks.append([*row, *map(_gib, parts), _gib(most.on_host)])
    return [
        (f"{need.model.name}: what a step is", [], run, ""),
        ("stages of the token schedule, forward and backward pass; activations in GiB of a rank", columns, stages, STAGES_NOTE),
        ("GiB of a rank, by part, in the stage that needs most", RANK_COLUMNS, ranks, RANKS_NOTE),
    ]


def _splits(train: TrainConfig, gpus: Sequence[int] | None) -> dict[int, tuple[int, int]]:
    """Clips of a forward and slots, by number of ranks."""
    if gpus is not None:
        if wrong := [count for count in gpus if count < 1]:
            raise ConfigError(f"{wrong[0]} GPUs: their number is at least 1")
        return {count: split_batch(train.global_batch, train.micro_batch, count) for count in gpus}
    found = {}
    for count in USUAL_GPUS:
        try:
            found[count] = split_batch(train.global_batch, train.micro_batch, count)
        except ConfigError:
            if count == 1:
                raise
    return found


def _possible(train: TrainConfig) -> list[int]:
    """Stages of ZeRO that the run's precision and optimizer go with (`training/engine.py:engine_settings`)."""
    stages = [0] if train.optimizer == "muon" else list(ZERO_STAGES)
    return [stage for stage in stages if stage or train.precision != "float16"]


def _settings(train: TrainConfig) -> dict[str, Any]:
    """What the run says of sharding."""
    if train.deepspeed is None:
        return {"stage": train.zero_stage or 0}
    return read_settings(Path(train.deepspeed), train)["zero_optimization"]


def _sharding(own: dict[str, Any], stage: int, ranks: int) -> Sharding:
    """One stage with the run's buffers; what it keeps on the host is its own stage's."""
    hosts = own if stage == own["stage"] else {}
    offloaded = [bool(hosts.get(name, {}).get("device", "none") != "none") for name in ("offload_optimizer", "offload_param")]
    bucket = int(own.get("reduce_bucket_size", ALL_REDUCE)) if own.get("contiguous_gradients", True) else 0
    live = int(own.get("stage3_max_live_parameters", LIVE))
    return Sharding(stage, ranks, bucket, bool(own.get("overlap_comm", False)), live, *offloaded)


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}" if count >= GIB / 100 or not count else f"{count / GIB:.4f}"
