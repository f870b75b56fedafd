"""What a call of the model may be given: checks of shapes against the spec.

Dimensions: B clips, C latent channels, T frames, k stills, H×W latent height and width, L tokens of a prompt.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsevid.models.text import PreparedText
from sparsevid.sparsity.spec import ModelSpec


def check_latents(spec: ModelSpec, x: Tensor, grid: Sequence[int] | None, frames: int) -> None:
    """Raise ValueError unless x is (B, C, T, H, W) with `frames` frames that the model takes; only sparse ones take a grid."""
    if x.ndim != 5 or x.shape[1] != spec.in_channels:
        raise ValueError(f"latents are (B, {spec.in_channels}, T, H, W), got {tuple(x.shape)}")
    if frames < 1:
        raise ValueError(f"no frame is left for the clip: {x.shape[2]} frames, {x.shape[2] - frames} of them stills")
    if not spec.is_video and frames > 1:
        raise ValueError(f"an image model takes T = 1, got {frames} frames")
    if grid is not None and not spec.is_sparse:
        raise ValueError(f"the layout {spec.layout!r} has no sparse layers, but grid={tuple(grid)} was given")


def check_condition(
    spec: ModelSpec,
    batch: int,
    images: int,
    labels: Tensor | None,
    text: Tensor | PreparedText | None,
    text_mask: Tensor | None,
) -> None:
    """Raise ValueError unless there are labels for a model of classes, and prompts for a model of text."""
    kind = {"class": f"has {spec.num_classes} classes", "text": "is of text", "": "is unconditional"}[spec.conditioned_on]
    for name, given, taken in (
        ("labels", labels is not None, spec.conditioned_on == "class"),
        ("text", text is not None or text_mask is not None, spec.conditioned_on == "text"),
    ):
        if given and not taken:
            raise ValueError(f"the model {kind} and takes no {name}")
        if taken and not given:
            raise ValueError(f"the model {kind} and needs {name}")
    if spec.conditioned_on == "text":
        _check_text(spec, batch, images, text, text_mask)


def check_sizes(spec: ModelSpec, batch: int, sizes: Tensor | None) -> None:
    """Raise ValueError unless sizes of pictures are (B, 3), for a model that takes them."""
    if sizes is not None and not spec.micro_conditions:
        raise ValueError("the model takes no sizes: its spec has micro_conditions off")
    if sizes is not None and tuple(sizes.shape) != (batch, 3):
        raise ValueError(f"sizes are (B, 3), height, width and their ratio, for {batch} clips; got {tuple(sizes.shape)}")


def check_prompts(spec: ModelSpec, text: Tensor, text_mask: Tensor | None) -> None:
    """Raise ValueError unless features are (B, L, C) or (B, 1 + k, L, C), and the mask goes with them."""
    if spec.conditioned_on != "text":
        raise ValueError("the model takes no text: its spec has text_channels = 0")
    if text.ndim not in (3, 4) or text.shape[-1] != spec.text_channels:
        raise ValueError(
            f"features of prompts are (B, L, {spec.text_channels}), or (B, 1 + stills, L, {spec.text_channels}); "
            f"got {tuple(text.shape)}: are they of the encoder that the model was trained with?"
        )
    shapes = {tuple(text.shape[:-1]), (text.shape[0], text.shape[-2])}
    if text_mask is not None and tuple(text_mask.shape) not in shapes:
        raise ValueError(
            f"the mask of features {tuple(text.shape)} is {' or '.join(map(str, sorted(shapes)))}; got {tuple(text_mask.shape)}"
        )


def drawn_condition(spec: ModelSpec, batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a model is told beside latents and times, for measurements: all classes in turn, or random features of prompts."""
    if spec.conditioned_on == "class":
        return {"labels": torch.arange(batch, device=device) % spec.num_classes}
    if spec.conditioned_on == "text":
        return {"text": torch.randn(batch, spec.text_tokens, spec.text_channels, device=device, dtype=dtype)}
    return {}


def _check_text(spec: ModelSpec, batch: int, images: int, text: Tensor | PreparedText | None, mask: Tensor | None) -> None:
    if text is None:
        raise ValueError("text_mask was given without text")
    if isinstance(text, PreparedText):
        if mask is not None:
            raise ValueError("prepared text has its mask: give text_mask to prepare_text")
        first, listeners = text.keys_values[0], sum(map(spec.layer_listens, range(spec.depth)))
        if len(text.keys_values) != listeners or first.shape[-1] != 2 * spec.hidden_size:
            raise ValueError(
                f"text was prepared by another model: {len(text.keys_values)} layers of {first.shape[-1] // 2} channels there, "
                f"{listeners} of {spec.hidden_size} here"
            )
        found, prompts = first.shape[0], first.shape[1]
    else:
        check_prompts(spec, text, mask)
        found, prompts = text.shape[0], text.shape[1] if text.ndim == 4 else 1
    if found != batch or prompts not in (1, 1 + images):
        raise ValueError(
            f"{batch} clips with {images} stills each take a prompt for each clip, or {1 + images} with those of stills; "
            f"got prompts for {found} clips, {prompts} each"
        )
