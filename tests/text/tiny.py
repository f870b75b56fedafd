"""A T5 encoder small enough for tests, with a tokenizer that knows the words of their captions."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

CAPTIONS = ("a green frog crosses a road", "two boxers in a ring", "a yellow taxi drives along a wide road at night", "rain")


def tiny_text_encoder(folder: Path, captions: Sequence[str] = CAPTIONS, *, channels: int = 16, seed: int = 0) -> Path:
    """Write an encoder of random weights and a tokenizer trained on `captions`.

    Args:
        folder: made if it is missing.
        captions: whose words the tokenizer knows.
        channels: of the features.
        seed: of the weights; the caller's random numbers stay as they are.

    Returns:
        The folder, which `TextEncoder.from_pretrained` opens.
    """
    tiny_tokenizer(folder, captions)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=256, d_model=channels, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
            pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
        model = T5EncoderModel(config)
    model.save_pretrained(folder)
    return Path(folder)


def tiny_tokenizer(folder: Path, captions: Sequence[str] = CAPTIONS) -> None:
    """Write a tokenizer of whole words, which ends prompts as T5's does."""
    words = Tokenizer(WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.train_from_iterator(captions, WordLevelTrainer(special_tokens=["<pad>", "</s>", "<unk>"], vocab_size=256))
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
