"""Public checkpoints become ours and return to the bit; dense models become sparse as the public loader makes them."""

import re
from dataclasses import replace

import pytest
import torch
from models.convert.public_files import FILES, public_weights, run_model, same, small_state
from parity import load_reference, relative_error
from safetensors.torch import load_file, save_file

from sparsevid.benchmark.gpu.parity import layout_of, options
from sparsevid.models.convert.checkpoint_file import read_checkpoint
from sparsevid.models.convert.conversion import expected_shapes
from sparsevid.models.convert.dense_to_sparse import dense_to_sparse
from sparsevid.models.convert.infer import infer_spec
from sparsevid.models.convert.public import from_public, to_public
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.spec import ModelSpec


@pytest.mark.parametrize("name", [name for name in FILES if name != "dit_to_sparsedit"])
def test_converted_model_equals_the_public_one(name):
    weights, tensors, config = public_weights(name)
    converted = from_public(weights, **options(config))
    assert relative_error(run_model(converted.weights, converted.spec, tensors), tensors["out"]) <= 1e-5


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_round_trip_is_exact(name, suffix, tmp_path):
    weights, _, config = public_weights(name)
    converted = from_public(weights, **options(config))
    again = to_public(converted.weights, converted.spec, FILES[name][1])
    assert same(again, weights)
    path = tmp_path / f"model{suffix}"
    torch.save(again, path) if suffix == ".pt" else save_file(again, path)
    reread = from_public(read_checkpoint(path), **options(config))
    assert reread.spec == converted.spec and same(reread.weights, converted.weights)


def test_dense_dit_becomes_sparse_as_the_public_loader_makes_it():
    weights, tensors, _ = public_weights("dit_to_sparsedit")
    config = load_reference("dit_to_sparsedit")[1]
    dense = from_public(weights, **options(config["dense"]))
    assert relative_error(run_model(dense.weights, dense.spec, tensors), tensors["out.dense"]) <= 1e-5
    grid = options(config["sparse"])["sparse_grid"]
    spec = replace(dense.spec, layout=layout_of(config["sparse"]), sparse_grid=grid, transition_positions=False)
    sparse, _ = dense_to_sparse(dense.weights, dense.spec, spec)
    assert relative_error(run_model(sparse, spec, tensors), tensors["out.sparse"]) <= 1e-5
    official = to_public(sparse, spec, "sparsedit")
    assert {name.split(".attn.")[0] for name in official if ".attn." in name} == set(config["module_order"])


def sparse_spec_of(dense: ModelSpec, **changes) -> ModelSpec:
    """A sparse spec with all five kinds of layers, of the dense one's depth."""
    grid = dense.dense_grid()
    middle = f"{dense.depth - 4}S" if dense.depth > 4 else ""
    return replace(dense, layout=f"1P 1M {middle} 1R 1D", sparse_grid=(1, max(1, grid.h // 2), max(1, grid.w // 2)), **changes)


@pytest.mark.parametrize("residual", [False, True])
def test_sparse_latte_has_the_dense_weights(residual):
    weights, tensors, config = public_weights("latte_class")
    dense = from_public(weights, **options(config))
    spec = sparse_spec_of(dense.spec, residual_upsampling=residual)
    sparse, report = dense_to_sparse(dense.weights, dense.spec, spec)
    kinds, d, depth = spec.parsed_layout.kinds, spec.hidden_size, spec.depth
    untouched = [name for name in sparse if ".attn." not in name and ".merged_layer" not in name]
    assert all(torch.equal(sparse[name], dense.weights[name]) for name in untouched)
    for kind in ("weight", "bias"):
        fused = [dense.weights[f"blocks.{i}.attn.qkv.{kind}"] for i in range(depth)]
        merge, recover = kinds.index("M"), kinds.index("R")
        assert torch.equal(sparse[f"blocks.0.attn.v.{kind}"], fused[0][2 * d :])
        assert torch.equal(sparse[f"blocks.{depth - 1}.attn.qkv.{kind}"], fused[-1])
        for i in (merge, recover):
            assert torch.equal(sparse[f"blocks.{i}.attn.q.{kind}"], fused[i][:d])
            assert torch.equal(sparse[f"blocks.{i}.attn.kv.{kind}"], fused[i][d:])
        assert not any(sparse[f"blocks.{recover}.merged_layer{which}.bias"].any() for which in (1, 2))
    assert torch.equal(sparse[f"blocks.{recover}.merged_layer1.weight"], torch.eye(d) * residual)
    assert torch.equal(sparse[f"blocks.{recover}.merged_layer2.weight"], torch.eye(d))
    assert run_model(sparse, spec, tensors).isfinite().all()
    assert {change.name for change in report.initialised} == {name for name in sparse if ".merged_layer" in name}
    assert {change.name for change in report.dropped} == {f"blocks.0.attn.qkv.{kind} (q, k)" for kind in ("weight", "bias")}
    assert report.carried + len(report.initialised) == len(sparse)


def test_recovery_of_a_converted_model_starts_as_at_initialisation():
    spec = ModelSpec("1P 1M 1S 1R 2D", 24, 2, (4, 8, 8), sparse_grid=(2, 2, 2))
    dense = {name: torch.randn(shape) for name, shape in expected_shapes(spec.dense()).items()}
    for residual in (False, True):
        own = replace(spec, residual_upsampling=residual)
        sparse, _ = dense_to_sparse(dense, own.dense(), own)
        fresh = DiffusionTransformer(own).state_dict()
        assert all(torch.equal(sparse[name], fresh[name]) for name in fresh if ".merged_layer" in name)


@pytest.mark.parametrize("name", FILES)
def test_results_can_be_saved(name, tmp_path):
    """Even where the source holds views of one storage."""
    weights, _, config = public_weights(name)
    flat = torch.cat([value.flatten() for value in weights.values()])
    views = flat.split([value.numel() for value in weights.values()])
    shared = {key: view.view_as(weights[key]) for key, view in zip(weights, views, strict=True)}
    converted = from_public(shared, **options(config))
    save_file(converted.weights, tmp_path / "ours.safetensors")
    assert same(load_file(tmp_path / "ours.safetensors"), from_public(weights, **options(config)).weights)
    if not converted.spec.is_sparse:
        spec = sparse_spec_of(converted.spec)
        sparse, _ = dense_to_sparse(converted.weights, converted.spec, spec)
        save_file(sparse, tmp_path / "sparse.safetensors")


def test_half_precision_stays():
    weights, _, config = public_weights("latte_uncond")
    for dtype in (torch.float16, torch.bfloat16):
        half = {name: value.to(dtype) for name, value in weights.items()}
        converted = from_public(half, **options(config))
        assert same(to_public(converted.weights, converted.spec, "latte"), half)


@pytest.mark.parametrize("name", FILES)
def test_keys_that_do_not_fit_are_named(name):
    weights, _, config = public_weights(name)
    lost = min(key for key in weights if key.endswith("attn.proj.weight"))
    wrong = min(key for key in weights if key.endswith("mlp.fc2.bias"))
    changed = {key: value for key, value in weights.items() if key != lost}
    changed |= {"pooler.weight": torch.zeros(1), wrong: torch.zeros(3)}
    reason = f"1 missing: {lost}; 1 unexpected: pooler.weight; 1 of another shape: {wrong} (3,) instead of"
    with pytest.raises(ValueError, match=re.escape(reason)):
        from_public(changed, **options(config))
    many = {**weights, **{f"text.{i:02d}": torch.zeros(1) for i in range(12)}}
    with pytest.raises(ValueError, match=r"12 unexpected: text.00, .*text.09 and 2 more$"):
        from_public(many, **options(config))
    part = lost.replace("attn.proj", "attn.k")
    with pytest.raises(ValueError, match=rf"1 unexpected: {re.escape(part)}"):
        from_public({**weights, part: weights[lost]}, **options(config))


def test_a_gap_between_layers_is_missing_keys():
    weights, _, config = public_weights("dit")
    gap = {key.replace("blocks.1.", "blocks.987654321."): value for key, value in weights.items()}
    with pytest.raises(ValueError, match=r"missing: blocks.1.*unexpected: blocks.987654321"):
        from_public(gap, **options(config))


@pytest.mark.parametrize("name", ["latte_class", "sparsedit"])
def test_other_position_tables_are_refused(name):
    weights, _, config = public_weights(name)
    table = "temp_embed" if "temp_embed" in weights else "pos_embed"
    for change in (0.01, float("nan")):
        with pytest.raises(ValueError, match=f"{table} is not the sin-cos table of its size"):
            from_public({**weights, table: weights[table] + change}, **options(config))
    drifted = from_public({**weights, table: weights[table] + 1e-4}, **options(config))
    assert any("0.0001" in change.reason for change in drifted.report.dropped)
    size = infer_spec(weights, **options(config)).input_size
    with pytest.raises(ValueError, match=f"{table} has shape"):
        from_public({**weights, table: weights[table][:, :-1]}, **options(config), input_size=size)


IMAGE = ModelSpec("4D", 24, 2, (1, 8, 8))
VIDEO = replace(IMAGE, input_size=(2, 8, 8))
SPARSE = replace(IMAGE, layout="1M1S1R1D", sparse_grid=(1, 2, 2), transition_positions=False)


@pytest.mark.parametrize(
    ("spec", "family", "reason"),
    [
        (IMAGE, "dalle", "no family 'dalle'.*latte, dit, sparsedit"),
        (IMAGE, "latte", "more than one frame"),
        (replace(VIDEO, layout="3D"), "latte", "even number of layers"),
        (VIDEO, "dit", "one frame, found 2"),
        (SPARSE, "dit", "is dense: layout 4D, found '1M1S1R1D'"),
        (replace(SPARSE, transition_positions=True), "sparsedit", "transition_positions and residual_upsampling off"),
        (replace(SPARSE, residual_upsampling=True), "sparsedit", "transition_positions and residual_upsampling off"),
        (replace(SPARSE, layout="1D 1M1R1D"), "sparsedit", "P layers, then modules, then D"),
        (replace(SPARSE, layout="1M1S1R1D 1M1R1D"), "sparsedit", "same numbers of M, S, R and D"),
        (replace(SPARSE, layout="1M1R2D 1M1R1D"), "sparsedit", "same numbers of M, S, R and D"),
    ],
)
def test_what_a_family_cannot_express_is_refused(spec, family, reason):
    weights = {name: torch.zeros(shape) for name, shape in expected_shapes(spec).items()}
    with pytest.raises(ValueError, match=reason):
        to_public(weights, spec, family)


@pytest.mark.parametrize(
    ("dense", "sparse", "reason"),
    [
        (SPARSE, SPARSE, "made from a dense one, layout 4D; found '1M1S1R1D'"),
        (IMAGE, replace(SPARSE, layout="1M2S1R1D"), "depth is 4 in the dense and 5 in the sparse one"),
        (VIDEO, SPARSE, "is_video is True in the dense and False"),
        (replace(IMAGE, num_classes=3), SPARSE, "num_classes is 3"),
    ],
)
def test_models_that_differ_in_more_than_layers_are_refused(dense, sparse, reason):
    weights = {name: torch.zeros(shape) for name, shape in expected_shapes(dense).items()}
    with pytest.raises(ValueError, match=reason):
        dense_to_sparse(weights, dense, sparse)


def test_weights_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"no public Latte, DiT or SparseDiT checkpoint: it lacks x_embedder.*fc.weight"):
        from_public({"fc.weight": torch.zeros(3, 3)}, num_heads=2)
    weights = small_state(IMAGE, "dit")
    with pytest.raises(ValueError, match=r"not floating point: x_embedder.proj.bias torch.int64"):
        from_public({**weights, "x_embedder.proj.bias": torch.zeros(24, dtype=torch.int64)}, num_heads=2)
