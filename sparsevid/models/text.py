"""Prompts in the transformer: what captions become before layers attend to them (`attention.TextAttention`).

Dimensions: B clips, k stills, L tokens of a prompt, C channels of its features, D channels of the model.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsevid.models.attention import text_bias
from sparsevid.models.blocks import MLP, Layer

Heard = tuple[
    Tensor | None, ...
]  # what clips, or stills, are told: a bias (B, 1, 1, L) or None, then of each layer (B, L, 2·D)


class PreparedText(NamedTuple):
    """Prompts as layers take them, the same at every time: `DiffusionTransformer.prepare_text` makes it once.

    Attributes:
        bias: (B, 1 or 1 + k, 1, 1, L), added to the scores: 0 where a token is heard, a large negative number where it is not;
            None: all are heard.
        keys_values: of each layer that listens, in depth order, (B, 1 or 1 + k, L, 2·D): keys, then values.
    """

    bias: Tensor | None
    keys_values: tuple[Tensor, ...]

    def of_clip(self) -> Heard:
        """What the clips hear."""
        return tuple(each if each is None else each[:, 0] for each in (self.bias, *self.keys_values))

    def of_stills(self, images: int) -> Heard:
        """What B·k stills hear: prompts of their own, or that of their clip."""
        return tuple(each if each is None else self._stills(each, images) for each in (self.bias, *self.keys_values))

    def followed_by(self, other: "PreparedText") -> "PreparedText":
        """These prompts and behind them others, or one for each of these.

        Raises:
            ValueError: they have not as many tokens.
        """
        count, mine, theirs = len(self.keys_values[0]), self.keys_values[0].shape[2], other.keys_values[0].shape[2]
        if mine != theirs:
            raise ValueError(f"prompts prepared with {mine} and with {theirs} tokens: pad them to one length, with a mask")

        def joined(first: Tensor, second: Tensor) -> Tensor:
            return torch.cat([first, second if len(second) > 1 else second.expand_as(first)])

        bias = None
        if self.bias is not None or other.bias is not None:
            heard = self.keys_values[0].new_zeros(count, self.keys_values[0].shape[1], 1, 1, mine)
            bias = joined(*(heard if each is None else each for each in (self.bias, other.bias)))
        keys_values = zip(self.keys_values, other.keys_values, strict=True)
        return PreparedText(bias, tuple(joined(*each) for each in keys_values))

    @staticmethod
    def _stills(each: Tensor, images: int) -> Tensor:
        own = each[:, 1:] if each.shape[1] > 1 else each.expand(-1, images, *each.shape[2:])
        return own.flatten(0, 1)


class CaptionEmbedding(nn.Module):
    """Features of prompts (..., L, C) → (..., L, D), token by token, without positions.

    Args:
        channels: C.
        hidden_size: D.
        null_tokens: L of the features of "no prompt" that the model holds, `y_embedding`; 0: it holds none.
    """

    y_embedding: Tensor

    def __init__(self, channels: int, hidden_size: int, null_tokens: int = 0) -> None:
        super().__init__()
        self.y_proj = MLP(channels, hidden_size, hidden_size)
        if null_tokens:
            # Not trained, as in PixArt: captions that are dropped become it.
            self.register_buffer("y_embedding", torch.zeros(null_tokens, channels))

    def forward(self, text: Tensor) -> Tensor:
        return self.y_proj(text.to(self.y_proj.fc1.weight.dtype))


def null_caption(model: nn.Module) -> tuple[Tensor, Tensor]:
    """What a model holds of "no prompt": its features (1, L, C), and which of their tokens are heard, bool (1, L).

    Tokens that are not heard are zero there, and no others: `keep_null_caption` writes them so, and the embeddings of
    PixArt's files have none. The features are the model's own, on its device: they change with it.

    Args:
        model: a `DiffusionTransformer` whose spec has `null_caption`.

    Raises:
        ValueError: it holds none.
    """
    text = _null_of(model)
    return text[None], text.ne(0).any(dim=-1)[None]


def keep_null_caption(model: nn.Module, text: Tensor, mask: Tensor | None = None) -> None:
    """Give a model the features of "no prompt", such as those of the empty text. Tokens that are not heard become zero.

    Args:
        model: a `DiffusionTransformer` whose spec has `null_caption`.
        text: (L, C) or (1, L, C), of the model's L tokens.
        mask: (L,) or (1, L), not 0 where a token is heard. None: all are.

    Raises:
        ValueError: the model holds none, or of another shape; no token is heard.
    """
    held = _null_of(model)
    shapes = text.shape[-2:], held.shape[-2:] if mask is None else (mask.shape[-1], held.shape[-1])
    if any(tuple(shape) != tuple(held.shape) for shape in shapes) or text.numel() != held.numel():
        said = f" with a mask {tuple(mask.shape)}" if mask is not None else ""
        raise ValueError(f"the model's 'no prompt' has features {tuple(held.shape)}; got {tuple(text.shape)}{said}")
    heard = torch.ones(held.shape[0], dtype=torch.bool, device=text.device) if mask is None else mask.reshape(-1) != 0
    kept = text.reshape(held.shape) * heard[:, None]
    if not kept.any():
        raise ValueError("no token of 'no prompt' is heard: a prompt of no text still has its end as a token")
    with torch.no_grad():
        held.copy_(kept)


def draw_null_caption(model: nn.Module) -> None:
    """Give a new model features of "no prompt" that stand for no text, as the original PixArt begins: N(0, 1/C), all heard.

    They are drawn from PyTorch's global generator, as fresh weights are.

    Args:
        model: a `DiffusionTransformer` whose spec has `null_caption`.

    Raises:
        ValueError: it holds none.
    """
    held = _null_of(model)
    keep_null_caption(model, torch.randn(held.shape) / held.shape[-1] ** 0.5)


def _null_of(model: nn.Module) -> Tensor:
    held = getattr(getattr(model, "y_embedder", None), "y_embedding", None)
    if held is None:
        raise ValueError("the model holds no features of 'no prompt': its spec has null_caption off")
    return held


def prepare(embedding: CaptionEmbedding, listeners: list[Layer], text: Tensor, text_mask: Tensor | None) -> PreparedText:
    """Keys and values of these layers for prompts.

    Args:
        embedding: of the model.
        listeners: its layers that listen, in depth order.
        text: (B, L, C), or (B, 1 + k, L, C) with a prompt for each still.
        text_mask: of the same shape without C, or (B, L) for all alike: not 0 where a token is heard. None: all are.
    """
    text = text[:, None] if text.ndim == 3 else text  # (B, 1 or 1 + k, L, C)
    embedded = embedding(text)
    if text_mask is not None:
        text_mask = text_mask[:, None] if text_mask.ndim == 2 else text_mask
        bias = text_bias(text_mask, embedded.dtype).expand(-1, text.shape[1], -1, -1, -1)
    return PreparedText(
        None if text_mask is None else bias,
        tuple(each.cross_attn.kv_linear(embedded) for each in listeners if each.cross_attn is not None),
    )
