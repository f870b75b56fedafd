"""The diffusion transformer: embed → layers by layout → head. One class for Latte, DiT and SparseDiT.

Dimensions: B clips, C latent channels, T frames, H×W tokens a frame, N = H·W, p patch size, D channels; (t, h, w) sparse grid.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from einops import rearrange, repeat
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsevid.models.blocks import Head, Layer, RecoverLayer, build_layer, layer_norm, modulate
from sparsevid.models.card import model_card
from sparsevid.models.embeddings import (
    LabelEmbedding,
    PatchEmbedding,
    TimestepEmbedding,
    spatial_positions,
    temporal_positions,
)
from sparsevid.models.modulation import FusedModulation
from sparsevid.models.saving import STACK, Part, Saving, Stack, Tokens, asked
from sparsevid.sparsity.grid import Grid, check_sparse_grid
from sparsevid.sparsity.layout import KINDS
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.sparsity.tokens import pool

# What the hub's mixin hands on for downloads alone.
_OF_DOWNLOADS = ("revision", "cache_dir", "force_download", "proxies", "resume_download", "local_files_only", "token")


class DiffusionTransformer(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="sparsevid",
    tags=["video-generation", "diffusion"],
    coders={ModelSpec: (ModelSpec.to_dict, ModelSpec.from_dict)},
):
    """Spatio-temporal diffusion transformer whose layers follow the spec's layout.

    Parameters carry the names of the public Latte and DiT checkpoints, in one flat list of blocks in depth order. Positions
    are computed for the size at hand, so one set of weights runs at other resolutions and lengths. `save_pretrained` and
    `from_pretrained` write and read config.json and safetensors.

    Args:
        spec: sizes and layout.
        attention: attention backend: `sdpa`, which chooses among PyTorch's kernels, one of them (`flash`, `efficient` or
            `cudnn`), `xformers` or `math`.
        checkpoint_layers: kinds of layers, such as `RD`, whose activations are computed again in the backward pass.

    Raises:
        ValueError: no such backend or kind of layer.
        BackendError: the backend cannot run here.
    """

    def __init__(self, spec: ModelSpec, attention: str = "sdpa", checkpoint_layers: str = "") -> None:
        super().__init__()
        if set(checkpoint_layers) - set(KINDS):
            raise ValueError(f"checkpoint_layers = {checkpoint_layers!r}; the kinds of layers are {', '.join(KINDS)}")
        self.spec, self.checkpoint_layers = spec, checkpoint_layers
        self.kinds = spec.parsed_layout.kinds
        self.x_embedder = PatchEmbedding(spec.in_channels, spec.hidden_size, spec.patch_size)
        self.t_embedder = TimestepEmbedding(spec.hidden_size)
        if spec.num_classes:
            self.y_embedder = LabelEmbedding(spec.labels, spec.hidden_size)
        self.blocks = nn.ModuleList([build_layer(spec, index, attention) for index in range(spec.depth)])
        self.final_layer = Head(spec)
        self.fused_modulation: FusedModulation | None = None
        self.reset_parameters()

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = False, **options
    ) -> "DiffusionTransformer":
        """Load weights as the hub's mixin does, which prints a line about folders where results of commands go."""
        if not Path(model_id).is_dir():
            return super()._from_pretrained(model_id=model_id, map_location=map_location, strict=strict, **options)
        model = cls(**{name: value for name, value in options.items() if name not in _OF_DOWNLOADS})
        load_model(model, Path(model_id) / SAFETENSORS_SINGLE_FILE, strict=strict, device=map_location)
        return model

    def reset_parameters(self) -> None:
        """DiT's initialisation (section 3.2, adaLN-Zero): Xavier for linear maps, zeros where the output starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        for linear in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(linear.weight, std=0.02)
        if self.spec.num_classes:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Layer | Head):
                nn.init.zeros_(module.adaLN_modulation[1].weight)
            if isinstance(module, RecoverLayer):
                start = nn.init.eye_ if self.spec.residual_upsampling else nn.init.zeros_
                start(module.merged_layer1.weight)
                nn.init.eye_(module.merged_layer2.weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        *,
        grid: Sequence[int] | None = None,
        images: int = 0,
        features: Sequence[int] = (),
        saving: Saving | None = None,
    ) -> Tensor | tuple[Tensor, dict[int, Tensor]]:
        """Predict noise (and variance) or velocity.

        Args:
            x: latents (B, C, T, H·p, W·p), T = frames + images.
            t: (B,) discrete timesteps in 0 … 999, or 999·u for rectified flow.
            labels: (B,) classes, or (B, 1 + images) with one label for each still; only for class-conditional models.
            grid: sparse grid (t, h, w), t dividing the clip's frames; by default the spec's.
            images: number of trailing frames that are stills: they pass no temporal layer and are pooled each by itself
                (joint image-video training of Latte, section 3.4).
            features: indices of layers whose output tokens of the clip, (B, frames, N or n, D), are returned too.
            saving: decides what is left out of this call. Without `images` and `features`.

        Returns:
            (B, C', T, H·p, W·p) with C' = C, or 2·C if the variance is learned; with `features` also the tokens by layer index.

        Raises:
            ValueError: a shape, grid or layer index that does not fit the spec, labels where there are no classes, or a saving
                with `images` or `features`.
        """
        batch, frames = x.shape[0], x.shape[2] - images
        self._check_input(x, labels, grid, frames)
        if unknown := sorted(set(features) - set(range(self.spec.depth))):
            raise ValueError(f"features of layers {unknown}: the model has layers 0 … {self.spec.depth - 1}")
        dense = self.spec.dense_grid((frames, *x.shape[3:]))
        sparse = self._sparse_grid(grid, dense)
        if saving is not None and (images or features):
            raise ValueError("`saving` goes neither with `images` nor with `features`: it is for sampling clips")
        tokens = self.x_embedder(x)  # (B, T, N, D)
        c = self._condition(t, labels, images)  # (B, 1 + images, D)
        kept: dict[int, Tensor] = {}
        clip = self._run_layers(tokens[:, :frames], c[:, 0], dense, sparse, features, kept, saving)  # (B, frames, N, p·p·C')
        if images:
            stills = rearrange(tokens[:, frames:], "b i n d -> (b i) 1 n d")
            one = dense._replace(t=1), sparse and sparse._replace(t=1)
            stills = self._run_layers(stills, c[:, 1:].flatten(0, 1), *one, stills=True)
            clip = torch.cat([clip, rearrange(stills, "(b i) 1 n d -> b i n d", b=batch)], dim=1)
        p = self.spec.patch_size
        out = rearrange(clip, "b t (h w) (p q c) -> b c t (h p) (w q)", h=dense.h, p=p, q=p)
        return (out, kept) if features else out

    def _run_layers(
        self,
        x: Tensor,
        c: Tensor,
        dense: Grid,
        sparse: Grid | None,
        features: Sequence[int] = (),
        kept: dict[int, Tensor] | None = None,
        saving: Saving | None = None,
        stills: bool = False,
    ) -> Tensor:
        """Embedded tokens (B, T, N, D) → (B, T, N, p·p·C'). Stills pass no temporal layer and have no temporal position."""
        x = x + self._positions(dense, dense, temporal=False, like=x)  # (B, T, N, D)
        *conditions, last = self._conditions(c, together=saving is not None)
        options = {"dense": dense, "sparse": sparse, "features": features, "kept": kept, "saving": saving, "stills": stills}
        if asked(saving, "stack") is None:
            tokens = self._layers(range(self.spec.depth), Tokens(x), conditions, **options).x
        else:
            tokens = saving(STACK, self._stack(x, conditions, **options))
        return self.final_layer(tokens, last)

    def _stack(self, x: Tensor, conditions: Sequence[Tensor], **options) -> Stack:
        """All layers as one part; `options` go to `_layers`."""

        def begin(x: Tensor, *conditions: Tensor) -> Tokens:
            return self._layers(range(1), Tokens(x), conditions, **options)

        def finish(tokens: Tokens, *conditions: Tensor) -> Tensor:
            return self._layers(range(1, self.spec.depth), tokens, conditions, **options).x

        def modulated(x: Tensor, *conditions: Tensor) -> Tensor:
            return modulate(layer_norm(x), *self.blocks[0].modulation(conditions[0])[:2])

        return Stack(begin, finish, modulated, lambda: (x, *conditions))

    def _layers(
        self,
        indices: Sequence[int],
        tokens: Tokens,
        conditions: Sequence[Tensor],
        *,
        dense: Grid,
        sparse: Grid | None,
        features: Sequence[int],
        kept: dict[int, Tensor] | None,
        saving: Saving | None,
        stills: bool,
    ) -> Tokens:
        """The tokens after the layers of these indices, those before them, and what they are modulated by given."""
        x, s, pooled = tokens
        # Where differences of sparse tokens are taken, which are small beside them, they are kept in float32.
        exact = self.spec.residual_upsampling or (saving is not None and saving.differences)
        dtype = torch.promote_types(x.dtype, torch.float32) if exact else x.dtype
        with_time = self.spec.is_video and not stills
        for index in indices:
            kind, block, c = self.kinds[index], self.blocks[index], conditions[index]
            if with_time and index == self.spec.temporal_position_layer:
                x = x + temporal_positions(dense.t, dense.t, x.shape[-1], x.device, x.dtype)
            if stills and kind in "PSD" and self.spec.layer_is_temporal(index):
                continue
            if kind in "PD":
                x = self._layer(block, (x, c), saving)
            elif kind == "S":
                s = self._layer(block, (s, c), saving)
            elif kind == "M":
                if s is None:
                    s = pooled = self._pool(x, dense, sparse, with_time, dtype)
                s = self._layer(block, (s, x, c), saving)
            elif kind == "R":
                positions = self._positions(dense, dense, with_time, like=x) if self.spec.transition_positions else None
                start = pooled if self.spec.residual_upsampling else None
                x = self._layer(block, (s, x, c, start), saving, sparse, dense, positions)
                s = pooled = None
            else:
                raise NotImplementedError(f"layer {index}: no call is known for layers of kind {kind!r}")
            if index in features:
                kept[index] = x if s is None else s
        return Tokens(x, s, pooled)

    def _layer(self, block: Layer, tokens: tuple[Tensor | None, ...], saving: Saving | None, *others: object) -> Tensor:
        """A layer's output, or what a saving gives for it.

        Args:
            tokens: the layer's first arguments, those of B clips.
            others: its further arguments.
        """
        called = self._recomputed(block) if block.place.kind in self.checkpoint_layers else block
        if (inside := asked(saving, "attention", "mlp")) is not None:
            called = partial(called, saving=inside)
        if asked(saving, "layer") is None:
            return called(*tokens, *others)
        return saving(block.place, Part(lambda *tokens: called(*tokens, *others), lambda: tokens))

    def _recomputed(self, block: nn.Module) -> Callable[..., Tensor]:
        """The block, with activation checkpointing where there is a backward pass to save memory for."""
        return partial(checkpoint, block, use_reentrant=False) if torch.is_grad_enabled() else block

    def fuse_modulation(self) -> "DiffusionTransformer":
        """From now on, where no gradient is asked for, compute the modulation of all layers in one product.

        For inference: parameters become views of one tensor, so this is called before anything else holds on to them. Names,
        values, and what is saved, stay; so does the product where the model moves, changes type or loads weights. A copy of
        the model has none.

        Returns:
            The model.
        """
        self.fused_modulation = FusedModulation([each.adaLN_modulation for each in (*self.blocks, self.final_layer)])
        return self

    def load_state_dict(self, *args, **options):
        """As of any module."""
        with self._modulation_apart():
            return super().load_state_dict(*args, **options)

    def _apply(self, *args, **options) -> "DiffusionTransformer":
        with self._modulation_apart():
            return super()._apply(*args, **options)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_modules": {**self._modules, "fused_modulation": None}}

    @contextmanager
    def _modulation_apart(self) -> Iterator[None]:
        """For what may put other parameters in place of those that are views; fused again afterwards, if it was."""
        fused, self.fused_modulation = self.fused_modulation is not None, None
        yield
        if fused:
            self.fuse_modulation()

    def _conditions(self, c: Tensor, together: bool) -> Sequence[Tensor]:
        """What each layer, and then the head, is modulated by: c itself, or, always if `together`, what adaLN makes of it."""
        if self.fused_modulation is not None and not torch.is_grad_enabled():
            return self.fused_modulation(c)
        if together:
            return [each.adaLN_modulation(c) for each in (*self.blocks, self.final_layer)]
        return [c] * (self.spec.depth + 1)

    def save_pretrained(self, save_directory: str | Path, **options) -> str | None:
        """Write config.json, which holds the spec and nothing of this machine, safetensors, and a card where no README.md is.

        `model_card_kwargs` are those of `models/card.py:model_card`, such as sections on training and scores.
        """
        # safetensors refuses the views that parameters are of a fused product; those of a copy stand alone.
        model = self if self.fused_modulation is None else copy.deepcopy(self)
        return super(DiffusionTransformer, model).save_pretrained(
            save_directory, config={"spec": self.spec.to_dict()}, **options
        )

    def generate_model_card(self, **options) -> ModelCard:
        """The card that `save_pretrained` writes; options as of `models/card.py:model_card`."""
        return model_card(self.spec, **options)

    def _pool(self, x: Tensor, dense: Grid, sparse: Grid, temporal: bool, dtype: torch.dtype) -> Tensor:
        """Dense tokens (B, T, N, D) → the sparse tokens that a module begins with, (B, t, n, D) of type `dtype`."""
        s = pool(x, dense, sparse).to(dtype)
        return s + self._positions(dense, sparse, temporal, like=s) if self.spec.transition_positions else s

    def _positions(self, dense: Grid, grid: Grid, temporal: bool, like: Tensor) -> Tensor:
        """(t or 1, n, D) sin-cos positions of the cells of `grid`, in coordinates of the dense grid."""
        channels, device, dtype = like.shape[-1], like.device, like.dtype
        table = spatial_positions(dense.h, dense.w, grid.h, grid.w, channels, device, dtype)  # (n, D)
        return table + temporal_positions(dense.t, grid.t, channels, device, dtype) if temporal else table[None]

    def _condition(self, t: Tensor, labels: Tensor | None, images: int) -> Tensor:
        """Embedded time plus class: (B, 1 + images, D)."""
        c = repeat(self.t_embedder(t), "b d -> b k d", k=1 + images)
        if labels is None:
            return c
        y = self.y_embedder(labels)
        return c + (y[:, None] if labels.ndim == 1 else y)

    def _sparse_grid(self, grid: Sequence[int] | None, dense: Grid) -> Grid | None:
        if not self.spec.is_sparse:
            return None
        sparse = Grid(*(grid or self.spec.sparse_grid))
        check_sparse_grid(sparse, dense)
        return sparse

    def _check_input(self, x: Tensor, labels: Tensor | None, grid: Sequence[int] | None, frames: int) -> None:
        spec = self.spec
        if x.ndim != 5 or x.shape[1] != spec.in_channels:
            raise ValueError(f"latents are (B, {spec.in_channels}, T, H, W), got {tuple(x.shape)}")
        if frames < 1:
            raise ValueError(f"no frame is left for the clip: {x.shape[2]} frames, {x.shape[2] - frames} of them stills")
        if not spec.is_video and frames > 1:
            raise ValueError(f"an image model takes T = 1, got {frames} frames")
        if grid is not None and not spec.is_sparse:
            raise ValueError(f"the layout {spec.layout!r} has no sparse layers, but grid={tuple(grid)} was given")
        if bool(spec.num_classes) != (labels is not None):
            kind = (
                f"has {spec.num_classes} classes and needs labels"
                if spec.num_classes
                else "is unconditional and takes no labels"
            )
            raise ValueError(f"the model {kind}")
