"""Prompts become what transformers makes of them, whatever else is in their batch; what cannot be opened is said by name."""

import builtins
import json
import logging
import shutil

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from text.tiny import CAPTIONS, tiny_text_encoder
from transformers import AutoTokenizer, T5EncoderModel

from sparsevid.text.encoder import TextEncoder, source_fingerprint
from sparsevid.text.small import write_word_tokenizer


def test_features_are_those_of_transformers(t5, encoder):
    """Compared without padding: what is padded neither changes the others nor is anything itself."""
    found = encoder(CAPTIONS)
    model, tokenizer = T5EncoderModel.from_pretrained(t5).eval(), AutoTokenizer.from_pretrained(t5)
    assert found.text.shape == (4, 8, 16) and found.mask.shape == (4, 8) and encoder.channels == 16
    for caption, text, mask in zip(CAPTIONS, found.text, found.mask, strict=True):
        ids = tokenizer(caption, truncation=True, max_length=8, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            (expected,) = model(input_ids=ids).last_hidden_state
        assert mask.tolist() == [True] * len(expected) + [False] * (8 - len(expected))
        torch.testing.assert_close(text[mask], expected, rtol=1e-5, atol=1e-6)
        assert not text[~mask].any()


def test_a_caption_does_not_depend_on_its_batch(encoder):
    together = encoder(CAPTIONS * 6)  # more than one forward pass
    for i, caption in enumerate(CAPTIONS):
        alone = encoder([f"\n {caption} "])
        for j in range(i, 24, 4):
            torch.testing.assert_close(together.text[j], alone.text[0], rtol=1e-5, atol=1e-6)
            assert torch.equal(together.mask[j], alone.mask[0])


def test_no_prompt_is_the_token_that_ends_one(encoder):
    null = encoder([""])
    assert null.mask.sum() == 1 and null.text[0, 0].any() and null.cut == (0,)


def test_tokens_that_are_cut_off_are_counted(encoder, t5, caplog):
    assert encoder(CAPTIONS[:2]).cut == (0, 0) and not caplog.records
    with caplog.at_level(logging.WARNING):
        assert encoder(CAPTIONS).cut == (0, 0, 3, 0)  # ten words and the end
    assert "1 of 4 prompts are longer than 8 tokens: 3 tokens are cut off, the most, 3, of 'a yellow taxi" in caplog.text
    longer = TextEncoder.from_pretrained(t5, tokens=11, device="cpu")(CAPTIONS)
    assert longer.cut == (0, 0, 0, 0) and longer.mask[2].all()


def test_the_type_of_the_features_is_the_one_asked_for(t5, encoder):
    half = TextEncoder.from_pretrained(t5, tokens=8, dtype=torch.bfloat16, device="cpu")
    found = half(CAPTIONS)
    assert found.text.dtype == torch.bfloat16 and half.dtype == torch.bfloat16
    torch.testing.assert_close(found.text.float(), encoder(CAPTIONS).text, rtol=0.1, atol=0.1)
    assert half.fingerprint() == encoder.fingerprint()


@pytest.fixture
def pipeline(t5, tmp_path):
    """The folder of a pipeline of diffusers, in which the tokenizer is T5's own kind of file."""
    folder = tmp_path / "pipeline"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "text_encoder").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(t5 / name, folder / "text_encoder" / name)
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "captions.txt"), model_prefix=str(folder / "tokenizer" / "spiece"), vocab_size=60,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    names = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": 0}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def test_a_folder_of_diffusers_is_read_with_its_sentencepiece(pipeline):
    encoder = TextEncoder.from_pretrained(pipeline, tokens=64, device="cpu")
    pieces = sentencepiece.SentencePieceProcessor(str(pipeline / "tokenizer" / "spiece.model"))
    for caption, mask in zip(CAPTIONS, encoder(CAPTIONS).mask, strict=True):
        assert mask.sum() == len(pieces.encode(caption)) + 1
    assert encoder.source == str(pipeline)


def test_the_variant_fp16_is_read_where_a_folder_has_no_other(t5, encoder, tmp_path):
    half = shutil.copytree(t5, tmp_path / "half")
    (half / "model.safetensors").unlink()
    T5EncoderModel.from_pretrained(t5).half().save_pretrained(half, variant="fp16")
    assert not (half / "model.safetensors").exists()
    found = TextEncoder.from_pretrained(half, tokens=8, device="cpu")
    torch.testing.assert_close(found(CAPTIONS).text, encoder(CAPTIONS).text, rtol=1e-2, atol=1e-2)
    assert found.fingerprint() == source_fingerprint(half, 8) != encoder.fingerprint()
    shutil.copy(t5 / "model.safetensors", half)  # beside it the usual one, which goes first
    assert TextEncoder.from_pretrained(half, tokens=8, device="cpu").fingerprint() == encoder.fingerprint()
    T5EncoderModel.from_pretrained(t5).half().save_pretrained(half, variant="fp16", max_shard_size="20KB")
    assert source_fingerprint(half, 8) == encoder.fingerprint()


def test_the_fingerprint_is_of_weights_tokenizer_and_tokens(t5, encoder, pipeline, tmp_path):
    same = shutil.copytree(t5, tmp_path / "same")
    weights = load_file(same / "model.safetensors")
    names = sorted(weights)
    (same / "model.safetensors").unlink()
    for i, part in enumerate((names[::2], names[1::2])):  # dealt out to files in another way
        save_file({name: weights[name] for name in part}, same / f"model-{i}.safetensors", metadata={"format": "pt"})
    assert source_fingerprint(same, 8) == encoder.fingerprint() == source_fingerprint(t5, 8)
    write_word_tokenizer(same, [*CAPTIONS, "other words"])
    other = tiny_text_encoder(tmp_path / "other", seed=1)
    found = [source_fingerprint(each, 8) for each in (t5, same, other, pipeline)] + [source_fingerprint(t5, 9)]
    assert len(set(found)) == 5


def _without(folder, *names):
    for name in names:
        (folder / name).unlink()


BROKEN = {
    "no config": (lambda folder: _without(folder, "config.json"), FileNotFoundError, "has no config.json"),
    "no weights": (lambda folder: _without(folder, "model.safetensors"), FileNotFoundError, "has no weights"),
    "pickled": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        FileNotFoundError,
        "pickled weights are not opened. Convert them once",
    ),
    "no tokenizer": (lambda folder: _without(folder, "tokenizer.json"), FileNotFoundError, "has no tokenizer"),
    "another model": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "clip_text_model"}'),
        ValueError,
        "of a model 'clip_text_model'; accepted as a text encoder: t5",
    ),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), ValueError, "not the configuration of a model"),
    "cut short": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:3000]),
        ValueError,
        "holds no T5 encoder that can be read",
    ),
    "few weights": (
        lambda folder: save_file({"shared.weight": torch.zeros(256, 16)}, folder / "model.safetensors", {"format": "pt"}),
        ValueError,
        "of the encoder's weights, such as encoder.block.0",
    ),
    "no words": (lambda folder: (folder / "tokenizer.json").write_text("{}"), ValueError, "holds no tokenizer"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_encoder_is_said_by_name(t5, what, tmp_path):
    folder = shutil.copytree(t5, tmp_path / "t5")
    change, error, message = BROKEN[what]
    change(folder)
    with pytest.raises(error, match=message):
        TextEncoder.from_pretrained(folder, device="cpu")


def test_a_tokenizer_that_does_not_end_prompts_is_refused(t5, tmp_path):
    folder = shutil.copytree(t5, tmp_path / "t5")
    values = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(values | {"post_processor": None}))
    with pytest.raises(ValueError, match="no token that ends a prompt"):
        TextEncoder.from_pretrained(folder, device="cpu")


def test_no_folder_and_no_hub_id(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"no folder /no/such, and not to be had as a hub id .* Accepted are a folder"):
        TextEncoder.from_pretrained("/no/such")


def test_without_the_package_it_is_said_what_to_install(t5, monkeypatch):
    imported = builtins.__import__

    def without(name, *arguments, **options):
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'")
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "sparsevid\[text\]"'):
        TextEncoder.from_pretrained(t5)


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ("rain", TypeError, "put it into a list"),
        ([], ValueError, "no"),
        (["rain", "a \ud83d frog"], ValueError, r"'a \\ud83d frog' is no text: it holds half of a character"),
    ],
)
def test_prompts_are_some_texts(encoder, prompts, error, message):
    with pytest.raises(error, match=message):
        encoder(prompts)
