"""Analytic cost of a model: multiply–adds (MACs) and parameters, by layer, stage and sampling run.

Counted are linear layers, attention products, adaLN, embedders and head, adds and multiplies once, as the papers do (which
call it FLOPs). Not counted, as usual: norms, activations, pooling, elementwise work. All counts are for one clip.

Keys and values of a prompt are counted where they are computed: once for all forwards, or, as the public code does, in each.

Dimensions: L = T·N dense tokens, N = H·W a frame; M = t·n sparse tokens, n = h·w a frame; D channels; K tokens of a prompt, of
C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sparsevid.sparsity.grid import Grid, check_sparse_grid
from sparsevid.sparsity.schedule import Stage, TokenSchedule, stage_at
from sparsevid.sparsity.spec import ModelSpec

FREQUENCIES = 256  # width of the sinusoidal timestep embedding


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage in a sampling run: MACs of a forward, and how many of the run's steps fall into it."""

    stage: Stage
    macs: int
    steps: int


@dataclass(frozen=True)
class SamplingCost:
    """Cost of a sampling run: `dense_macs` and `mean_macs` are per forward of one clip, the latter averaged over the steps."""

    dense_macs: int
    mean_macs: float
    stages: tuple[StageCost, ...]

    @property
    def ratio(self) -> float:
        """Sparse over dense."""
        return self.mean_macs / self.dense_macs


def needed(sparse: Grid | None, spec: ModelSpec, index: int) -> Grid:
    """The sparse grid of a layer that has sparse tokens. Raises ValueError if none is given."""
    if sparse is None:
        raise ValueError(f"layer {index} of {spec.layout!r} is {spec.parsed_layout.kinds[index]}, which needs a sparse grid")
    return sparse


def attention_macs(spec: ModelSpec, index: int, dense: Grid, sparse: Grid | None, *, naive_pooling: bool = False) -> int:
    """MACs of the attention of layer `index` with its projections; arguments as of `layer_macs`."""
    kind, d = spec.parsed_layout.kinds[index], spec.hidden_size
    if kind in "PDS":
        grid = needed(sparse, spec, index) if kind == "S" else dense
        tokens, frame = grid.tokens, grid.h * grid.w
        attended, groups = (grid.t, frame) if spec.layer_is_temporal(index) else (frame, grid.t)
        if kind != "P":
            return tokens * (4 * d * d + 2 * attended * d)
        return tokens * (2 * d * d + attended * d) if naive_pooling else groups * 2 * d * d
    if kind not in "MR":
        raise NotImplementedError(f"layout {spec.layout!r}: no cost is known for layers of kind {kind!r}")
    sparse = needed(sparse, spec, index)
    few, many, window = sparse.tokens, dense.tokens, dense.tokens // sparse.t
    if kind == "M":  # q and proj on sparse tokens, k and v on dense ones
        return few * (2 * d * d + 2 * window * d) + many * 2 * d * d
    return many * (2 * d * d + 2 * sparse.h * sparse.w * d) + few * 2 * d * d


def mlp_macs(spec: ModelSpec, index: int, dense: Grid, sparse: Grid | None) -> int:
    """MACs of the MLP of layer `index`; arguments as of `layer_macs`."""
    grid = needed(sparse, spec, index) if spec.parsed_layout.kinds[index] in "MS" else dense
    return grid.tokens * 2 * spec.hidden_size * spec.mlp_size


def listening_macs(spec: ModelSpec, index: int, dense: Grid, sparse: Grid | None, text_tokens: int | None = None) -> int:
    """MACs of the attention of layer `index` to a prompt, without its keys and values; arguments as of `layer_macs`."""
    if not spec.layer_listens(index):
        return 0
    kind, d, length = spec.parsed_layout.kinds[index], spec.hidden_size, text_tokens or spec.text_tokens
    few = kind == "S" or (kind == "M" and spec.merge_text == "sparse")
    grid = needed(sparse, spec, index) if few else dense
    return grid.tokens * (2 * d * d + 2 * length * d)


def prompt_macs(spec: ModelSpec, text_tokens: int | None = None) -> int:
    """MACs of what is made of a prompt before any layer: its embedding, keys and values of all layers that listen."""
    d, length = spec.hidden_size, text_tokens or spec.text_tokens
    listeners = sum(map(spec.layer_listens, range(spec.depth)))
    return length * (spec.text_channels * d + d * d + listeners * 2 * d * d) if spec.text_channels else 0


def layer_macs(
    spec: ModelSpec,
    index: int,
    dense: Grid,
    sparse: Grid | None,
    *,
    naive_pooling: bool = False,
    naive_w1: bool = False,
    text_tokens: int | None = None,
) -> int:
    """MACs of layer `index` without its adaLN, and without keys and values of a prompt.

    Args:
        dense: grid of the dense tokens.
        sparse: grid of the sparse tokens; may be None for P and D.
        naive_pooling: count P as the public code computes it, by a product with an N×N matrix of equal weights.
        naive_w1: count W1 of R on upsampled tokens, as the public code computes it.
        text_tokens: K; by default the spec's.

    Raises:
        ValueError: a layer with sparse tokens, and no sparse grid.
    """
    attention = attention_macs(spec, index, dense, sparse, naive_pooling=naive_pooling)
    upsampling = 0
    if spec.parsed_layout.kinds[index] == "R":  # W1 and W2
        upsampled = dense if naive_w1 else needed(sparse, spec, index)
        upsampling = (upsampled.tokens + dense.tokens) * spec.hidden_size**2
    listening = listening_macs(spec, index, dense, sparse, text_tokens)
    return attention + upsampling + listening + mlp_macs(spec, index, dense, sparse)


def fixed_macs(spec: ModelSpec, dense: Grid) -> int:
    """MACs outside the layers' tokens: patch, time, size embedders, all adaLN, head. Modulation is computed once per clip."""
    d, patch = spec.hidden_size, spec.patch_size**2
    embed = dense.tokens * spec.in_channels * patch * d
    time = FREQUENCIES * d + d * d
    sizes = FREQUENCIES * d + d * d // 3 if spec.micro_conditions else 0  # three times a third of D channels
    modulation = 6 * d * d if spec.shared_modulation else (spec.depth * 6 + 2) * d * d
    return embed + time + sizes + modulation + dense.tokens * d * patch * spec.out_channels


def chosen_grid(spec: ModelSpec, dense: Grid, grid: Sequence[int] | None = None) -> Grid | None:
    """The sparse (t, h, w) of a forward, by default the spec's; None for a dense model.

    Raises:
        ValueError: it does not fit the dense grid.
    """
    chosen = grid or spec.sparse_grid
    if chosen is None or not spec.is_sparse:
        return None
    sparse = Grid(*chosen)
    check_sparse_grid(sparse, dense)
    return sparse


def forward_macs(
    spec: ModelSpec,
    *,
    size: tuple[int, int, int] | None = None,
    grid: Sequence[int] | None = None,
    naive_pooling: bool = False,
    naive_w1: bool = False,
    naive_text: bool = False,
    text_tokens: int | None = None,
) -> int:
    """MACs of one forward of one clip.

    Args:
        size: (frames, height, width) of the latents; by default the spec's.
        grid: sparse (t, h, w); by default the spec's.
        naive_pooling, naive_w1, text_tokens: see `layer_macs`.
        naive_text: count what is made of the prompt too, as the public code computes it in every forward.

    Raises:
        ValueError: the grid does not fit the size.
    """
    dense = spec.dense_grid(size)
    sparse = chosen_grid(spec, dense, grid)
    layer = partial(layer_macs, naive_pooling=naive_pooling, naive_w1=naive_w1, text_tokens=text_tokens)
    layers = sum(layer(spec, i, dense, sparse) for i in range(spec.depth))
    return fixed_macs(spec, dense) + layers + (prompt_macs(spec, text_tokens) if naive_text else 0)


def sampling_macs(
    spec: ModelSpec,
    schedule: TokenSchedule | None,
    times: Sequence[float],
    *,
    size: tuple[int, int, int] | None = None,
    naive_pooling: bool = False,
    naive_w1: bool = False,
    naive_text: bool = False,
    text_tokens: int | None = None,
) -> SamplingCost:
    """Cost of a sampling run that calls the model once at each diffusion time.

    Args:
        schedule: the token schedule; None uses the spec's default grid throughout.
        times: diffusion times u of the run's forwards, in [0, 1].
        size, naive_pooling, naive_w1, naive_text, text_tokens: see `forward_macs`.
    """
    macs = partial(forward_macs, size=size, naive_text=naive_text, text_tokens=text_tokens)
    dense_macs = macs(spec.dense())
    macs = partial(macs, naive_pooling=naive_pooling, naive_w1=naive_w1)
    if schedule is None or not spec.is_sparse:
        grid = Grid(*spec.sparse_grid) if spec.sparse_grid else spec.dense_grid(size)
        schedule = TokenSchedule((Stage(0.0, 1.0, grid),))
    visits = [stage_at(schedule, u) for u in times]
    stages = tuple(StageCost(stage, macs(spec, grid=stage.grid), visits.count(i)) for i, stage in enumerate(schedule.stages))
    mean = sum(cost.macs * cost.steps for cost in stages) / len(visits)
    return SamplingCost(dense_macs, mean, stages)


def parameter_count(spec: ModelSpec) -> int:
    """Trainable parameters of the model of this spec."""
    d, mlp, patch = spec.hidden_size, spec.mlp_size, spec.patch_size**2
    attention = {"P": 2, "M": 4, "S": 4, "R": 6, "D": 4}  # D×D matrices with bias: v proj / q kv proj / … / W1 W2
    per_layer = sum(attention[kind] * (d * d + d) for kind in spec.parsed_layout.kinds)
    common = spec.depth * (2 * d * mlp + mlp + d)
    maps, tables = (6, (6 * spec.depth + 2) * d) if spec.shared_modulation else (6 * spec.depth + 2, 0)
    embed = spec.in_channels * patch * d + d + (FREQUENCIES * d + d) + (d * d + d)
    third = d // 3 if spec.micro_conditions else 0
    sizes = 2 * ((FREQUENCIES + 1) * third + third * (third + 1))
    listeners = sum(map(spec.layer_listens, range(spec.depth)))
    text = (spec.text_channels + 1) * d + (4 * listeners + 1) * (d * d + d) if spec.text_channels else 0
    head = patch * spec.out_channels * (d + 1)
    return per_layer + common + maps * (d * d + d) + tables + embed + sizes + spec.labels * d + text + head


def frontier(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of (cost, distance) no other excels: none that costs at most as much is at most as far, and less in one of both."""
    return [not any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points) for point in points]
