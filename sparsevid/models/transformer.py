"""The diffusion transformer: embed → layers by layout → head. One class for Latte, DiT and SparseDiT.

Dimensions: B clips, C latent channels, T frames, H×W tokens a frame, N = H·W, p patch size, D channels; (t, h, w) sparse grid.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsevid.models.blocks import Head, Layer, Text, build_layer
from sparsevid.models.card import model_card
from sparsevid.models.embeddings import (
    LabelEmbedding,
    PatchEmbedding,
    TimestepEmbedding,
    embed_sizes,
    spatial_positions,
    temporal_positions,
)
from sparsevid.models.initialisation import initialise
from sparsevid.models.inputs import check_condition, check_latents, check_prompts, check_sizes
from sparsevid.models.modulation import FusedModulation, Modulation
from sparsevid.models.saving import STACK, Part, Saving, Stack, Tokens, asked
from sparsevid.models.text import CaptionEmbedding, Heard, PreparedText, prepare
from sparsevid.sparsity.grid import Grid, check_sparse_grid
from sparsevid.sparsity.layout import KINDS
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.sparsity.tokens import pool

# What the hub's mixin hands on for downloads alone.
_OF_DOWNLOADS = ("revision", "cache_dir", "force_download", "proxies", "resume_download", "local_files_only", "token")
PIXELS = 8  # of a picture's side to a latent's, in the autoencoder of PixArt


class DiffusionTransformer(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="sparsevid",
    tags=["video-generation", "diffusion"],
    coders={ModelSpec: (ModelSpec.to_dict, ModelSpec.from_dict)},
):
    """Spatio-temporal diffusion transformer whose layers follow the spec's layout.

    Parameters carry the names of the public Latte and DiT checkpoints, for text of PixArt's, in one flat list of blocks in
    depth order. Positions are computed for the size at hand, so one set of weights runs at other resolutions and lengths.
    `save_pretrained` and `from_pretrained` write and read config.json and safetensors.

    Args:
        spec: sizes and layout.
        attention: attention backend: `sdpa`, which chooses among PyTorch's kernels, one of them (`flash`, `efficient` or
            `cudnn`), `xformers` or `math`.
        checkpoint_layers: kinds of layers, such as `RD`, whose activations are computed again in the backward pass.

    Raises:
        ValueError, BackendError: no such backend or kind of layer; the backend cannot run here.
    """

    def __init__(self, spec: ModelSpec, attention: str = "sdpa", checkpoint_layers: str = "") -> None:
        super().__init__()
        if set(checkpoint_layers) - set(KINDS):
            raise ValueError(f"checkpoint_layers = {checkpoint_layers!r}; the kinds of layers are {', '.join(KINDS)}")
        self.spec, self.checkpoint_layers = spec, checkpoint_layers
        self.kinds = spec.parsed_layout.kinds
        self.x_embedder = PatchEmbedding(spec.in_channels, spec.hidden_size, spec.patch_size)
        self.t_embedder = TimestepEmbedding(spec.hidden_size, spec.frequency_shift)
        if spec.micro_conditions:
            self.csize_embedder = TimestepEmbedding(spec.hidden_size // 3)
            self.ar_embedder = TimestepEmbedding(spec.hidden_size // 3)
        if spec.num_classes:
            self.y_embedder: Any = LabelEmbedding(spec.labels, spec.hidden_size)
        if spec.text_channels:
            self.y_embedder = CaptionEmbedding(spec.text_channels, spec.hidden_size, spec.null_caption * spec.text_tokens)
        if spec.shared_modulation:
            self.t_block = Modulation(spec.hidden_size, 6)
        self.blocks: Any = nn.ModuleList([build_layer(spec, index, attention) for index in range(spec.depth)])
        self.final_layer = Head(spec)
        # Of a model of text: which layers listen, and each one's place among them.
        self._listeners = {index: n for n, index in enumerate(filter(spec.layer_listens, range(spec.depth)))}
        self.fused_modulation: FusedModulation | None = None
        self.reset_parameters()

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = False, **options: Any
    ) -> "DiffusionTransformer":
        """Load weights as the hub's mixin does, which prints a line about folders where results of commands go."""
        if not Path(model_id).is_dir():
            return super()._from_pretrained(model_id=model_id, map_location=map_location, strict=strict, **options)
        model = cls(**{name: value for name, value in options.items() if name not in _OF_DOWNLOADS})
        load_model(model, Path(model_id) / SAFETENSORS_SINGLE_FILE, strict=strict, device=map_location)
        return model

    def reset_parameters(self) -> None:
        """Draw all weights (see `initialisation`)."""
        initialise(self, self.spec)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        *,
        text: Tensor | PreparedText | None = None,
        text_mask: Tensor | None = None,
        sizes: Tensor | None = None,
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
            text: features of prompts (B, L, C), or (B, 1 + images, L, C) with one for each still, or what `prepare_text` made
                of them; only for models of text.
            text_mask: (B, L), or (B, 1 + images, L): not 0 where a token is heard. None: all are, or prepared text says it.
            sizes: (B, 3), height and width of the picture in pixels, and height / width; only for models with
                micro-conditions. None: what the latents' sides give.
            grid: sparse grid (t, h, w), t dividing the clip's frames; by default the spec's.
            images: number of trailing frames that are stills: they pass no temporal layer and are pooled each by itself
                (joint image-video training of Latte, section 3.4).
            features: indices of layers whose output tokens of the clip, (B, frames, N or n, D), are returned too.
            saving: decides what is left out of this call. Without `images` and `features`.

        Returns:
            (B, C', T, H·p, W·p) with C' = C, or 2·C if the variance is learned; with `features` also the tokens by layer index.

        Raises:
            ValueError: a shape, grid or layer index that does not fit the spec, labels where there are no classes, text where
                there is none or the other way round, or a saving with `images` or `features`.
        """
        batch, frames = x.shape[0], x.shape[2] - images
        check_latents(self.spec, x, grid, frames)
        check_condition(self.spec, batch, images, labels, text, text_mask)
        check_sizes(self.spec, batch, sizes)
        if unknown := sorted(set(features) - set(range(self.spec.depth))):
            raise ValueError(f"features of layers {unknown}: the model has layers 0 … {self.spec.depth - 1}")
        dense = self.spec.dense_grid((frames, *x.shape[3:]))
        sparse = self._sparse_grid(grid, dense)
        if saving is not None and (images or features):
            raise ValueError("`saving` goes neither with `images` nor with `features`: it is for sampling clips")
        tokens = self.x_embedder(x)  # (B, T, N, D)
        if text is not None and not isinstance(text, PreparedText):
            text = self.prepare_text(text, text_mask)
        if self.spec.micro_conditions and sizes is None:
            height, width = (PIXELS * side for side in x.shape[3:])
            sizes = torch.stack([t.new_full(t.shape, side, dtype=torch.float32) for side in (height, width, height / width)], 1)
        c = self._condition(t, labels, sizes, images)  # (B, 1 + images, D)
        kept: dict[int, Tensor] = {}
        heard = () if text is None else text.of_clip()
        options: Any = {"features": features, "kept": kept, "saving": saving}
        clip = self._run_layers(tokens[:, :frames], c[:, 0], heard, dense, sparse, **options)  # (B, frames, N, p·p·C')
        if images:
            stills = rearrange(tokens[:, frames:], "b i n d -> (b i) 1 n d")
            one = dense._replace(t=1), sparse and sparse._replace(t=1)
            heard = () if text is None else text.of_stills(images)
            stills = self._run_layers(stills, c[:, 1:].flatten(0, 1), heard, *one, stills=True)
            clip = torch.cat([clip, rearrange(stills, "(b i) 1 n d -> b i n d", b=batch)], dim=1)
        p = self.spec.patch_size
        out = rearrange(clip, "b t (h w) (p q c) -> b c t (h p) (w q)", h=dense.h, p=p, q=p)
        return (out, kept) if features else out

    def prepare_text(self, text: Tensor, text_mask: Tensor | None = None) -> PreparedText:
        """What layers take of prompts, computed once for all calls of a sampling: `text` of a call may be this.

        Args:
            text: features (B, L, C), or (B, 1 + images, L, C).
            text_mask: as `forward` takes it.

        Raises:
            ValueError: a shape that does not fit the spec, or a model that takes no text.
        """
        check_prompts(self.spec, text, text_mask)
        return prepare(self.y_embedder, [self.blocks[index] for index in self._listeners], text, text_mask)

    def _run_layers(
        self,
        x: Tensor,
        c: Tensor,
        heard: Heard,
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
        options: Any = dict(dense=dense, sparse=sparse, features=features, kept=kept, saving=saving, stills=stills)
        if (whole := asked(saving, "stack")) is None:
            tokens = self._layers(range(self.spec.depth), Tokens(x), (*conditions, *heard), **options).x
        else:
            tokens = whole(STACK, self._stack(x, (*conditions, *heard), **options))
        return self.final_layer(tokens, last)

    def _stack(self, x: Tensor, told: Sequence[Tensor | None], **options: Any) -> Stack:
        """All layers as one part; `options` go to `_layers`."""

        def begin(x: Tensor, *told: Tensor | None) -> Tokens:
            return self._layers(range(1), Tokens(x), told, **options)

        def finish(tokens: Tokens, *told: Tensor | None) -> Tensor:
            return self._layers(range(1, self.spec.depth), tokens, told, **options).x

        def modulated(x: Tensor, *told: Tensor | None) -> Tensor:
            return self.blocks[0].normed(x, *self.blocks[0].modulation(told[0])[:2])

        return Stack(begin, finish, modulated, lambda: (x, *told))

    def _layers(
        self,
        indices: Sequence[int],
        tokens: Tokens,
        told: Sequence[Tensor | None],
        *,
        dense: Grid,
        sparse: Grid | None,
        features: Sequence[int],
        kept: dict[int, Tensor] | None,
        saving: Saving | None,
        stills: bool,
    ) -> Tokens:
        """The tokens after the layers of these indices, those before them given, and what layers are told.

        That is what each is modulated by, and of a model of text what it hears (`text.Heard`).
        """
        x, s, pooled = tokens
        # Where differences of sparse tokens are taken, which are small beside them, they are kept in float32.
        exact = self.spec.residual_upsampling or (saving is not None and saving.differences)
        dtype = torch.promote_types(x.dtype, torch.float32) if exact else x.dtype
        # Of a model of text, as in Latte-1, a single frame has no place in time either.
        with_time = self.spec.is_video and not stills and (dense.t > 1 or not self.spec.text_channels)
        for index in indices:
            kind, block, c = self.kinds[index], self.blocks[index], told[index]
            text = self._text_of(index, told)
            if with_time and index == self.spec.temporal_position_layer:
                x = x + temporal_positions(dense.t, dense.t, x.shape[-1], x.device, x.dtype)
            if stills and kind in "PSD" and self.spec.layer_is_temporal(index):
                continue
            if kind in "PD":
                x = self._layer(block, (x, c), saving, text=text)
            elif kind == "S":
                s = self._layer(block, (s, c), saving, text=text)
            elif kind == "M":
                if self.spec.merge_text == "dense":
                    x, text = block.listen(x, text), ()
                if s is None and sparse is not None:
                    s = pooled = self._pool(x, dense, sparse, with_time, dtype)
                s = self._layer(block, (s, x, c), saving, text=text)
            elif kind == "R":
                positions = self._positions(dense, dense, with_time, like=x) if self.spec.transition_positions else None
                start = pooled if self.spec.residual_upsampling else None
                x = self._layer(block, (s, x, c, start), saving, sparse, dense, positions, text=text)
                s = pooled = None
            else:
                raise NotImplementedError(f"layer {index}: no call is known for layers of kind {kind!r}")
            if kept is not None and index in features:
                kept[index] = x if s is None else s
        return Tokens(x, s, pooled)

    def _text_of(self, index: int, told: Sequence[Tensor | None]) -> Text:
        """What a layer hears of what all are told: nothing, if it does not listen."""
        if index not in self._listeners:
            return ()
        bias, *keys_values = told[self.spec.depth :]
        return bias, keys_values[self._listeners[index]]

    def _layer(
        self, block: Layer, tokens: tuple[Tensor | None, ...], saving: Saving | None, *others: object, text: Text = ()
    ) -> Tensor:
        """A layer's output, or what a saving gives for it.

        Args:
            tokens: the layer's first arguments, those of B clips.
            others: its further arguments.
            text: what it hears, of B clips too.
        """
        called = self._recomputed(block) if block.place.kind in self.checkpoint_layers else block
        if (inside := asked(saving, "attention", "mlp")) is not None:
            called = partial(called, saving=inside)
        if (outside := asked(saving, "layer")) is None:
            return called(*tokens, *others, text=text)

        def compute(*given: Tensor | None) -> Tensor:
            return called(*given[: len(tokens)], *others, text=given[len(tokens) :])

        return outside(block.place, Part(compute, lambda: (*tokens, *text)))

    def _recomputed(self, block: nn.Module) -> Callable[..., Tensor]:
        """The block, with activation checkpointing where there is a backward pass to save memory for."""
        return partial(checkpoint, block, use_reentrant=False) if torch.is_grad_enabled() else block

    def fuse_modulation(self) -> "DiffusionTransformer":
        """From now on, where no gradient is asked for, compute the modulation of all layers in one product.

        For inference: parameters become views of one tensor, so this is called before anything else holds on to them. Names,
        values, and what is saved, stay; so does the product where the model moves, changes type or loads weights. A copy of
        the model has none. Modulation that layers share is one product anyway.

        Returns:
            The model.
        """
        if self.spec.shared_modulation:
            return self
        self.fused_modulation = FusedModulation([each.adaLN_modulation for each in (*self.blocks, self.final_layer)])
        return self

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """As of any module."""
        with self._modulation_apart():
            return super().load_state_dict(*args, **options)

    def _apply(self, *args: Any, **options: Any) -> "DiffusionTransformer":
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
        """What each layer, and then the head, is modulated by: c itself, or, always if `together`, what adaLN makes of it.

        Where layers share it, it is the same for all, and each adds its table.
        """
        if self.spec.shared_modulation:
            return [self.t_block(c)] * self.spec.depth + [c]
        if self.fused_modulation is not None and not torch.is_grad_enabled():
            return self.fused_modulation(c)
        if together:
            return [each.adaLN_modulation(c) for each in (*self.blocks, self.final_layer)]
        return [c] * (self.spec.depth + 1)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write config.json, which holds the spec and nothing of this machine, safetensors, and a card where no README.md is.

        `model_card_kwargs` are those of `models/card.py:model_card`, such as sections on training and scores.
        """
        # safetensors refuses the views that parameters are of a fused product; those of a copy stand alone.
        model = self if self.fused_modulation is None else copy.deepcopy(self)
        return super(DiffusionTransformer, model).save_pretrained(
            save_directory, config={"spec": self.spec.to_dict()}, **options
        )

    def generate_model_card(self, **options: Any) -> ModelCard:
        """The card that `save_pretrained` writes; options as of `models/card.py:model_card`."""
        return model_card(self.spec, **options)

    def _pool(self, x: Tensor, dense: Grid, sparse: Grid, temporal: bool, dtype: torch.dtype) -> Tensor:
        """Dense tokens (B, T, N, D) → the sparse tokens that a module begins with, (B, t, n, D) of type `dtype`."""
        s = pool(x, dense, sparse).to(dtype)
        return s + self._positions(dense, sparse, temporal, like=s) if self.spec.transition_positions else s

    def _positions(self, dense: Grid, grid: Grid, temporal: bool, like: Tensor) -> Tensor:
        """(t or 1, n, D) sin-cos positions of the cells of `grid`, in coordinates of the dense grid."""
        channels, device, dtype = like.shape[-1], like.device, like.dtype
        span = self.spec.position_base, self.spec.position_scale
        table = spatial_positions(dense.h, dense.w, grid.h, grid.w, channels, device, dtype, *span)  # (n, D)
        return table + temporal_positions(dense.t, grid.t, channels, device, dtype) if temporal else table[None]

    def _condition(self, t: Tensor, labels: Tensor | None, sizes: Tensor | None, images: int) -> Tensor:
        """Embedded time plus class, or sizes: (B, 1 + images, D)."""
        c = self.t_embedder(t)
        if sizes is not None:
            c = c + embed_sizes(sizes, self.csize_embedder, self.ar_embedder)
        c = repeat(c, "b d -> b k d", k=1 + images)
        if labels is None:
            return c
        y = self.y_embedder(labels)
        return c + (y[:, None] if labels.ndim == 1 else y)

    def _sparse_grid(self, grid: Sequence[int] | None, dense: Grid) -> Grid | None:
        if not self.spec.is_sparse:
            return None
        sparse = Grid(*(grid or self.spec.sparse_grid or ()))
        check_sparse_grid(sparse, dense)
        return sparse
