"""Properties of the whole model."""

from dataclasses import replace

import pytest
import torch
from parity import randomise

from sparsevid.models.presets import PRESETS, SIZES, build_spec, preset_schedule
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.spec import ModelSpec

SPARSE = ModelSpec("1P 2(1M2S1R1D) 1D", 24, 2, (4, 8, 8), sparse_grid=(2, 2, 2))
CLASSES = replace(SPARSE, num_classes=5)
IMAGE = ModelSpec("1P 1(1M2S1R1D) 1D", 24, 2, (1, 8, 8), sparse_grid=(1, 2, 3))
T = torch.tensor([0, 999])


@pytest.mark.parametrize("spec", [SPARSE, SPARSE.dense(), IMAGE], ids=["sparse", "dense", "image"])
def test_output_at_initialisation_is_zero(spec):
    x = torch.randn(2, 4, *spec.input_size)
    out = DiffusionTransformer(spec)(x, T)
    assert out.shape == (2, 8, *spec.input_size) and torch.count_nonzero(out) == 0


@pytest.mark.parametrize("size", [(4, 8, 8), (8, 8, 8), (2, 6, 10), (12, 4, 14)])
def test_one_set_of_weights_runs_at_other_sizes(size):
    model = randomise(DiffusionTransformer(SPARSE))
    out = model(torch.randn(2, 4, *size), T, grid=(2, 2, 2))
    assert out.shape == (2, 8, *size) and out.isfinite().all()


def test_grid_changes_the_output_and_none_is_the_default():
    model, x = randomise(DiffusionTransformer(SPARSE)), torch.randn(2, 4, 4, 8, 8)
    assert torch.equal(model(x, T), model(x, T, grid=(2, 2, 2)))
    assert not torch.allclose(model(x, T), model(x, T, grid=(4, 3, 3)))


def test_stills_do_not_change_the_clip_nor_each_other():
    model, x = randomise(DiffusionTransformer(CLASSES)), torch.randn(2, 4, 4 + 2, 8, 8)
    labels = torch.tensor([[0, 1, 2], [3, 4, 5]])
    out = model(x, T, labels, images=2)
    assert out.shape[2] == 6
    torch.testing.assert_close(out[:, :, :4], model(x[:, :, :4], T, labels[:, 0]), atol=1e-5, rtol=1e-5)
    changed = x.clone()
    changed[:, :, 5] += 1.0
    moved = (model(changed, T, labels, images=2) - out).abs().amax(dim=(0, 1, 3, 4)) > 0
    assert moved.tolist() == [False] * 5 + [True]


def test_features_are_the_tokens_of_their_layers():
    model, x = randomise(DiffusionTransformer(SPARSE)), torch.randn(2, 4, 4, 8, 8)
    out, features = model(x, T, features=[0, 2, 4])
    assert torch.equal(out, model(x, T))
    assert {i: tuple(f.shape) for i, f in features.items()} == {0: (2, 4, 16, 24), 2: (2, 2, 4, 24), 4: (2, 4, 16, 24)}


def test_transition_positions_matter():
    model = randomise(DiffusionTransformer(SPARSE))
    without = DiffusionTransformer(replace(SPARSE, transition_positions=False)).eval()
    without.load_state_dict(model.state_dict())
    x = torch.randn(2, 4, 4, 8, 8)
    assert not torch.allclose(model(x, T), without(x, T))


@pytest.mark.parametrize("spec", [SPARSE, CLASSES])
def test_saved_and_loaded_is_the_same_model(spec, tmp_path, capsys):
    """And loading says nothing on standard output, where results of commands go."""
    model = randomise(DiffusionTransformer(spec))
    model.save_pretrained(tmp_path)
    again = DiffusionTransformer.from_pretrained(tmp_path).eval()
    assert capsys.readouterr().out == ""
    x, labels = torch.randn(2, 4, 4, 8, 8), torch.tensor([0, 5]) if spec.num_classes else None
    assert again.spec == spec and torch.equal(again(x, T, labels), model(x, T, labels))


def test_every_parameter_of_a_sparse_model_gets_a_gradient():
    model = randomise(DiffusionTransformer(CLASSES))
    model(torch.randn(2, 4, 4, 8, 8), T, torch.tensor([0, 1])).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("spec", "call", "reason"),
    [
        (SPARSE, lambda m, x: m(x, T, grid=(3, 2, 2)), "does not divide"),
        (SPARSE, lambda m, x: m(x, T, torch.tensor([0, 1])), "takes no labels"),
        (CLASSES, lambda m, x: m(x, T), "needs labels"),
        (SPARSE, lambda m, x: m(x[:, :3], T), r"\(B, 4, T, H, W\)"),
        (SPARSE, lambda m, x: m(x[..., :7], T), "cut into patches"),
        (SPARSE, lambda m, x: m(x, T, images=4), "no frame is left"),
        (SPARSE.dense(), lambda m, x: m(x, T, grid=(2, 2, 2)), "no sparse layers"),
        (IMAGE, lambda m, x: m(x, T), "T = 1"),
    ],
)
def test_input_that_does_not_fit_is_refused(spec, call, reason):
    with pytest.raises(ValueError, match=reason):
        call(DiffusionTransformer(spec), torch.randn(2, 4, 4, 8, 8))


def test_presets_are_listed_when_one_is_misspelt():
    with pytest.raises(KeyError, match=r"Did you mean 'SparseLatte-XL/2'.*DiT-B/2"):
        build_spec("SparseLate-XL/2")
    with pytest.raises(ValueError, match="12 layers, but preset Latte-XL/2 has 28"):
        build_spec("Latte-XL/2", layout="12D")
    assert build_spec("SparseLatte-XL/2").layout == "2P 4(1M3S1R1D) 2D"


def test_presets_cover_the_families_and_the_published_settings():
    names = {
        f"{sparse}{family}-{size}/{p}"
        for sparse in ("", "Sparse")
        for family in ("Latte", "DiT")
        for size in SIZES
        for p in (2, 4, 8)
    }
    assert names <= set(PRESETS)
    sides = {name: [stage.grid.h for stage in preset_schedule(name).stages] for name in PRESETS if "Sparse" in name}
    assert sides["SparseLatte-XL/2"] == [8, 7, 6, 5, 4] and preset_schedule("SparseLatte-XL/2").stages[0].grid.t == 4
    assert sides["SparseDiT-XL/2"] == sides["SparseDiT-XL/2-512-r90"] == [10, 9, 8, 7, 6]
    assert sides["SparseDiT-XL/2-r44"] == [12, 11, 10]
    assert sides["SparseDiT-XL/2-512"] == [*range(20, 11, -1)]
    with pytest.raises(ValueError, match="dense and has no token schedule"):
        preset_schedule("Latte-XL/2")


def test_residual_upsampling_starts_as_the_identity():
    """What the sparse layers changed is nothing at first (adaLN-Zero), so W1 = 1 leaves the dense tokens as they are."""
    spec = replace(SPARSE, residual_upsampling=True, transition_positions=False)
    model, dense = DiffusionTransformer(spec), DiffusionTransformer(SPARSE.dense())
    recover = model.blocks[4]
    assert torch.equal(recover.merged_layer1.weight, torch.eye(24)) and torch.equal(recover.merged_layer2.weight, torch.eye(24))
    x = torch.randn(2, 4, 4, 8, 8)
    _, sparse_features = model(x, T, features=[4, 11])
    dense.load_state_dict(model.state_dict(), strict=False)
    _, dense_features = dense(x, T, features=[4, 11])
    for index in (4, 11):
        torch.testing.assert_close(sparse_features[index], dense_features[index])


def test_residual_upsampling_adds_what_the_sparse_layers_changed():
    spec = replace(SPARSE, residual_upsampling=True)
    model, plain = randomise(DiffusionTransformer(spec)), DiffusionTransformer(SPARSE).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 4, 4, 8, 8)
    assert not torch.allclose(model(x, T), plain(x, T))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"sparse_grid": None}, "sparse_grid"),
        ({"layout": "6D"}, "no sparse layers"),
        ({"sparse_grid": (3, 2, 2)}, "does not divide"),
        ({"hidden_size": 26}, "multiple of 4"),
        ({"input_size": (4, 9, 8)}, "patches"),
    ],
)
def test_specs_that_do_not_fit_together_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        replace(SPARSE, **changes)
