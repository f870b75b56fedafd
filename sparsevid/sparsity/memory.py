"""Memory of training, before anything is built: activations by layer and stage, and what each rank holds beside them.

Counted are the tensors that autograd keeps from forward to backward pass, each once, as the layers of `models/blocks.py` make
them, the gradients at hand while the backward pass is in a layer, and, by ZeRO stage, weights, gradients, optimizer and
average. Not counted: autoencoder, teacher, data, the libraries themselves, and what an allocator leaves unused.

Dimensions: B clips, L = T·N dense tokens of a clip, n = t·h·w sparse ones, D channels, F channels inside the MLP, K tokens of a
prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sparsevid.sparsity.cost import chosen_grid, needed, parameter_count
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.spec import ModelSpec

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT32 = 4
LOSS_LATENTS = 12  # tensors as large as the latents, in float32, that the noise, the loss and its gradient are
GROUP = 2**25  # elements whose gradients are float32 at one time, at stage 0 in another precision (`training/unsharded.py`)
LIVE = 1_000_000_000  # weights that DeepSpeed keeps whole at stage 3, if not told otherwise
ALL_REDUCE = 500_000_000  # elements that DeepSpeed lays side by side for an all-reduce at stage 0, and by default from 1 on
# Values of an optimizer for each weight. Of Muon's weights nearly all are matrices of layers, which have one.
OPTIMIZER_VALUES = {"adamw": 2, "adam": 2, "sgd": 1, "muon": 1}


@dataclass(frozen=True)
class LayerMemory:
    """Bytes of one layer for a micro-batch.

    Attributes:
        kept: from the forward to the backward pass.
        again: more, while the backward pass is in this layer, where activation checkpointing computes it again.
        work: gradients at hand while the backward pass is in this layer.
    """

    kept: int
    again: int
    work: int


class _Counted(NamedTuple):
    """Elements that a layer makes for one clip: in the precision of the model, in that of sparse tokens, in float32."""

    inner: int  # kept but for checkpointing
    inner_sparse: int
    exact: int
    out: int  # the layer's output, which the next one keeps
    out_sparse: int
    before: int  # made before the layer is called: kept in any case
    before_sparse: int
    tokens: int  # that pass its MLP


def layer_memory(
    spec: ModelSpec,
    index: int,
    dense: Grid,
    sparse: Grid | None,
    *,
    clips: int = 1,
    precision: str = "float32",
    again: bool = False,
    attention: str = "sdpa",
) -> LayerMemory:
    """Bytes of layer `index` for a micro-batch.

    Args:
        dense: grid of the dense tokens.
        sparse: grid of the sparse tokens; may be None for P and D.
        clips: B.
        precision: `float32`, `bfloat16` or `float16`, of the model.
        again: activation checkpointing is on for this layer.
        attention: backend; `math` keeps the matrix of attention weights.

    Raises:
        NotImplementedError: a kind of layer whose memory is not known.
    """
    matrices = attention == "math"
    counted = _count(spec, index, dense, sparse, matrices=matrices)
    if spec.layer_listens(index):
        counted = _with_listening(spec, index, dense, sparse, counted, matrices=matrices)
    narrow = BYTES[precision]
    wide = FLOAT32 if spec.residual_upsampling else narrow  # there sparse tokens stay in float32
    inner = counted.inner * narrow + counted.inner_sparse * wide + counted.exact * FLOAT32
    out = (counted.out + counted.before) * narrow + (counted.out_sparse + counted.before_sparse) * wide
    work = counted.tokens * (spec.hidden_size + spec.mlp_size) * narrow
    return LayerMemory(clips * (out if again else out + inner), clips * inner if again else 0, clips * work)


def _count(spec: ModelSpec, index: int, dense: Grid, sparse: Grid | None, *, matrices: bool) -> _Counted:
    kind, d, f = spec.parsed_layout.kinds[index], spec.hidden_size, spec.mlp_size
    many, few = dense.tokens, sparse.tokens if sparse is not None else 0
    # Modulation: SiLU, its product, and one plus each scale.
    small = 9 * d

    def exact(attending: int, normed: int) -> int:
        """Mean and deviation of each norm, and a number for each query and head, all in float32."""
        return 2 * normed + spec.num_heads * attending

    if kind in "DS":
        tokens, grid = (few, needed(sparse, spec, index)) if kind == "S" else (many, dense)
        seen = grid.t if spec.layer_is_temporal(index) else grid.h * grid.w
        weights = tokens * (spec.num_heads * seen + d) if matrices else 0
        # Modulated, q, k, v, attended, projected; modulated, two of F, the MLP's. Two norms and a sum are as the tokens.
        inner, as_tokens = tokens * (8 * d + 2 * f) + small + weights, tokens * 3 * d
        rest = exact(tokens, 2 * tokens)
        if kind == "D":
            return _Counted(inner + as_tokens, 0, rest, tokens * d, 0, 0, 0, tokens)
        return _Counted(inner, as_tokens, rest, 0, tokens * d, 0, 0, tokens)
    if kind == "P":
        means = many // (dense.t if spec.layer_is_temporal(index) else dense.h * dense.w)
        return _Counted(many * (4 * d + 2 * f) + means * 4 * d + small, 0, exact(0, 2 * many), many * d, 0, 0, 0, many)
    if kind == "M":
        sparse = needed(sparse, spec, index)
        weights = few * (spec.num_heads * (many // sparse.t) + d) if matrices else 0
        # Of windows whose frames are averaged, that average is kept for the pooling inside frames.
        averaged = dense.t != sparse.t and (dense.h, dense.w) != (sparse.h, sparse.w) and sparse.h * sparse.w > 1
        before = sparse.t * dense.h * dense.w * d if averaged else 0
        inner = many * 4 * d + few * (6 * d + 2 * f) + small + weights
        return _Counted(inner, few * 3 * d, exact(few, 2 * few + many), 0, few * d, before, few * d, few)
    if kind == "R":
        sparse = needed(sparse, spec, index)
        weights = many * (spec.num_heads * sparse.h * sparse.w + d) if matrices else 0
        changed = few * d if spec.residual_upsampling else 0
        inner = many * (10 * d + 2 * f) + few * 3 * d + changed + small + weights
        return _Counted(inner, few * d, exact(many, 2 * many + few), many * d, 0, 0, 0, many)
    raise NotImplementedError(f"layout {spec.layout!r}: no memory is known for layers of kind {kind!r}")


def _with_listening(
    spec: ModelSpec, index: int, dense: Grid, sparse: Grid | None, counted: _Counted, *, matrices: bool
) -> _Counted:
    """A layer's elements with those of its attention to a prompt: what listens and comes of it, q, what is heard, K and V."""
    kind, d, length = spec.parsed_layout.kinds[index], spec.hidden_size, spec.text_tokens
    before_layer = kind == "M" and spec.merge_text == "dense"  # there it is no part of what checkpointing computes again
    few = kind == "S" or (kind == "M" and not before_layer)
    tokens = (needed(sparse, spec, index) if few else dense).tokens
    heard = tokens * (2 * d + (spec.num_heads * length if matrices else 0))
    added = counted._replace(
        exact=counted.exact + spec.num_heads * tokens,
        before=counted.before + 2 * length * d,  # prepared for all layers before the first
    )
    if before_layer:
        return added._replace(before=added.before + heard + tokens * d)
    if few:
        return added._replace(inner=added.inner + heard, inner_sparse=added.inner_sparse + tokens * d)
    return added._replace(inner=added.inner + heard + tokens * d)


def activation_memory(
    spec: ModelSpec,
    clips: int,
    *,
    size: tuple[int, int, int] | None = None,
    grid: Sequence[int] | None = None,
    precision: str = "float32",
    checkpoint_layers: str = "",
    images: int = 0,
    attention: str = "sdpa",
) -> tuple[LayerMemory, ...]:
    """Bytes of a training micro-batch: of the embedding, each layer in order, and head and loss.

    Args:
        clips: B.
        size: (frames, height, width) of the latents; by default the spec's.
        grid: sparse (t, h, w); by default the spec's.
        precision: of the model.
        checkpoint_layers: kinds of layers, such as `RD`, whose activations are computed again in the backward pass.
        images: stills beside each clip.
        attention: backend.

    Raises:
        ValueError: the grid does not fit the size.
    """
    dense = spec.dense_grid(size)
    sparse = chosen_grid(spec, dense, grid)
    options = {"precision": precision, "attention": attention}
    parts = [(clips, dense, sparse, False)]
    if images:
        parts.append((clips * images, dense._replace(t=1), sparse and sparse._replace(t=1), True))
    totals = [LayerMemory(0, 0, 0)] * (spec.depth + 2)
    for count, many, few, stills in parts:
        layers = [_ends(spec, many, count, precision, head=False)]
        for index, kind in enumerate(spec.parsed_layout.kinds):
            if stills and kind in "PSD" and spec.layer_is_temporal(index):
                layers.append(LayerMemory(0, 0, 0))
                continue
            again = kind in checkpoint_layers
            layers.append(layer_memory(spec, index, many, few, clips=count, again=again, **options))
        layers.append(_ends(spec, many, count, precision, head=True))
        totals = [
            LayerMemory(*map(sum, zip(*_fields(one, other), strict=True))) for one, other in zip(totals, layers, strict=True)
        ]
    return tuple(totals)


def _fields(*layers: LayerMemory) -> list[tuple[int, int, int]]:
    return [(each.kept, each.again, each.work) for each in layers]


def _ends(spec: ModelSpec, dense: Grid, clips: int, precision: str, *, head: bool) -> LayerMemory:
    """The patch embedding with its positions, and that of prompts; or the head and the loss."""
    patch, tokens = spec.patch_size**2, clips * dense.tokens
    latents = tokens * patch * spec.in_channels
    if not head:  # of a prompt its features, and three of D channels in the MLP that embeds them
        prompt = clips * spec.text_tokens * (spec.text_channels + 3 * spec.hidden_size) if spec.text_channels else 0
        return LayerMemory((tokens * spec.hidden_size + latents + prompt) * BYTES[precision], 0, 0)
    kept = tokens * (2 * spec.hidden_size + patch * spec.out_channels) * BYTES[precision] + 2 * tokens * FLOAT32
    return LayerMemory(kept + LOSS_LATENTS * latents * FLOAT32, 0, tokens * spec.hidden_size * BYTES[precision])


def most_activations(layers: Sequence[LayerMemory]) -> int:
    """The most bytes that a micro-batch takes at one time, in forward and backward pass, its weights' gradients not counted."""
    kept, most = 0, 0
    for each in layers:
        kept += each.kept
        most = max(most, kept + each.again + each.work)
    return most


@dataclass(frozen=True)
class RankMemory:
    """Bytes that one rank holds of a model in training, by part.

    Attributes:
        weights: of the model, and their float32 masters where it computes in another precision or is sharded.
        gradients: of a step's weights, when all are there.
        buffers: what DeepSpeed lays gradients side by side in, to reduce them; at stage 3 also the weights that it gathers.
        optimizer: what it remembers of each weight.
        average: the EMA.
        activations: the most of a micro-batch at one time, work of its backward pass included.
        most: of all this at one time, on the device: less than the sum, for activations go as gradients come.
        on_host: of all this, bytes that are kept in the host's memory beside a device.
    """

    weights: int
    gradients: int
    buffers: int
    optimizer: int
    average: int
    activations: int
    most: int
    on_host: int


@dataclass(frozen=True)
class Sharding:
    """How DeepSpeed lays a model out.

    Attributes:
        stage: of ZeRO, 0 to 3.
        ranks: over which it is sharded.
        bucket: elements of a buffer that gradients are reduced in.
        overlap: two such buffers, in turns.
        live: at stage 3, weights that may be there whole at one time.
        offload_optimizer: optimizer, masters and average lie on the host.
        offload_weights: at stage 3, weights too.
    """

    stage: int = 0
    ranks: int = 1
    bucket: int = ALL_REDUCE
    overlap: bool = False
    live: int = LIVE
    offload_optimizer: bool = False
    offload_weights: bool = False


def rank_memory(
    spec: ModelSpec,
    layers: Sequence[LayerMemory],
    sharding: Sharding,
    *,
    precision: str = "float32",
    optimizer: str = "adamw",
    accumulation: int = 1,
    average_on_host: bool = False,
) -> RankMemory:
    """What one rank holds of a model in training.

    Args:
        layers: of `activation_memory`, for the micro-batch of a rank.
        sharding: ZeRO's.
        precision: that the model computes in.
        optimizer: `adamw`, `adam`, `sgd` or `muon`.
        accumulation: micro-batches of a step; from two on all gradients are there while activations are.
        average_on_host: the average is kept on the CPU.

    Raises:
        KeyError: no such precision or optimizer.
    """
    count, narrow, stage = parameter_count(spec), BYTES[precision], sharding.stage
    share = -(-count // sharding.ranks) if stage else count
    masters = FLOAT32 * share if stage or narrow != FLOAT32 else 0
    weights = narrow * (share if stage == 3 else count)
    gradients = narrow * (share if stage >= 2 else count)
    state, average = FLOAT32 * OPTIMIZER_VALUES[optimizer] * share, FLOAT32 * share
    # At stage 0 they are laid side by side once all are there; from 1 on buffers stay, two where reducing overlaps.
    buffers = narrow * (sharding.bucket * (1 + (sharding.overlap and stage < 3)) if stage else min(count, ALL_REDUCE))
    gathered = narrow * min(count, sharding.live) if stage == 3 else 0
    floats = (
        FLOAT32 * share if stage else min(count, GROUP) * FLOAT32 * (narrow != FLOAT32)
    )  # gradients as the optimizer takes them
    hosted = {"masters": masters, "state": state, "floats": floats} if sharding.offload_optimizer and stage else {}
    if average_on_host or hosted:
        hosted["average"] = average
    if sharding.offload_weights and stage == 3:
        hosted["weights"] = weights
    resident = weights + masters + state + average - sum(value for name, value in hosted.items() if name != "floats")
    begin = gradients if accumulation > 1 or stage == 3 else 0  # at stage 3 their place is kept
    apart = buffers + gathered if stage else 0
    by_layer = _parameters_by_part(spec)
    kept, events = 0, [resident + gradients + buffers, resident + gradients + (0 if "floats" in hosted else floats)]
    left = sum(by_layer)
    for layer, own in zip(layers, by_layer, strict=True):
        kept += layer.kept
        left -= own  # parameters whose gradients are not there yet are those of this layer and before it
        grown = round(gradients * (left / max(1, sum(by_layer))))
        events.append(resident + apart + max(begin, grown) + kept + layer.again + layer.work)
    return RankMemory(
        weights + masters,
        gradients,
        buffers + gathered,
        state,
        average,
        most_activations(layers),
        max(events),
        sum(hosted.values()),
    )


def _parameters_by_part(spec: ModelSpec) -> list[int]:
    """Parameters of embedders, of each layer, and of the head; in all `parameter_count`."""
    d, f = spec.hidden_size, spec.mlp_size
    matrices = {"P": 2, "M": 4, "S": 4, "R": 6, "D": 4}
    modulation = d if spec.shared_modulation else d * d + d  # a row of a table, or of a map: one for each shift, scale, gate
    layers = [
        (matrices[kind] + 4 * spec.layer_listens(index)) * (d * d + d) + 2 * d * f + f + d + 6 * modulation
        for index, kind in enumerate(spec.parsed_layout.kinds)
    ]
    head = 2 * modulation + spec.patch_size**2 * spec.out_channels * (d + 1)
    return [parameter_count(spec) - sum(layers) - head, *layers, head]
