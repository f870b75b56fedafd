"""Original files of PixArt-α and Latte-1, as their trainers wrote them."""

import pytest
import torch
from models.convert.diffusers_models import T, features, latte, noise, ours, pixart, run_latte, run_pixart
from models.text_models import CHANNELS, TOKENS
from parity import relative_error

from sparsevid.models.convert.checkpoint_file import read_checkpoint
from sparsevid.models.convert.text_files import from_text_file, text_family
from sparsevid.models.embeddings import spatial_positions
from sparsevid.models.transformer import DiffusionTransformer

NULL = torch.randn(TOKENS, CHANNELS, generator=torch.Generator().manual_seed(9))


def pixart_file(folder, sample_size: int = 32) -> tuple[dict, torch.nn.Module]:
    """A state dict under the original's names, with its table of positions and its null caption."""
    theirs = pixart(sample_size)
    weights = {**ours(theirs, folder).state_dict(), "y_embedder.y_embedding": NULL}
    side, scale = sample_size // 2, max(sample_size // 64, 1)
    table = spatial_positions(side, side, side, side, 24, torch.device("cpu"), torch.float32, side, scale)
    return {**weights, "pos_embed": table[None]}, theirs


def load(conversion) -> DiffusionTransformer:
    model = DiffusionTransformer(conversion.spec).eval()
    model.load_state_dict(conversion.weights)
    return model


@pytest.mark.parametrize("sample_size", [32, 128])
@torch.no_grad()
def test_a_file_of_pixart(sample_size, tmp_path):
    weights, theirs = pixart_file(tmp_path, sample_size)
    raw = {name: value + 1 for name, value in weights.items()}
    torch.save({"state_dict": raw, "state_dict_ema": weights, "epoch": 3}, tmp_path / "pixart.pth")
    read = read_checkpoint(tmp_path / "pixart.pth")
    assert torch.equal(read["t_block.1.bias"], read_checkpoint(tmp_path / "pixart.pth", "ema")["t_block.1.bias"])
    assert torch.equal(read["t_block.1.bias"] + 1, read_checkpoint(tmp_path / "pixart.pth", "state_dict")["t_block.1.bias"])
    assert text_family(read) == "pixart"
    converted = from_text_file(read, num_heads=2)
    assert [change.name for change in converted.report.dropped] == ["pos_embed"]
    model = load(converted)
    assert model.spec.null_caption and model.spec.micro_conditions == (sample_size == 128)
    assert torch.equal(model.y_embedder.y_embedding, NULL)
    x, text = noise(8, 6), features()
    assert relative_error(model(x[:, :, None], T, text=text)[:, :, 0], run_pixart(theirs, x, text, None)) <= 1e-5
    without = {name: value for name, value in weights.items() if name not in ("pos_embed", "y_embedder.y_embedding")}
    again = from_text_file(without, num_heads=2, input_size=(1, sample_size, sample_size))
    assert again.spec == ours(theirs, tmp_path / "folder").spec


@torch.no_grad()
def test_a_file_of_latte_1(tmp_path):
    theirs = latte()
    weights = {**theirs.state_dict(), "caption_projection.y_embedding": NULL, "temp_pos_embed": torch.zeros(1, 4, 24)}
    torch.save({"ema": weights}, tmp_path / "t2v.pt")
    read = read_checkpoint(tmp_path / "t2v.pt")
    assert text_family(read) == "latte-1"
    converted = from_text_file(read, num_heads=2, input_size=(4, 16, 16))
    assert [change.name for change in converted.report.dropped] == ["temp_pos_embed"]
    model, x, text = load(converted), noise(4, 8, 6), features()
    assert torch.equal(model.y_embedder.y_embedding, NULL)
    assert relative_error(model(x, T, text=text), run_latte(theirs, x, text, None)) <= 1e-5


def test_what_a_file_does_not_say_is_asked_for(tmp_path):
    weights, _ = pixart_file(tmp_path)
    with pytest.raises(ValueError, match=r"give num_heads or a preset \(PixArt-XL/2-256"):
        from_text_file(weights)
    with pytest.raises(ValueError, match=r"preset PixArt-XL/2-256 does not fit the checkpoint: .*hidden_size is 1152 there"):
        from_text_file(weights, preset="PixArt-XL/2-256")
    with pytest.raises(ValueError, match="pos_embed is not the sin-cos table|pos_embed has shape"):
        from_text_file(weights, num_heads=2, input_size=(1, 64, 64))
    with pytest.raises(ValueError, match="pos_embed is not the sin-cos table"):
        from_text_file({**weights, "pos_embed": weights["pos_embed"] + 1}, num_heads=2)
    del weights["pos_embed"]
    with pytest.raises(ValueError, match=r"give input_size=\(T, H, W\) or a preset"):
        from_text_file(weights, num_heads=2)
    with pytest.raises(ValueError, match="is of one frame and square latents"):
        from_text_file(weights, num_heads=2, input_size=(4, 32, 32))
    assert text_family({"blocks.0.attn.qkv.weight": 0}) is None
