"""What a model is, apart from its weights: shared by model, cost, presets and checkpoints."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sparsevid.sparsity.grid import Grid, check_sparse_grid
from sparsevid.sparsity.layout import Layout, is_temporal, parse_layout


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
        """Plain values, for JSON. `no_class` is left out where it is true, so that fingerprints of older models hold."""
        values = asdict(self)
        if self.no_class:
            del values["no_class"]
        return values

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
