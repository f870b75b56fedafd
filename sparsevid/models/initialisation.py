"""How a fresh model's weights are drawn: DiT's initialisation, and PixArt's where modulation is shared and for text."""

from typing import TYPE_CHECKING

from torch import nn

from sparsevid.models.blocks import Head, Layer, RecoverLayer
from sparsevid.models.modulation import Modulation
from sparsevid.models.text import CaptionEmbedding
from sparsevid.sparsity.spec import ModelSpec

if TYPE_CHECKING:
    from sparsevid.models.transformer import DiffusionTransformer

SMALL = 0.02  # standard deviation of embedders


def initialise(model: "DiffusionTransformer", spec: ModelSpec) -> None:
    """Draw all weights of a `DiffusionTransformer` from PyTorch's global generator.

    Xavier for linear maps, zeros where the output starts at zero (DiT, section 3.2, adaLN-Zero); with shared modulation its
    map is small and the tables are N(0, 1)/√D, and what layers hear of text starts at zero (PixArt-α).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.x_embedder.proj.weight.flatten(1))
    nn.init.zeros_(model.x_embedder.proj.bias)
    embedders = [model.t_embedder.mlp]
    if spec.micro_conditions:
        embedders += [model.csize_embedder.mlp, model.ar_embedder.mlp]
    for mlp in embedders:
        for linear in (mlp[0], mlp[2]):
            nn.init.normal_(linear.weight, std=SMALL)
    if spec.num_classes:
        nn.init.normal_(model.y_embedder.embedding_table.weight, std=SMALL)
    if spec.text_channels:
        _initialise_captions(model.y_embedder, spec)
    if spec.shared_modulation:
        nn.init.normal_(model.t_block.linear.weight, std=SMALL)
    for module in model.modules():
        if isinstance(module, Layer | Head):
            _close(module, spec)
        if isinstance(module, RecoverLayer):
            start = nn.init.eye_ if spec.residual_upsampling else nn.init.zeros_
            start(module.merged_layer1.weight)
            nn.init.eye_(module.merged_layer2.weight)
    nn.init.zeros_(model.final_layer.linear.weight)


def _close(module: Layer | Head, spec: ModelSpec) -> None:
    """Let a layer start with what it has for modulation, and hear nothing."""
    if isinstance(module.adaLN_modulation, Modulation):
        nn.init.zeros_(module.adaLN_modulation.linear.weight)
    else:
        nn.init.normal_(module.scale_shift_table, std=spec.hidden_size**-0.5)
    if isinstance(module, Layer) and module.cross_attn is not None:
        nn.init.zeros_(module.cross_attn.proj.weight)


def _initialise_captions(embedding: CaptionEmbedding, spec: ModelSpec) -> None:
    for linear in (embedding.y_proj.fc1, embedding.y_proj.fc2):
        nn.init.normal_(linear.weight, std=SMALL)
    if spec.null_caption:
        nn.init.normal_(embedding.y_embedding, std=spec.text_channels**-0.5)
