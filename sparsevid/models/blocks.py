"""The five layers P, M, S, R, D: adaLN-Zero blocks over token grids (SparseDiT, section 3; DiT, section 3.2).

Dimensions: B clips, T dense and t sparse frames, N dense and n sparse tokens a frame, D channels. Dense tokens are x
(B, T, N, D), sparse ones s (B, t, n, D). The condition c is (B, D): modulation is computed once for a clip and broadcast over
its frames and positions; it may come computed, for all layers together (`modulation`). Sparse tokens may be in float32 beside
weights of another type: then their sums are, and no product. A saving that acts inside of layers is asked about attention and
MLP. Layers that listen to a prompt get it as `text`, a bias and keys with values (`attention.TextAttention`), and attend to it
between the two.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsevid.models.attention import CrossAttention, MeanPooling, SelfAttention, TextAttention
from sparsevid.models.modulation import Modulation, add_table
from sparsevid.models.saving import Part, Place, Saving
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.spec import NORM_EPS, ModelSpec
from sparsevid.sparsity.tokens import upsample, windows

Text = tuple[Tensor | None, ...]  # bias (B, 1, 1, L) or None, and keys with values (B, L, 2·D); empty: nothing is heard


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x·(1 + scale) + shift, in the type of the shift."""
    return torch.addcmul(shift, x, 1 + scale).to(shift.dtype)


def layer_norm(x: Tensor, eps: float = NORM_EPS) -> Tensor:
    """Layer norm over the channels, without affine parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


class MLP(nn.Module):
    """Two linear layers around a GELU in its tanh form: channels in, between, and out."""

    def __init__(self, channels: int, mlp_size: int, out_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, mlp_size)
        self.fc2 = nn.Linear(mlp_size, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Layer(nn.Module):
    """What all five kinds share: modulation, attention to a prompt, and the MLP. Subclasses give `attn` and `forward`."""

    place: Place  # of the layer, in the model it stands in

    def __init__(self, spec: ModelSpec, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn
        self.cross_attn: TextAttention | None = None  # `build_layer` gives it to layers that listen
        self.mlp = MLP(spec.hidden_size, spec.mlp_size, spec.hidden_size)
        self.mlp_eps = spec.norm_eps
        self.eps = spec.norm_eps if spec.shared_modulation else NORM_EPS
        self.adaLN_modulation: Modulation | None = None
        if spec.shared_modulation:
            self.scale_shift_table = nn.Parameter(torch.empty(6, spec.hidden_size))
        else:
            self.adaLN_modulation = Modulation(spec.hidden_size, 6)

    def modulation(self, c: Tensor) -> tuple[Tensor, ...]:
        """c (B, D), or (B, 6·D) → shift, scale, gate of attention, then of the MLP: six tensors (B, 1, 1, D)."""
        return add_table(c, self.scale_shift_table) if self.adaLN_modulation is None else self.adaLN_modulation.parts(c)

    def normed(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """What the attention takes of tokens: their norm, modulated."""
        return modulate(layer_norm(x, self.eps), shift, scale)

    def listen(self, x: Tensor, text: Text) -> Tensor:
        """x (B, T, N, D) plus what its tokens, as they are, without norm, modulation or gate, hear of a prompt (PixArt-α)."""
        return x + self.cross_attn(x, *text) if text and self.cross_attn is not None else x

    def feed_forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, *, saving: Saving | None = None) -> Tensor:
        """The layer's second half: x + gate·MLP(modulated norm of x)."""
        made = self.offer("mlp", self.mlp, lambda: (modulate(layer_norm(x, self.mlp_eps), shift, scale),), saving)
        return torch.addcmul(x, gate, made)

    def offer(self, point: str, compute: nn.Module, inputs: Callable[[], tuple[Tensor, ...]], saving: Saving | None) -> Tensor:
        """A part of the layer, computed, or what a saving that acts inside of layers gives for it."""
        if saving is None or point not in saving.points:
            return compute(*inputs())
        return saving(self.place._replace(point=point), Part(compute, inputs))


class AttentionLayer(Layer):
    """D and S: an ordinary spatial or temporal layer, on dense or on sparse tokens."""

    attn: SelfAttention

    def __init__(self, spec: ModelSpec, temporal: bool, backend: str) -> None:
        super().__init__(spec, SelfAttention(spec.hidden_size, spec.num_heads, temporal, backend))

    def forward(self, x: Tensor, c: Tensor, saving: Saving | None = None, text: Text = ()) -> Tensor:
        shift, scale, gate, *feed_forward = self.modulation(c)
        attended = self.offer("attention", self.attn, lambda: (self.normed(x, shift, scale),), saving)
        return self.feed_forward(self.listen(torch.addcmul(x, gate, attended), text), *feed_forward, saving=saving)


class PoolLayer(Layer):
    """P: every token receives the mean of the tokens that a dense layer would attend to, through V and proj."""

    def __init__(self, spec: ModelSpec, temporal: bool) -> None:
        super().__init__(spec, MeanPooling(spec.hidden_size))
        self.axis = 1 if temporal else 2

    def forward(self, x: Tensor, c: Tensor, saving: Saving | None = None, text: Text = ()) -> Tensor:
        shift, scale, gate, *feed_forward = self.modulation(c)

        def mean() -> tuple[Tensor]:
            # Modulation is affine and the same for all tokens of a clip, so it acts on the mean as well.
            return (modulate(layer_norm(x, self.eps).mean(self.axis, keepdim=True), shift, scale),)

        attended = self.offer("attention", self.attn, mean, saving)
        return self.feed_forward(self.listen(torch.addcmul(x, gate, attended), text), *feed_forward, saving=saving)


class MergeLayer(Layer):
    """M: sparse tokens attend to all dense tokens of their window in time; residual and MLP on the sparse tokens."""

    def __init__(self, spec: ModelSpec, backend: str) -> None:
        super().__init__(spec, CrossAttention(spec.hidden_size, spec.num_heads, backend))

    def forward(self, s: Tensor, x: Tensor, c: Tensor, saving: Saving | None = None, text: Text = ()) -> Tensor:
        """s (B, t, n, D) and x (B, T, N, D) → (B, t, n, D). With `text` the sparse tokens listen, after they gathered."""
        shift, scale, gate, *feed_forward = self.modulation(c)

        def query_and_source() -> tuple[Tensor, Tensor]:
            source = windows(self.normed(x, shift, scale), s.shape[1])  # (B, t, T/t·N, D)
            return self.normed(s, shift, scale), source

        attended = self.offer("attention", self.attn, query_and_source, saving)
        return self.feed_forward(self.listen(torch.addcmul(s, gate, attended), text), *feed_forward, saving=saving)


class RecoverLayer(Layer):
    """R: merge upsampled sparse and dense tokens, then let each dense token attend to the sparse ones of its window.

    x ← Up(s)·W1 + x·W2. W1 commutes with nearest upsampling, so it is applied to the sparse tokens. At initialisation
    W1 = 0 and W2 = 1: the dense path starts as the identity. With residual upsampling s stands for what the module's sparse
    layers changed, and W1 = 1 at initialisation.
    """

    def __init__(self, spec: ModelSpec, backend: str) -> None:
        super().__init__(spec, CrossAttention(spec.hidden_size, spec.num_heads, backend))
        self.merged_layer1 = nn.Linear(spec.hidden_size, spec.hidden_size)
        self.merged_layer2 = nn.Linear(spec.hidden_size, spec.hidden_size)

    def merge(self, s: Tensor, x: Tensor, sparse: Grid, dense: Grid) -> Tensor:
        """Up(s)·W1 + x·W2: (B, t, n, D) and (B, T, N, D) → (B, T, N, D)."""
        up = upsample(self.merged_layer1(s), sparse, dense).unsqueeze(2)  # (B, t, 1, N, D)
        kept = self.merged_layer2(x).unflatten(1, (sparse.t, -1))  # (B, t, T/t, N, D)
        return (kept + up).flatten(1, 2)

    def forward(
        self,
        s: Tensor,
        x: Tensor,
        c: Tensor,
        pooled: Tensor | None,
        sparse: Grid,
        dense: Grid,
        positions: Tensor | None = None,
        saving: Saving | None = None,
        text: Text = (),
    ) -> Tensor:
        """s (B, t, n, D) and x (B, T, N, D) → (B, T, N, D).

        `pooled` (B, t, n, D) is the module's sparse input, for residual upsampling: in float32, as s, since the difference is
        small beside them. `positions` (T or 1, N, D) are added to the merged tokens.
        """
        shift, scale, gate, *feed_forward = self.modulation(c)
        changed = s if pooled is None else s - pooled
        x = self.merge(changed.to(x.dtype), x, sparse, dense)
        if positions is not None:
            x = x + positions

        def query_and_source() -> tuple[Tensor, Tensor]:
            return windows(self.normed(x, shift, scale), s.shape[1]), self.normed(s, shift, scale)

        attended = self.offer("attention", self.attn, query_and_source, saving).view_as(x)
        return self.feed_forward(self.listen(torch.addcmul(x, gate, attended), text), *feed_forward, saving=saving)


class Head(nn.Module):
    """The final layer: modulated norm, then a linear map to the p·p·C' values of each token's patch."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.hidden_size, spec.patch_size**2 * spec.out_channels)
        self.adaLN_modulation: Modulation | None = None
        if spec.shared_modulation:
            self.scale_shift_table = nn.Parameter(torch.empty(2, spec.hidden_size))
        else:
            self.adaLN_modulation = Modulation(spec.hidden_size, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, T, N, D), c (B, D) or (B, 2·D) → (B, T, N, p·p·C')."""
        own = self.adaLN_modulation
        shift, scale = add_table(c, self.scale_shift_table) if own is None else own.parts(c)
        return self.linear(modulate(layer_norm(x), shift, scale))


def build_layer(spec: ModelSpec, index: int, backend: str) -> Layer:
    """The layer that stands at `index` of the spec's layout."""
    kind, temporal = spec.parsed_layout.kinds[index], spec.layer_is_temporal(index)
    layer: Layer
    if kind == "P":
        layer = PoolLayer(spec, temporal)
    elif kind == "M":
        layer = MergeLayer(spec, backend)
    elif kind == "R":
        layer = RecoverLayer(spec, backend)
    elif kind in "SD":
        layer = AttentionLayer(spec, temporal, backend)
    else:
        raise NotImplementedError(f"layout {spec.layout!r}: no class is known for layers of kind {kind!r}")
    if spec.layer_listens(index):
        layer.cross_attn = TextAttention(spec.hidden_size, spec.num_heads, backend)
    layer.place = Place("layer", index, kind, "window" if kind in "MR" else "time" if temporal else "space")
    return layer
