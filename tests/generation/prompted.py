"""Tiny checkpoints of models of text, with a T5 that is theirs."""

from dataclasses import replace
from pathlib import Path

from generation.sampled import SPEC, write_checkpoint
from safetensors.torch import load_file, save_file
from text.tiny import tiny_text_encoder

from sparsevid.text.encoder import TextEncoder

CHANNELS, TOKENS = 10, 12
TEXT = replace(
    SPEC, num_classes=0, text_channels=CHANNELS, text_tokens=TOKENS, null_caption=True, shared_modulation=True, hidden_size=24
)
PROMPTS = ("a green frog crosses a road", "rain", "two boxers in a ring")


def write_text_checkpoint(folder: Path, spec=TEXT, objective: str = "diffusion", **options) -> Path:
    """A checkpoint in `folder`/model, and its T5 in `folder`/t5, whose features of the empty text the model holds."""
    encoder = tiny_text_encoder(folder / "t5", channels=CHANNELS)
    settings = [f"text.encoder={encoder}", f"text.tokens={TOKENS}", *(f"{key}={value}" for key, value in options.items())]
    written = write_checkpoint(folder / "model", spec, objective, settings)
    null = TextEncoder.from_pretrained(encoder, tokens=TOKENS, device="cpu")([""]).text[0]
    for name in ("ema", "model") if spec.null_caption else ():
        file = written / name / "model.safetensors"
        save_file({**load_file(file), "y_embedder.y_embedding": null.contiguous()}, file, {"format": "pt"})
    return written
