"""`sparsevid convert` on folders of diffusers and on original files of text models."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PixArtTransformer2DModel
from models.convert.diffusers_models import T, dit, features, latte, noise, pixart, run_pixart
from models.text_models import MASK
from parity import relative_error
from safetensors.torch import load_file

from sparsevid.cli import main
from sparsevid.generation.pretrained import load_model, open_pretrained
from sparsevid.models.transformer import DiffusionTransformer


def convert(*arguments) -> int:
    return main(["convert", *map(str, arguments)])


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline's folder: transformer, autoencoder and scheduler, without text encoder and tokenizer."""
    theirs, folder = pixart(num_layers=4), tmp_path / "pipeline"
    theirs.save_pretrained(folder / "transformer")
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4).save_pretrained(folder / "vae")
    DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))
    return theirs, folder


@torch.no_grad()
def test_a_pipeline_becomes_ours_with_its_autoencoder_and_returns(pipeline, tmp_path, capsys):
    theirs, folder = pipeline
    assert convert(folder, tmp_path / "ours") == 0
    assert "4D, latents 1×32×32" in capsys.readouterr().out
    model, x, text = DiffusionTransformer.from_pretrained(tmp_path / "ours").eval(), noise(8, 6), features()
    out = model(x[:, :, None], T, text=text, text_mask=MASK)[:, :, 0]
    assert relative_error(out, run_pixart(theirs, x, text, MASK)) <= 1e-5
    assert open_pretrained(tmp_path / "ours").autoencoder.source == str(folder / "vae")

    assert convert(tmp_path / "ours", tmp_path / "again", "--to-diffusers") == 0
    again = PixArtTransformer2DModel.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in theirs.state_dict().items())
    first, second = (
        load_file(place / "diffusion_pytorch_model.safetensors") for place in (folder / "transformer", tmp_path / "again")
    )
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_folder_of_diffusers_is_told_apart_from_ours(pipeline):
    with pytest.raises(FileNotFoundError, match="a folder of diffusers becomes one by `sparsevid convert`"):
        load_model(pipeline[1] / "transformer")


def test_sparse_from_a_folder_in_one_step(pipeline, tmp_path):
    options = ("--to-sparse", "1P 1M 1R 1D", "--sparse-grid", 1, 4, 4, "--merge-text", "sparse")
    assert convert(pipeline[1] / "transformer", tmp_path / "sparse", *options) == 0
    spec = load_model(tmp_path / "sparse").spec
    assert spec.layout == "1P 1M 1R 1D" and spec.merge_text == "sparse" and spec.text_channels == 10
    assert not (tmp_path / "sparse" / "autoencoder").exists()
    assert convert(tmp_path / "sparse", tmp_path / "back", "--to-diffusers") == 2


def test_latte_dit_and_an_original_file(tmp_path, capsys):
    for name, build in (("latte", latte), ("dit", dit)):
        build().save_pretrained(tmp_path / name)
        assert convert(tmp_path / name, tmp_path / f"{name}-ours") == 0
    assert convert(tmp_path / "dit", tmp_path / "original", "--original-dit") == 0
    assert convert(tmp_path / "original", tmp_path / "dit.pt", "--to-public", "dit") == 0
    assert convert(tmp_path / "dit-ours", tmp_path / "a.pt", "--to-public", "dit") == 2
    assert "public dit has no frequency_shift, norm_eps; models of text and folders" in capsys.readouterr().err
    weights = {**latte().state_dict(), "caption_projection.y_embedding": torch.ones(7, 10)}
    torch.save(weights, tmp_path / "t2v.pt")
    assert convert(tmp_path / "t2v.pt", tmp_path / "t2v", "--heads", 2, "--input-size", 4, 16, 16) == 0
    model = load_model(tmp_path / "t2v")
    assert model.spec.null_caption and torch.equal(model.y_embedder.y_embedding, torch.ones(7, 10))
    assert convert(tmp_path / "t2v", tmp_path / "t2v-again", "--to-diffusers") == 0
    assert "y_embedder.y_embedding" in capsys.readouterr().out
    again = load_file(tmp_path / "t2v-again" / "diffusion_pytorch_model.safetensors")
    assert again.keys() == latte().state_dict().keys()


def test_wrong_use_gets_a_message(pipeline, tmp_path, capsys):
    folder = pipeline[1]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    cases = [
        ((folder, tmp_path / "a", "--heads", 2), "--heads cannot be used here"),
        ((folder, tmp_path / "a", "--weights", "ema"), "--weights cannot be used here"),
        ((folder, tmp_path / "a", "--original-dit"), "no DiT whose original could be meant"),
        ((folder, tmp_path / "a", "--merge-text", "sparse"), "--merge-text cannot be used here: they belong to --to-sparse"),
        ((folder, tmp_path / "a", "--to-sparse", "4D", "--to-diffusers"), "writes dense models alone"),
        ((folder, tmp_path / "full", "--to-diffusers"), "has config.json already"),
        ((tmp_path / "full", tmp_path / "a", "--original-dit"), "--original-dit is of folders of diffusers"),
    ]
    for arguments, reason in cases:
        capsys.readouterr()
        assert convert(*arguments) == 2
        assert reason in capsys.readouterr().err
    DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    assert convert(folder, tmp_path / "a") == 2
    assert "is of another noise process: beta_schedule = 'scaled_linear', here 'linear'; pred" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
