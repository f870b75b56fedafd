"""What attention does in each layer of a trained model, over real clips and diffusion time.

How far it is from uniform, how much of it stays near by, and what the model loses if it is uniform: the mean of the values,
as a pooling layer takes it (the three observations that SparseDiT starts from). Attention weights are computed again from
queries and keys, a chunk of the map at a time, so that no map is ever kept.

Dimensions: N clips, J intervals of diffusion time, L layers with attention, B clips of a forward; a clip's tokens make G
sequences, in which M queries attend to K keys, with h heads of d channels.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.models.attention import CrossAttention, SelfAttention
from sparsevid.models.saving import Part, Place
from sparsevid.search import SearchError
from sparsevid.sparsity.cost import chosen_grid
from sparsevid.sparsity.grid import Grid
from sparsevid.study.file import MeasureSettings
from sparsevid.study.heldout import Question, questions
from sparsevid.system.distributed import sum_over_ranks
from sparsevid.system.logging import get_logger, progress
from sparsevid.training.objective import Objective, build_objective
from sparsevid.training.validation import FixedClip

# Of each clip, interval and layer: entropy of attention over its maximum, share of attention on keys near by and what uniform
# attention would have there, and what replacing the layer's attention by the mean changes: output and loss.
FIGURES = ("entropy", "share", "uniform", "change", "loss_change")
CHUNK = 1 << 22  # elements of an attention map in memory at a time
logger = get_logger(__name__)


@dataclass(frozen=True)
class Measured:
    """What was measured of a model, on all ranks.

    Attributes:
        layers: the L layers with attention, from the bottom.
        losses: (N, J) of the model as it is.
        figures: (N, J, L) by the names in `FIGURES`.
    """

    layers: tuple[Place, ...]
    losses: Tensor
    figures: Mapping[str, Tensor]


class Described(NamedTuple):
    """Attention of one layer, the mean over heads and queries of each clip.

    Attributes:
        entropy: (B,) over its maximum, log K: 1 is uniform, also where there is one key; 0 is all on one key.
        share: (B,) of attention on keys within the window.
        uniform: the share that uniform attention would have there.
    """

    entropy: Tensor
    share: Tensor
    uniform: float


def measure_attention(
    pipeline: VideoPipeline, clips: Sequence[FixedClip], measure: MeasureSettings, *, window: int = 1, chunk: int = CHUNK
) -> Measured:
    """What attention does in each layer. All ranks call it together.

    Args:
        pipeline: whose model is asked, at one time in each interval, as for held-out losses.
        clips: this rank's share.
        measure: clips, times, their seed, and the batch, of which figures are independent up to rounding.
        window: keys are near by within so many rows and columns of a frame, or so many frames in time; between sparse and
            dense tokens (M and R) so many cells of the sparse grid.
        chunk: elements of an attention map that are computed at a time, at least those of one query.

    Raises:
        SearchError: no layer has attention, clips of another size than the model's, fewer than two of them, or figures that
            are not finite.
    """
    spec, objective = pipeline.model.spec, build_objective(pipeline.config.objective)
    layers = tuple(block.place for block in pipeline.model.blocks if block.place.kind != "P")
    if not layers:
        raise SearchError(f"the layout {spec.layout!r} has no layer with attention")
    if measure.clips < 2:
        raise SearchError(f"{measure.clips} clips: an error of a mean needs at least 2")
    kept = torch.zeros(1 + len(FIGURES) * len(layers), measure.clips, measure.times, dtype=torch.float64)
    with progress(total=len(clips) * measure.times * (1 + len(layers)), desc="analyse", unit="forward") as bar:
        for asked in questions(pipeline, clips, measure, pipeline.schedule):
            losses, figures = _answer(pipeline, asked, objective, layers, window, chunk, bar)
            kept[:, asked.numbers, asked.intervals] = torch.cat([losses[None], figures.flatten(0, 1)]).double().cpu()
    kept = sum_over_ranks(kept)
    if not kept.isfinite().all():
        raise SearchError("the model gives zeros, or what is not finite: there is nothing to measure")
    by_layer = kept[1:].unflatten(0, (len(FIGURES), len(layers))).permute(0, 2, 3, 1)  # (5, N, J, L)
    return Measured(layers, kept[0], dict(zip(FIGURES, by_layer, strict=True)))


def summarise(measured: Measured) -> dict[str, Any]:
    """Means over clips with their standard errors, as JSON has them.

    Returns:
        `loss` of the model, and `layers`, each with `index`, `kind`, `axis` and its figures: `mean` over all times, `error` of
        it, and both by interval, from data to noise, as `means` and `errors`.
    """
    layers = [
        {"index": place.index, "kind": place.kind, "axis": place.axis}
        | {name: _spread(values[:, :, number]) for name, values in measured.figures.items()}
        for number, place in enumerate(measured.layers)
    ]
    return {"loss": _spread(measured.losses), "layers": layers}


def describe_attention(q: Tensor, k: Tensor, cells: tuple[Tensor, Tensor], window: int, chunk: int = CHUNK) -> Described:
    """How uniform and how local softmax(q·kᵀ/√d) is, without keeping it.

    Args:
        q: queries (B, G, M, h, d).
        k: keys (B, G, K, h, d).
        cells: where queries (M, axes) and keys (K, axes) are, in whole cells along each axis.
        window: a key is near by if it is at most so many cells away along each axis.
        chunk: elements of the map at a time.
    """
    batch, sequences, queries, heads, channels = q.shape
    keys = k.shape[2]
    q, k = (each.float().flatten(0, 1).transpose(1, 2) for each in (q * channels**-0.5, k))  # (B·G, h, M or K, d)
    entropy = torch.zeros(batch * sequences, dtype=torch.float64, device=q.device)
    share, near_keys = torch.zeros_like(entropy), 0
    rows = min(queries, max(1, chunk // (heads * keys)))
    some = max(1, chunk // (heads * keys * rows))
    for first in range(0, queries, rows):
        own = slice(first, first + rows)
        near = ((cells[0][own, None] - cells[1]).abs() <= window).all(-1)  # (rows, K)
        near_keys += int(near.sum())
        for start in range(0, batch * sequences, some):
            of = slice(start, start + some)
            logs = (q[of, :, own] @ k[of].transpose(2, 3)).log_softmax(-1)  # (some, h, rows, K)
            weights = logs.exp()
            entropy[of] -= (weights * logs).sum(-1).double().sum((1, 2))
            share[of] += (weights * near).sum(-1).double().sum((1, 2))
    by_clip = [each.view(batch, sequences).mean(1) / (heads * queries) for each in (entropy, share)]
    most = math.log(keys)
    return Described(by_clip[0] / most if keys > 1 else torch.ones_like(by_clip[0]), by_clip[1], near_keys / (queries * keys))


def mean_in_place_of_attention(attn: SelfAttention | CrossAttention, inputs: tuple[Tensor, ...]) -> Tensor:
    """What a layer's attention gives if all its weights are equal: proj(mean(V(x))), as a pooling layer computes it.

    Args:
        attn: of a layer D or S, or M or R.
        inputs: its tokens, or those with the queries and those with the keys.
    """
    if isinstance(attn, SelfAttention):
        mean = attn.qkv(inputs[0].mean(1 if attn.temporal else 2, keepdim=True))[-1]
    else:
        mean = attn.kv(inputs[1].mean(2, keepdim=True))[-1]
    return attn.proj(mean).expand_as(inputs[0]).contiguous()


def queries_and_keys(attn: SelfAttention | CrossAttention, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """A layer's (B, G, M, h, d) and (B, G, K, h, d); arguments as of `mean_in_place_of_attention`."""
    if isinstance(attn, SelfAttention):
        q, k, _ = attn.qkv(inputs[0])  # (B, T, N, D)
        q, k = (each.transpose(1, 2) for each in (q, k)) if attn.temporal else (q, k)
    else:
        q, k = attn.q(inputs[0]), attn.kv(inputs[1])[0]
    return q.unflatten(-1, (attn.heads, -1)), k.unflatten(-1, (attn.heads, -1))


def cells_of(place: Place, dense: Grid, sparse: Grid | None) -> tuple[Tensor, Tensor]:
    """Where a layer's queries and keys are within their sequence: (M, axes) and (K, axes), whole numbers.

    Tokens of a frame are at rows and columns, those of a position at frames. In a window of M or R a dense token is where the
    cell of the sparse grid is that stands for it, whichever its frame.
    """
    if place.kind in "MSR" and sparse is None:
        raise ValueError(f"layer {place.index} is {place.kind}, which needs a sparse grid")
    few_grid = dense if sparse is None else sparse
    own = few_grid if place.kind == "S" else dense
    if place.axis == "time":
        frames = torch.arange(own.t)[:, None]
        return frames, frames
    if place.axis == "space":
        tokens = torch.cartesian_prod(torch.arange(own.h), torch.arange(own.w))
        return tokens, tokens
    t, h, w = few_grid
    few = torch.cartesian_prod(torch.arange(h), torch.arange(w))
    rows, columns = torch.arange(dense.h) * h // dense.h, torch.arange(dense.w) * w // dense.w
    many = torch.cartesian_prod(rows, columns).repeat(dense.t // t, 1)
    return (few, many) if place.kind == "M" else (many, few)


def _attention_of(part: Part) -> tuple[SelfAttention | CrossAttention, tuple[Tensor, ...]]:
    """The attention that a part is, and what it takes."""
    attention = part.compute
    assert isinstance(attention, SelfAttention | CrossAttention)
    return attention, tuple(each for each in part.inputs() if each is not None)


class _Recording:
    """Computes everything, describes each attention, and keeps the outputs of layers."""

    points: Collection[str] = ("layer", "attention")
    differences = False

    def __init__(self, dense: Grid, sparse: Grid | None, window: int, chunk: int) -> None:
        self.grids, self.window, self.chunk = (dense, sparse), window, chunk
        self.outputs: dict[int, Tensor] = {}
        self.described: dict[int, Described] = {}

    def __call__(self, place: Place, part: Part) -> Tensor:
        output = part()
        if place.point == "layer":
            self.outputs[place.index] = output
        elif place.kind != "P":
            q, k = queries_and_keys(*_attention_of(part))
            of_queries, of_keys = (each.to(q.device) for each in cells_of(place, *self.grids))
            self.described[place.index] = describe_attention(q, k, (of_queries, of_keys), self.window, self.chunk)
        return output


class MeanAttention:
    """A saving that puts the mean in the place of one layer's attention: the model with that layer as a pooling one.

    Args:
        index: of the layer.
        outputs: of the layers below it, which are as they were, in a call without the saving.
    """

    points: Collection[str] = ("layer", "attention")
    differences = False

    def __init__(self, index: int, outputs: Mapping[int, Tensor]) -> None:
        self.index, self.outputs = index, outputs

    def __call__(self, place: Place, part: Part) -> Tensor:
        if place.index < self.index:
            return self.outputs[place.index]
        if place.index == self.index and place.point == "attention":
            return mean_in_place_of_attention(*_attention_of(part))
        return part()


@torch.no_grad()
def _answer(
    pipeline: VideoPipeline,
    asked: Question,
    objective: Objective,
    layers: Sequence[Place],
    window: int,
    chunk: int,
    bar: Any,
) -> tuple[Tensor, Tensor]:
    """Losses (B,) of a forward, and its figures (5, L, B)."""
    spec = pipeline.model.spec
    frames, height, width = asked.x0.shape[2:]
    dense = spec.dense_grid((frames, height, width))
    recording = _Recording(dense, chosen_grid(spec, dense, asked.condition.get("grid")), window, chunk)
    losses, output = _forward(pipeline, asked, objective, recording)
    bar.update(len(losses))
    figures = []
    for place in layers:
        entropy, share, uniform = recording.described[place.index]
        others, changed = _forward(pipeline, asked, objective, MeanAttention(place.index, recording.outputs))
        change = (changed - output).square().flatten(1).sum(1) / output.square().flatten(1).sum(1)
        figures.append(torch.stack([entropy, share, torch.full_like(share, uniform), change, others - losses]))
        bar.update(len(losses))
    return losses, torch.stack(figures, dim=1)


def _forward(
    pipeline: VideoPipeline, asked: Question, objective: Objective, saving: _Recording | MeanAttention
) -> tuple[Tensor, Tensor]:
    """Losses (B,) in double precision, and what was predicted, noise or velocity without its variance, (B, C, T, H, W)."""
    outputs = []

    def model(x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        outputs.append(pipeline.model(x, t, saving=saving, **condition))
        return outputs[0]

    losses = asked.losses(objective, model).double()
    return losses, outputs[0][:, : pipeline.model.spec.in_channels].double()


def _spread(values: Tensor) -> dict[str, Any]:
    """(N, J) → means over clips and their standard errors, over all times and by interval."""
    root = math.sqrt(len(values))
    by_clip = values.mean(1)
    return {
        "mean": by_clip.mean().item(),
        "error": by_clip.std().item() / root,
        "means": values.mean(0).tolist(),
        "errors": (values.std(0) / root).tolist(),
    }
