"""A run's first weights: whatever they come from, what means the same is taken over and the rest is said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from models.convert.diffusers_models import latte, pixart
from models.text_models import CHANNELS, TOKENS
from parity import disturbed, load_reference
from safetensors.torch import save_file
from torch import Tensor

from sparsevid.generation.pretrained import model_folder
from sparsevid.models.convert.dense_to_sparse import dense_to_sparse
from sparsevid.models.convert.diffusers_folder import from_diffusers
from sparsevid.models.convert.names import LABELS
from sparsevid.models.convert.public import to_public
from sparsevid.models.convert.text_files import NULL
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.checkpoints import checkpoint_path, write_checksums
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.training.initial import initial_weights, open_model, trained_run

DENSE = ModelSpec("6D", 32, 2, (4, 4, 4), in_channels=4, patch_size=2, num_classes=3)
SPARSE = replace(DENSE, layout="1P 1M1S1R1D 1D", sparse_grid=(2, 1, 1))
IMAGE = replace(DENSE, input_size=(1, 4, 4))
PUBLIC_SPARSE = replace(IMAGE, layout="1P 1M1S1R1D 1D", sparse_grid=(1, 1, 1), transition_positions=False)


def export(folder: Path, spec: ModelSpec, seed: int = 0) -> DiffusionTransformer:
    model = disturbed(spec, seed)
    model.save_pretrained(folder)
    return model


def write_checkpoint(run: Path, step: int, seed: int) -> DiffusionTransformer:
    """A checkpoint folder with weights and their average, which is returned."""
    folder = checkpoint_path(run, step)
    export(folder / "model", DENSE, seed + 100)
    averaged = export(folder / "ema", DENSE, seed)
    (folder / "autoencoder").mkdir()
    (folder / "config.yaml").write_text("name: run\n", encoding="utf-8")
    write_checksums(folder)
    return averaged


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def output(weights: dict[str, Tensor], spec: ModelSpec) -> Tensor:
    """The model's output for fixed latents, times and the label 0; weights are loaded strictly."""
    model = DiffusionTransformer(spec).eval()
    model.load_state_dict(weights)
    x = torch.randn(2, spec.in_channels, *spec.input_size, generator=torch.Generator().manual_seed(5))
    labels = torch.zeros(2, dtype=torch.long) if spec.num_classes else None
    with torch.no_grad():
        return model(x, torch.tensor([30, 700]), labels)


def test_the_average_of_the_newest_good_checkpoint_is_taken(tmp_path):
    older, newer = write_checkpoint(tmp_path, 1, seed=1), write_checkpoint(tmp_path, 2, seed=2)
    for source in (tmp_path, checkpoint_path(tmp_path, 2)):
        weights, notes = initial_weights(str(source), DENSE)
        assert same(weights, newer.state_dict()) and notes == []
    (checkpoint_path(tmp_path, 2) / "ema" / "model.safetensors").write_bytes(b"cut")
    assert same(initial_weights(str(tmp_path), DENSE)[0], older.state_dict())
    assert same(initial_weights(str(checkpoint_path(tmp_path, 1) / "ema"), DENSE)[0], older.state_dict())


@pytest.mark.parametrize("residual", [False, True])
def test_a_dense_source_becomes_sparse(tmp_path, residual):
    dense, spec = export(tmp_path, DENSE), replace(SPARSE, residual_upsampling=residual)
    weights, notes = initial_weights(str(tmp_path), spec)
    assert same(weights, dense_to_sparse(dense.state_dict(), DENSE, spec)[0])
    assert output(weights, spec).isfinite().all()
    said = "\n".join(notes)
    assert "dropped, a pooling layer has no queries and keys: blocks.0.attn.qkv.bias (q, k)" in said
    assert "blocks.3.merged_layer1.weight" in said and "initialised, identity: blocks.3.merged_layer" in said


def test_a_sparse_source_keeps_its_layers(tmp_path):
    sparse = export(tmp_path, SPARSE)
    weights, notes = initial_weights(str(tmp_path), SPARSE)
    assert same(weights, sparse.state_dict()) and notes == []
    _, notes = initial_weights(str(tmp_path), replace(SPARSE, transition_positions=False))
    assert notes == ["transition_positions: True in the source, False here"]


@pytest.mark.parametrize("spec", [DENSE, SPARSE])
def test_another_resolution_and_length_take_all_weights(tmp_path, spec):
    model = export(tmp_path, spec)
    other = replace(spec, input_size=(6, 8, 12), sparse_grid=(3, 2, 3) if spec.is_sparse else None)
    weights, notes = initial_weights(str(tmp_path), other)
    assert same(weights, model.state_dict()) and notes == []
    assert output(weights, other).isfinite().all()


@pytest.mark.parametrize("classes", [5, 0])
@pytest.mark.parametrize("target", [DENSE, SPARSE])
def test_other_classes_get_a_fresh_embedding(tmp_path, classes, target):
    export(tmp_path, DENSE)
    spec = replace(target, num_classes=classes)
    torch.manual_seed(7)
    weights, notes = initial_weights(str(tmp_path), spec)
    torch.manual_seed(7)
    again, _ = initial_weights(str(tmp_path), spec)
    assert same(weights, again)  # as ranks do, which seed alike
    assert output(weights, spec).isfinite().all()
    expected = "initialised (normal)" if classes else "dropped"
    assert f"{expected}, 3 classes in the source, {classes} here: {LABELS}" in notes
    if classes:
        assert weights[LABELS].shape == (6, 32) and 0.01 < weights[LABELS].std() < 0.03


@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize("target", [DENSE, SPARSE])
def test_a_source_without_no_class_keeps_its_classes_and_gets_one(tmp_path, target, public):
    """Its last row is a class of this run, not what labels are dropped for; a file shows that by its number of rows."""
    model = export(tmp_path, replace(DENSE, no_class=False))
    source = tmp_path
    if public:
        torch.save(to_public(model.state_dict(), model.spec, "latte"), source := tmp_path / "public.pt")
    weights, notes = initial_weights(str(source), target)
    assert weights[LABELS].shape == (4, 32) and torch.equal(weights[LABELS][:3], model.state_dict()[LABELS])
    assert 0.005 < weights[LABELS][3].std() < 0.05 and output(weights, target).isfinite().all()
    assert f"initialised (normal), the row of 'no class': {LABELS}" in notes


def test_an_unconditional_source_gets_classes(tmp_path):
    export(tmp_path, replace(DENSE, num_classes=0))
    weights, notes = initial_weights(str(tmp_path), DENSE)
    assert output(weights, DENSE).isfinite().all() and weights[LABELS].shape == (4, 32)
    assert notes == [f"initialised (normal), 0 classes in the source, 3 here: {LABELS}"]


@pytest.mark.parametrize("learns", [True, False])
def test_the_prediction_is_kept_with_and_without_a_variance(tmp_path, learns):
    origin, spec = replace(DENSE, learn_sigma=learns), replace(DENSE, learn_sigma=not learns)
    before = output(export(tmp_path, origin).state_dict(), origin)
    weights, notes = initial_weights(str(tmp_path), spec)
    after = output(weights, spec)
    assert torch.allclose(after[:, :4], before[:, :4], atol=1e-6)
    assert after.shape[1] == (4 if learns else 8) and not after[:, 4:].any()
    assert len(notes) == 1 and notes[0].startswith("dropped" if learns else "initialised (zero)")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_size": 64}, "hidden_size is 32 there and 64 here"),
        ({"num_heads": 4}, "num_heads is 2 there and 4 here"),
        ({"layout": "8D"}, "depth is 6 there and 8 here"),
        ({"in_channels": 8, "patch_size": 1}, "in_channels is 4 there and 8 here; patch_size is 2 there and 1 here"),
        ({"mlp_ratio": 2.0}, "mlp_ratio is 4.0 there and 2.0 here"),
        ({"input_size": (1, 4, 4)}, "is_video is True there and False here"),
    ],
)
def test_another_model_is_refused_by_what_differs(tmp_path, changes, reason):
    export(tmp_path, DENSE)
    with pytest.raises(ValueError, match=f"{tmp_path.name} does not fit the run's model: {reason}"):
        initial_weights(str(tmp_path), replace(DENSE, **changes))


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (DENSE, "has the layout '1P 1M1S1R1D 1D', which cannot become '6D'"),
        (replace(SPARSE, layout="1M2S1R1D 1D"), "cannot become .* accepted are the same layers, or a dense model, 6D"),
        (replace(SPARSE, residual_upsampling=True), "residual_upsampling is False there and True here"),
    ],
)
def test_sparse_weights_that_mean_something_else_are_refused(tmp_path, target, reason):
    export(tmp_path, SPARSE)
    with pytest.raises(ValueError, match=reason):
        initial_weights(str(tmp_path), target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("origin", "family"), [(DENSE, "latte"), (IMAGE, "dit"), (PUBLIC_SPARSE, "sparsedit")], ids=["latte", "dit", "sparsedit"]
)
def test_public_files_give_the_weights_of_their_model(tmp_path, origin, family, dtype):
    weights = {name: value.to(dtype) for name, value in disturbed(origin).state_dict().items()}
    path = tmp_path / "public.pt"
    torch.save({"model": {}, "ema": to_public(weights, origin, family)}, path)
    # At another size than the file's.
    spec = replace(origin, input_size=(origin.input_size[0] * 2 if origin.is_video else 1, 8, 12))
    found, notes = initial_weights(str(path), spec)
    assert same(found, {name: value.float() for name, value in weights.items()})
    assert any("the sin-cos table is computed" in note and "pos_embed" in note for note in notes)


def test_a_public_dense_file_becomes_a_sparse_model_with_other_classes(tmp_path):
    tensors, config = load_reference("latte_class")
    public = {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}
    save_file(public, tmp_path / "latte.safetensors")
    depth, hidden = config["depth"], public["x_embedder.proj.weight"].shape[0]
    patch = public["x_embedder.proj.weight"].shape[-1]
    layout = f"1P 1M 1R {depth - 3}D"
    spec = ModelSpec(
        layout,
        hidden,
        config["num_heads"],
        (4, 8 * patch, 8 * patch),
        in_channels=config["in_channels"],
        patch_size=patch,
        num_classes=7,
        sparse_grid=(2, 4, 4),
    )
    weights, notes = initial_weights(str(tmp_path / "latte.safetensors"), spec)
    assert output(weights, spec).isfinite().all()
    assert torch.equal(weights[f"blocks.{depth - 1}.attn.qkv.weight"], public[f"blocks.{depth - 1}.attn.qkv.weight"])
    assert {note.split(",")[0] for note in notes} == {"dropped", "initialised", "initialised (normal)"}


def test_a_file_without_tables_takes_the_size_of_the_run(tmp_path):
    model = disturbed(DENSE)
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    assert same(initial_weights(str(tmp_path / "plain.safetensors"), DENSE)[0], model.state_dict())


def test_a_file_with_other_keys_names_them(tmp_path):
    weights = to_public(disturbed(DENSE).state_dict(), DENSE, "latte")
    torch.save({**weights, "pooler.weight": torch.zeros(1)}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd.pt: .*unexpected: pooler.weight.*sparsevid convert"):
        initial_weights(str(tmp_path / "odd.pt"), DENSE)


def test_models_come_from_the_hub_by_their_id(tmp_path, monkeypatch):
    """Out of the hub's cache on disk, without a network."""
    commit = "0" * 40
    repository = tmp_path / "models--someone--dense"
    model = export(repository / "snapshots" / commit, DENSE)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(initial_weights("someone/dense", DENSE)[0], model.state_dict())
    for absent in ("someone/else", "../up"):
        with pytest.raises(FileNotFoundError, match=f"there is no folder '{absent}', and it cannot be fetched from the hub"):
            model_folder(absent)
    with pytest.raises(FileNotFoundError, match="runs/demo/dense is neither a checkpoint, a run, .* and no hub id"):
        model_folder("runs/demo/dense")


def test_a_folder_without_a_model_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a checkpoint .* nor a run"):
        open_model(str(tmp_path))
    (tmp_path / "weights.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"weights.pt is a file; accepted are a run, a checkpoint"):
        open_model(str(tmp_path / "weights.pt"))


def test_opening_a_model_draws_nothing_from_the_global_generator(tmp_path):
    model = export(tmp_path, DENSE)
    before = torch.get_rng_state()
    opened = open_model(str(tmp_path))
    assert torch.equal(torch.get_rng_state(), before) and not opened.training
    assert same(opened.state_dict(), model.state_dict())


def test_a_sparse_model_of_text_starts_from_a_dense_one(tmp_path):
    """A null caption that the run's model does not hold is dropped, other positions are said."""
    text = {"num_classes": 0, "text_channels": 6, "shared_modulation": True, "position_base": 2}
    dense = replace(DENSE, null_caption=True, text_tokens=5, **text)
    sparse = replace(SPARSE, **text)
    export(tmp_path, dense)
    expected, _ = dense_to_sparse(
        open_model(str(tmp_path)).state_dict(), dense, replace(sparse, null_caption=True, text_tokens=5)
    )
    del expected["y_embedder.y_embedding"]
    found, notes = initial_weights(str(tmp_path), sparse)
    assert same(found, expected) and any("dropped, the run's model has no null caption" in note for note in notes)
    _, notes = initial_weights(str(tmp_path), replace(sparse, position_base=4))
    assert "positions (base, scale): (2, 1.0) in the source, (4, 1.0) here" in notes
    found, notes = initial_weights(str(tmp_path), replace(sparse, null_caption=True, text_tokens=9))
    assert same(found, expected) and any("the source has one of 5 tokens, the run's of 9 is" in note for note in notes)
    with pytest.raises(ValueError, match="text_channels is 6 there and 0 here"):
        initial_weights(str(tmp_path), DENSE)


@pytest.mark.parametrize("kind", ["pixart, a folder", "pixart, a file", "latte-1, a pipeline", "latte-1, a file"])
def test_public_models_of_text_start_a_run(kind, tmp_path):
    """Of diffusers or original files, dense to dense and to sparse; a null caption is the source's, or left to the run."""
    theirs, family = (pixart(), "pixart") if kind.startswith("pixart") else (latte(), "latte-1")
    folder, file = tmp_path / "model" / "transformer", tmp_path / "weights.pth"
    theirs.save_pretrained(folder)
    null = torch.rand(TOKENS, CHANNELS)
    converted = from_diffusers(folder)
    if kind.endswith("file"):
        public = converted.weights if family == "pixart" else theirs.state_dict()
        torch.save({**public, NULL[family]: null}, file)
    source = str(file if kind.endswith("file") else folder.parent if "pipeline" in kind else folder)
    dense = replace(converted.spec, null_caption=True, text_tokens=TOKENS)
    changes = {"layout": "1P 1M1R", "sparse_grid": (1, 2, 2), "residual_upsampling": True, "allow_no_dense": True}
    sparse = replace(dense, **changes) if family == "pixart" else dense
    for spec in (dense, sparse):
        weights, notes = initial_weights(source, spec)
        held = weights.pop("y_embedder.y_embedding", None)
        if kind.endswith("file"):
            assert torch.equal(held, null) and not any("null caption" in note for note in notes)
        else:
            assert held is None and any("the source has none, the run's of 7 is that of its captions" in note for note in notes)
        target = replace(spec, null_caption=False)
        expected = converted.weights
        if spec.is_sparse:
            expected, _ = dense_to_sparse(expected, replace(converted.spec, text_tokens=TOKENS), target)
        assert same(weights, expected)
    assert trained_run(source) is None
    with pytest.raises(ValueError, match="does not fit the run's model: .*text_channels is 10 there and 11 here"):
        initial_weights(source, replace(dense, text_channels=11))
