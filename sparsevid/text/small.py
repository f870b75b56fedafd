"""A small encoder of text, where no T5 is at hand: random weights, and a tokenizer that knows the words of given captions.

It understands nothing. But a word has the same features wherever it stands, up to what its neighbours add, and other ones than
any other word: enough for a model to learn what the words of its own captions mean.
"""

from collections.abc import Iterable
from pathlib import Path

import torch

from sparsevid.system.atomic import renamed

CHANNELS, LAYERS, HEADS = 64, 2, 4
WORDS = 4096  # that are known at most, the more frequent ones; others are all alike
ROWS = 256  # of the table of words there is a multiple, as T5 has more than tokens
SPECIAL = ("<pad>", "</s>", "<unk>")  # by their numbers


def make_small_encoder(folder: str | Path, captions: Iterable[str], *, channels: int = CHANNELS, seed: int = 0) -> Path:
    """Write a T5 encoder of random weights with a tokenizer of whole words, as `TextEncoder.from_pretrained` opens it.

    Args:
        folder: made, whole or not at all; one that is there is empty.
        captions: whose words are known.
        channels: C of the features, at least 1.
        seed: of the weights; the caller's random numbers stay as they are.

    Returns:
        The folder.

    Raises:
        ImportError: transformers is not installed.
        FileExistsError: something is in the folder.
        ValueError: there is no word in the captions, or no channel.
    """
    folder = Path(folder)
    if is_taken(folder):
        raise FileExistsError(f"{folder} is there already: a small encoder is written to a folder of its own")
    if channels < 1:
        raise ValueError(f"channels = {channels}; accepted: from 1")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with renamed(folder) as draft:
        _write(draft, write_word_tokenizer(draft, captions), channels, seed)
    return folder


def is_taken(folder: Path) -> bool:
    """Whether something is there, so that no encoder is made."""
    return folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None)


def _write(folder: Path, size: int, channels: int, seed: int) -> None:
    """Weights of an encoder for a tokenizer of so many tokens."""
    from transformers import T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=-(-size // ROWS) * ROWS,
            d_model=channels,
            d_kv=-(-channels // HEADS),
            d_ff=2 * channels,
            num_layers=LAYERS,
            num_heads=HEADS,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
        )
        model = T5EncoderModel(config)
    model.save_pretrained(folder)


def write_word_tokenizer(folder: str | Path, captions: Iterable[str]) -> int:
    """Write a tokenizer of whole words, which ends prompts as T5's does.

    Args:
        folder: made if it is missing.
        captions: whose words are known.

    Returns:
        The number of its tokens.

    Raises:
        ImportError: transformers is not installed.
        ValueError: there is no word in the captions.
    """
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
        from transformers import PreTrainedTokenizerFast
    except ModuleNotFoundError as error:
        raise ImportError(f'a text encoder is made by transformers ({error}): pip install "sparsevid[text]"') from error
    words = Tokenizer(models.WordLevel(unk_token=SPECIAL[2]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    lower = (caption.lower() for caption in captions)  # as the encoder is asked
    words.train_from_iterator(lower, trainers.WordLevelTrainer(special_tokens=list(SPECIAL), vocab_size=WORDS))
    size = words.get_vocab_size()
    if size == len(SPECIAL):
        raise ValueError("the captions have no word that an encoder could know")
    words.post_processor = processors.TemplateProcessing(single=f"$A {SPECIAL[1]}", special_tokens=[(SPECIAL[1], 1)])
    named = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder)
    return size
