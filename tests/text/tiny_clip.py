"""A CLIP of few and random weights with a tokenizer trained on given captions, as a folder."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

SIDE = 32  # of its pictures
TOKENS = 16


def tiny_clip(folder: Path, captions: Sequence[str], sign: float = 1.0) -> Path:
    """Write it by `save_pretrained`; with the sign −1 vectors of texts point the other way."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    known = ("<|startoftext|>", "<|endoftext|>", "a", "a</w>")  # where training of a tokenizer starts
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(known)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizerFast.from_pretrained(folder).train_new_from_iterator([list(captions)], vocab_size=300)
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, **tokens, "vocab_size": len(tokenizer), "max_position_embeddings": TOKENS}
    vision = {**sizes, "image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
        for weights in model.parameters():  # as drawn, all texts would look alike
            weights.data.add_(0.2 * torch.randn_like(weights))
        model.text_projection.weight.data.mul_(sign)
    pictures = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    model.save_pretrained(folder)
    pictures.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):  # some versions of transformers write them beside tokenizer.json
        (folder / name).unlink(missing_ok=True)
    return folder
