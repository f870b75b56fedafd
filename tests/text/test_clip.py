"""CLIP out of a folder: as transformers has it, whatever the batch, and what it says of other folders."""

import json
import shutil

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers (extra `text`)")

from text.tiny_clip import SIDE, TOKENS, tiny_clip

from sparsevid.text.clip import CLIP

CAPTIONS = ("a green frog crosses a road", "a ball hits bricks", "two planes shoot")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip") / "tiny", CAPTIONS)


@pytest.fixture(scope="module")
def clip(folder) -> CLIP:
    return CLIP.from_folder(folder)


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(0, 256, (3, 3, 40, 52), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_vectors_are_those_of_transformers(folder, clip, pictures):
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    inputs = processor(text=list(CAPTIONS), images=list(pictures), return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model(**inputs)
    torch.testing.assert_close(clip.pictures(pictures), theirs.image_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(clip.texts(CAPTIONS), theirs.text_embeds, atol=1e-6, rtol=0)
    assert theirs.text_embeds.std(dim=0).max() > 0.01


def test_a_text_does_not_depend_on_those_beside_it(clip):
    together = clip.texts(["a ball", *CAPTIONS])
    assert together[1:].equal(clip.texts(CAPTIONS)) and together[:1].equal(clip.texts(["a ball"]))


def test_a_text_too_long_is_cut_before_its_last_token_and_said(clip, caplog):
    long = " ".join(["ball"] * TOKENS)
    found = clip.texts([long, CAPTIONS[0]])
    assert f"1 of 2 prompts are longer than CLIP's {TOKENS} tokens" in caplog.text
    assert found[:1].equal(clip.texts([f"{long} {CAPTIONS[1]}"]))
    caplog.clear()
    clip.texts(CAPTIONS)
    assert not caplog.text


def test_the_checksum_is_of_weights_tokenizer_and_preparation(folder, clip, tmp_path):
    assert len(clip.fingerprint) == 64 and CLIP.from_folder(folder).fingerprint == clip.fingerprint
    other = shutil.copytree(folder, tmp_path / "other")
    values = json.loads((other / "preprocessor_config.json").read_text())
    values["image_mean"] = [0.5, 0.5, 0.5]
    (other / "preprocessor_config.json").write_text(json.dumps(values))
    changed = CLIP.from_folder(other)
    assert changed.fingerprint != clip.fingerprint and "image_mean [0.5, 0.5, 0.5]" in changed.preprocessing
    assert f'"shortest_edge": {SIDE}' in clip.preprocessing


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        ("config.json", r"lacks config\.json; accepted is a folder by `save_pretrained`"),
        ("model.safetensors", "lacks .*the weights"),
        ("tokenizer.json", "lacks tokenizer.json, or vocab.json"),
        ("preprocessor_config.json", "lacks processor_config.json or"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused_by_it(folder, tmp_path, lacking, reason):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / lacking).unlink()
    with pytest.raises(FileNotFoundError, match=reason):
        CLIP.from_folder(other)


def test_another_model_pickles_and_broken_weights_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        CLIP.from_folder(tmp_path / "none")
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="as a pickle alone"):
        CLIP.from_folder(other)
    (other / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as CLIP"):
        CLIP.from_folder(other)
    (other / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ValueError, match="a model of type 't5', not 'clip'"):
        CLIP.from_folder(other)
    (other / "config.json").write_text("no json")
    with pytest.raises(ValueError, match="is no configuration"):
        CLIP.from_folder(other)
