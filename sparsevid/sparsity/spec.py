"""What a model is, apart from its weights: shared by model, cost, presets and checkpoints."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sparsevid.sparsity.grid import Grid, check_sparse_grid
from sparsevid.sparsity.layout import Layout, is_temporal, parse_layout

NORM_EPS = 1e-6
MERGE_TEXT = ("dense", "sparse")
# Fields that specs of before do not have, and that mean at their defaults what those meant.
ADDED = (
    "no_class", "text_channels", "text_tokens", "merge_text", "null_caption", "shared_modulation", "micro_conditions",
    "position_base", "position_scale", "norm_eps", "frequency_shift",
)  # fmt: skip


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and layout of a diffusion transformer.

    Attributes:
        layout: layers in depth order, such as `28D` (dense) or `2P 4(1M3S1R1D) 2D`.
        hidden_size: D, channels of a token.
        num_heads: attention heads; divides D.
        input_size: (frames, height, width) of the latents the model is trained on. One frame makes an image model, whose
            layers are all spatial.
        in_channels: channels of the latents.
        patch_size: p; a token is p×p latent pixels of one frame.
        mlp_ratio: hidden channels of the MLP, as a multiple of D.
        num_classes: 0 for an unconditional model.
        no_class: whether a class-conditional model has one more label, `num_classes`, that means "no class", for guidance.
        learn_sigma: whether the head also gives the variance, in a second set of `in_channels` channels.
        sparse_grid: default (t, h, w) of the sparse tokens; needed if the layout has an M.
        transition_positions: add sin-cos positions again where tokens become sparse and dense (the paper does).
        residual_upsampling: R adds what the sparse layers changed, Up(out − in)·W1, with W1 = 1 at the start, in place of the
            paper's Up(out)·W1 with W1 = 0: a converted dense model keeps the low-frequency part of what its layers did.
        allow_no_dense: accept a layout with no dense layer after an R.
        text_channels: C of a prompt's features, 4096 for T5 v1.1 XXL; 0 for a model without text. With text, layers that are
            not temporal (of a video model the even ones) attend to the prompt between self-attention and MLP, as PixArt's.
        text_tokens: tokens of a prompt, as the model was trained; a call may have more or fewer.
        merge_text: whose tokens listen to the prompt in M, before they gather: `dense`, the tokens that it gathers from, or
            after it `sparse`, those that gather.
        null_caption: whether the model holds features of "no prompt" of its own, (text_tokens, C), as PixArt's files do.
        shared_modulation: one map of the condition for all layers, and a table of each (PixArt's adaLN-single), in place of a
            map of each layer.
        micro_conditions: whether height, width and their ratio are conditions too, as of PixArt's model for 1024 px.
        position_base: tokens of a side that positions inside a frame span, whatever the side: the index i of G stands at
            i·base/G/scale (PixArt). None: at i, as DiT and Latte have it.
        position_scale: divides positions inside a frame.
        norm_eps: ε of the norms before MLPs and, with shared modulation, of those before attention; all others have 1e-6.
            diffusers' DiT has 1e-5.
        frequency_shift: the frequencies of time fall by 10000^(−k/(128 − shift)), k = 0 … 127; diffusers' DiT has 1.

    Raises:
        ValueError: sizes that do not fit together, with the accepted values.
    """

    layout: str
    hidden_size: int
    num_heads: int
    input_size: tuple[int, int, int] = (16, 32, 32)
    in_channels: int = 4
    patch_size: int = 2
    mlp_ratio: float = 4.0
    num_classes: int = 0
    learn_sigma: bool = True
    sparse_grid: tuple[int, int, int] | None = None
    transition_positions: bool = True
    residual_upsampling: bool = False
    allow_no_dense: bool = False
    no_class: bool = True
    text_channels: int = 0
    text_tokens: int = 120
    merge_text: str = "dense"
    null_caption: bool = False
    shared_modulation: bool = False
    micro_conditions: bool = False
    position_base: int | None = None
    position_scale: float = 1.0
    norm_eps: float = NORM_EPS
    frequency_shift: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_size", tuple(self.input_size))
        if self.sparse_grid is not None:
            object.__setattr__(self, "sparse_grid", tuple(self.sparse_grid))
        layout = self.parsed_layout
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 4, which sin-cos positions need")
        if len(self.input_size) != 3 or min(self.input_size) < 1:
            raise ValueError(f"input_size is (frames, height, width), all at least 1; got {self.input_size}")
        self.dense_grid(self.input_size)
        if layout.is_sparse and self.sparse_grid is None:
            raise ValueError(f"layout {self.layout!r} has sparse layers, so sparse_grid=(t, h, w) is needed")
        if not layout.is_sparse and self.sparse_grid is not None:
            raise ValueError(f"layout {self.layout!r} has no sparse layers, but sparse_grid={self.sparse_grid} is given")
        if self.sparse_grid is not None:
            check_sparse_grid(Grid(*self.sparse_grid), self.dense_grid(self.input_size))
        self._check_condition()

    def _check_condition(self) -> None:
        """Raise ValueError where what the model is conditioned on, and its positions, cannot be."""
        if self.text_channels and self.num_classes:
            raise ValueError(
                f"a model is conditioned on classes or on text, not on both: num_classes = {self.num_classes}, "
                f"text_channels = {self.text_channels}"
            )
        if self.text_channels < 0 or self.text_tokens < 1:
            raise ValueError(
                f"text_channels is at least 0 and text_tokens at least 1; got {self.text_channels}, {self.text_tokens}"
            )
        if self.merge_text not in MERGE_TEXT:
            raise ValueError(f"merge_text is one of {', '.join(MERGE_TEXT)}; got {self.merge_text!r}")
        if self.null_caption and not self.text_channels:
            raise ValueError("null_caption belongs to a model of text, and text_channels is 0")
        if self.micro_conditions and self.hidden_size % 3:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 3, which micro_conditions need")
        base, scale = self.position_base, self.position_scale
        if (base is not None and base < 1) or not scale > 0 or not math.isfinite(scale):
            raise ValueError(f"position_base is at least 1, or None, and position_scale above 0; got {base}, {scale}")
        if not self.norm_eps > 0 or self.frequency_shift not in (0, 1):
            raise ValueError(f"norm_eps is above 0 and frequency_shift 0 or 1; got {self.norm_eps}, {self.frequency_shift}")

    @property
    def parsed_layout(self) -> Layout:
        """The layout, parsed and checked."""
        return parse_layout(self.layout, allow_no_dense=self.allow_no_dense)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.parsed_layout)

    @property
    def is_video(self) -> bool:
        """Whether odd layers are temporal."""
        return self.input_size[0] > 1

    @property
    def is_sparse(self) -> bool:
        """Whether the layout has sparse layers."""
        return self.parsed_layout.is_sparse

    @property
    def out_channels(self) -> int:
        """Channels of the output: those of the latents, twice if the variance is learned."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def labels(self) -> int:
        """Rows of the table of labels; 0 for an unconditional model."""
        return self.num_classes + self.no_class if self.num_classes else 0

    @property
    def mlp_size(self) -> int:
        """Hidden channels of the MLP."""
        return int(self.hidden_size * self.mlp_ratio)

    def layer_is_temporal(self, index: int) -> bool:
        """Whether layer `index`, if it is P, S or D, works over frames."""
        return self.is_video and is_temporal(index)

    def layer_listens(self, index: int) -> bool:
        """Whether layer `index` attends to the prompt: of a model of text those that are not at a temporal layer's place."""
        return bool(self.text_channels) and not self.layer_is_temporal(index)

    @property
    def conditioned_on(self) -> str:
        """`class`, `text`, or empty for an unconditional model."""
        return "class" if self.num_classes else "text" if self.text_channels else ""

    @property
    def temporal_position_layer(self) -> int:
        """The layer before which dense tokens receive temporal positions: the first that looks beyond one frame."""
        return 0 if self.parsed_layout.kinds[0] == "M" else 1

    def dense_grid(self, size: tuple[int, int, int] | None = None) -> Grid:
        """The grid of dense tokens for latents of (frames, height, width) `size`, by default the trained size.

        Raises:
            ValueError: the patch does not divide height or width.
        """
        t, height, width = size or self.input_size
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"latents of {height}×{width} cannot be cut into patches of {self.patch_size}×{self.patch_size}")
        return Grid(t, height // self.patch_size, width // self.patch_size)

    def dense(self) -> "ModelSpec":
        """The dense model of the same size: layout `<depth>D`."""
        return replace(self, layout=f"{self.depth}D", sparse_grid=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON. Fields of `ADDED` are left out at their defaults: fingerprints of older models hold."""
        usual = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if name not in ADDED or value != usual[name]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelSpec":
        """The inverse of `to_dict`.

        Raises:
            ValueError: a key that no spec has.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown keys in a model's config: {unknown}; known are {sorted(known)}")
        return cls(**values)
