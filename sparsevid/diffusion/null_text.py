"""What stands for "no prompt" in guidance, and prompts beside it.

Two choices are the public code's, and differ. Whose features: the original PixArt has an embedding of its own, which its files
hold, diffusers encodes the empty text. Which of their tokens are heard: the original takes the prompt's mask for both halves,
diffusers each half's own.

Dimensions: B clips, L tokens of a prompt, C channels of its features.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsevid.diffusion import MASKS


class Prepared(Protocol):
    """Prompts as the model prepared them (`models.text.PreparedText`)."""

    bias: Tensor | None

    def followed_by(self, other: "Prepared") -> "Prepared":
        """These prompts, then the others."""
        ...

    def _replace(self, **changes: Any) -> "Prepared": ...


Prompts = Tensor | Prepared


@dataclass(frozen=True)
class NullText:
    """Features that mean "no prompt".

    Attributes:
        text: (1 or B, L, C), or what the model prepared of them.
        mask: (1 or B, L), not 0 where a token is heard; None: all are, or prepared text says it.
        heard: by whose mask: its `own`, as diffusers, or that of the `prompt` beside it, as the original PixArt.

    Raises:
        ValueError: another `heard`.
    """

    text: Prompts
    mask: Tensor | None = None
    heard: str = "own"

    def __post_init__(self) -> None:
        if self.heard not in MASKS:
            raise ValueError(
                f"the tokens of 'no prompt' are heard by the mask of one of {', '.join(MASKS)}; got {self.heard!r}"
            )

    def in_place_of(self, text: Tensor, mask: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts of which some became "no prompt", and their mask: what training drops, so that guidance can compare with it.

        Args:
            text: (..., L, C), features.
            mask: (..., L) bool.
            dropped: (...) bool: where there is no prompt.

        Raises:
            ValueError: "no prompt" has not as many tokens.
        """
        null = self.text
        if not isinstance(null, Tensor):
            raise ValueError("'no prompt' is prepared by the model already: what prompts become in training are features")
        if text.shape[-2:] != null.shape[-2:]:
            raise ValueError(
                f"'no prompt' has features {tuple(null.shape[-2:])}, prompts have {tuple(text.shape[-2:])}: are they of "
                "the encoder, and of the number of tokens, that the model was made for?"
            )
        if self.heard == "own" and self.mask is not None:
            mask = torch.where(dropped[..., None], self.mask[0] != 0, mask)
        elif self.heard == "own":
            mask = mask | dropped[..., None]
        return torch.where(dropped[..., None, None], null[0], text), mask

    def beside(self, text: Prompts, mask: Tensor | None) -> tuple[Prompts, Tensor | None]:
        """Prompts and then, for each, "no prompt": twice as many, with their mask.

        Args:
            text: (B, L, C), or prepared.
            mask: (B, L) or None.

        Raises:
            ValueError: one of both is prepared, the other is not; or they have not as many tokens where they have to.
        """
        if not isinstance(text, Tensor) and not isinstance(self.text, Tensor):
            prepared = self.text._replace(bias=text.bias) if self.heard == "prompt" else self.text
            return text.followed_by(prepared), None
        if not isinstance(text, Tensor) or not isinstance(self.text, Tensor):
            raise ValueError("prompts and 'no prompt' are both features, or both prepared by the model")
        null = self.text.expand(len(text), -1, -1)
        own = mask if self.heard == "prompt" else None if self.mask is None else self.mask.expand(len(text), -1)
        if self.heard == "prompt" and text.shape[1] != null.shape[1]:
            raise ValueError(
                f"'no prompt' has {null.shape[1]} tokens, and the mask of prompts, which is to be its, {text.shape[1]}"
            )
        if mask is None and own is None and text.shape[1] == null.shape[1]:
            return torch.cat([text, null]), None
        most = max(text.shape[1], null.shape[1])
        masks = [_padded(_given(*each)[..., None], most)[..., 0] for each in ((text, mask), (null, own))]
        return torch.cat([_padded(each, most) for each in (text, null)]), torch.cat(masks)


def _given(text: Tensor, mask: Tensor | None) -> Tensor:
    """The mask, or that of all tokens."""
    return text.new_ones(text.shape[:2], dtype=torch.bool) if mask is None else mask != 0


def _padded(values: Tensor, most: int) -> Tensor:
    """(B, L, C) → (B, most, C), with zeros behind."""
    return F.pad(values, (0, 0, 0, most - values.shape[1]))
