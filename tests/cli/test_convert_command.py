"""`sparsevid convert` on files: public to ours, dense to sparse, and back."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity import load_reference
from safetensors.torch import load_file, save_file

from sparsevid.cli import main
from sparsevid.generation.pretrained import load_model

TOOL = Path(__file__).parents[2] / "tools" / "convert.py"


@pytest.fixture
def latte(tmp_path):
    """A training checkpoint as public Latte writes it, its weights, and the number of heads."""
    tensors, config = load_reference("latte_class")
    weights = {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}
    training = {
        "model": {key: value + 1 for key, value in weights.items()},
        "ema": weights,
        "args": argparse.Namespace(lr=1e-4),
    }
    torch.save(training, tmp_path / "latte.pt")
    return tmp_path / "latte.pt", weights, config


def convert(*arguments) -> int:
    return main(["convert", *map(str, arguments)])


def test_public_to_ours_to_sparse_and_back(latte, tmp_path, capsys):
    path, weights, config = latte
    assert convert(path, tmp_path / "dense", "--heads", config["num_heads"], "--classes", config["num_classes"]) == 0
    printed = capsys.readouterr().out
    assert "pos_embed" in printed and "temp_embed" in printed and f"{config['depth']}D" in printed
    dense = load_model(tmp_path / "dense")

    layout = f"1P 1M 1R {config['depth'] - 3}D"
    sparse_options = ("--to-sparse", layout, "--sparse-grid", config["num_frames"], 2, 1, "--residual-upsampling")
    assert convert(tmp_path / "dense", tmp_path / "sparse", *sparse_options) == 0
    printed = capsys.readouterr().out
    assert "blocks.0.attn.qkv.weight (q, k)" in printed and "blocks.2.merged_layer2.weight" in printed
    assert convert(tmp_path / "dense", tmp_path / "as-json", *sparse_options, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["spec"]["layout"] == layout and "blocks.2.merged_layer2.weight" in {each["tensor"] for each in told["changes"]}
    sparse = load_model(tmp_path / "sparse").eval()
    assert sparse.spec.layout == layout and sparse.spec.sparse_grid == (config["num_frames"], 2, 1)
    assert sparse.spec.residual_upsampling and sparse.spec.transition_positions
    assert torch.equal(sparse.blocks[3].attn.qkv.weight, dense.blocks[3].attn.qkv.weight)
    with torch.no_grad():
        out = sparse(torch.randn(1, config["in_channels"], *sparse.spec.input_size), torch.tensor([5]), torch.tensor([0]))
    assert out.isfinite().all()

    for name, read in (("again.safetensors", load_file), ("again.pt", lambda file: torch.load(file, weights_only=True))):
        assert convert(tmp_path / "dense", tmp_path / name, "--to-public", "latte") == 0
        again = read(tmp_path / name)
        assert again.keys() == weights.keys() and all(torch.equal(again[key], weights[key]) for key in weights)


def test_one_step_equals_two(latte, tmp_path):
    path, _, config = latte
    heads = ("--heads", config["num_heads"], "--classes", config["num_classes"])
    sparse = ("--to-sparse", f"1M 1R {config['depth'] - 2}D", "--sparse-grid", 1, 2, 2, "--no-transition-positions")
    assert convert(path, tmp_path / "sparse", *heads, *sparse) == 0
    assert convert(path, tmp_path / "dense", *heads) == 0
    assert convert(tmp_path / "dense", tmp_path / "two", *sparse) == 0
    first, second = load_model(tmp_path / "sparse"), load_model(tmp_path / "two")
    assert first.spec == second.spec and not first.spec.transition_positions
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_public_to_public_and_which_weights(latte, tmp_path):
    """The raw weights' tables are not sin-cos tables here, so that taking them by mistake shows."""
    path, weights, config = latte
    options = ("--to-public", "latte", "--heads", config["num_heads"], "--classes", config["num_classes"])
    assert convert(path, tmp_path / "ema.pt", *options) == 0
    assert convert(path, tmp_path / "raw.pt", *options, "--weights", "model") == 2
    assert not (tmp_path / "raw.pt").exists()
    found = torch.load(tmp_path / "ema.pt", weights_only=True)
    assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_sparsedit_through_a_folder(tmp_path, capsys):
    tensors, config = load_reference("sparsedit")
    weights = {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}
    save_file(weights, tmp_path / "sparsedit.safetensors")
    side, heads = config["semantic_size"], config["num_heads"]
    source = (tmp_path / "sparsedit.safetensors", tmp_path / "ours", "--heads", heads, "--classes", config["num_classes"])
    assert convert(*source) == 2 and "sparse_grid=(t, h, w) is needed" in capsys.readouterr().err
    assert convert(*source, "--sparse-grid", 1, side, side) == 0
    assert load_model(tmp_path / "ours").spec.sparse_grid == (1, side, side)
    assert convert(tmp_path / "ours", tmp_path / "again.safetensors", "--to-public", "sparsedit") == 0
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == weights.keys() and all(torch.equal(again[key], weights[key]) for key in weights)


def test_wrong_use_gets_a_message(latte, tmp_path, capsys):
    path, _, config = latte
    heads = ("--heads", config["num_heads"], "--classes", config["num_classes"])
    assert convert(path, tmp_path / "ours", *heads) == 0
    cases = [
        ((path, tmp_path / "a"), "give num_heads or a preset"),
        ((path, tmp_path / "a", *heads[:2]), "means 'no class': give num_classes (--classes of `sparsevid convert`), 5 if"),
        ((path, tmp_path / "a", *heads[:2], "--classes", 4), "has 6 rows; a model of 4 classes has 4, or one more"),
        ((path, tmp_path / "a", "--preset", "Latte-M/2"), "no preset 'Latte-M/2'"),
        ((path, tmp_path / "a", "--preset", "Latte-XL/2"), "preset Latte-XL/2 does not fit the checkpoint"),
        ((path, tmp_path / "a", *heads, "--weights", "state_dict"), "no state dict under 'state_dict'"),
        ((path, tmp_path / "a", *heads, "--sparse-grid", 1, 2, 2), "has no sparse layers"),
        ((path, tmp_path / "a", *heads, "--residual-upsampling"), "belong to --to-sparse"),
        ((path, tmp_path / "a", *heads, "--to-sparse", "1M 2X"), "unknown layer kind 'X'"),
        ((path, tmp_path / "a", *heads, "--to-public", "latte"), "writes a .pt, .pth or .safetensors file"),
        ((path, tmp_path / "a.pt", *heads, "--to-public", "dit"), "one frame"),
        ((path, path, *heads, "--to-public", "latte"), "exists already"),
        ((path, tmp_path / "ours", *heads), "has config.json and model.safetensors already"),
        ((tmp_path / "ours", tmp_path / "a", *heads), "--heads, --classes cannot be used here"),
        ((tmp_path / "ours", tmp_path / "a", "--sparse-grid", 1, 2, 2), "--sparse-grid cannot be used here"),
        ((tmp_path, tmp_path / "a"), "is neither a checkpoint"),
        ((tmp_path / "ours", tmp_path / "a", "--weights", "ema"), "holds one model"),
        ((tmp_path / "nothing.pt", tmp_path / "a"), "there is no file"),
    ]
    for arguments, reason in cases:
        capsys.readouterr()
        assert convert(*arguments) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "a").exists() and not (tmp_path / "a.pt").exists()


def test_the_tool_is_the_command(latte, tmp_path):
    path, _, config = latte
    options = ["--heads", str(config["num_heads"]), "--classes", str(config["num_classes"])]
    command = [sys.executable, str(TOOL), str(path), str(tmp_path / "ours"), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pos_embed" in done.stdout and {"config.json", "model.safetensors"} <= {
        p.name for p in (tmp_path / "ours").iterdir()
    }
