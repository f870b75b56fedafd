"""Reading public checkpoints: files and their wrappings, the spec that they show, the names of SparseDiT's layers."""

import argparse
import re
from dataclasses import replace

import pytest
import torch
from models.convert.public_files import FILES, public_weights, same, small_state, split
from parity import load_reference
from safetensors.torch import save_file

from sparsevid.benchmark.gpu.parity import layout_of, options
from sparsevid.models.convert.checkpoint_file import read_checkpoint
from sparsevid.models.convert.conversion import expected_shapes
from sparsevid.models.convert.infer import infer_spec
from sparsevid.models.convert.names import LABELS, position_tables, public_names, sparsedit_modules
from sparsevid.models.convert.public import from_public, to_public
from sparsevid.models.presets import PRESETS
from sparsevid.sparsity.layout import parse_layout
from sparsevid.sparsity.spec import ModelSpec


@pytest.mark.parametrize("name", FILES)
def test_spec_is_read_from_the_weights(name):
    weights, _, config = public_weights(name)
    sparse = name == "sparsedit"
    assert infer_spec(weights, **options(config)) == ModelSpec(
        layout=str(parse_layout(layout_of(config))) if sparse else f"{config['depth']}D",
        hidden_size=config["hidden_size"],
        num_heads=config["num_heads"],
        input_size=(config.get("num_frames", 1), config["input_size"], config["input_size"]),
        in_channels=config["in_channels"],
        patch_size=config["patch_size"],
        num_classes=0 if config.get("extras") == 1 else config["num_classes"],
        learn_sigma=config.get("learn_sigma", True),
        transition_positions=not sparse,
        **({"sparse_grid": options(config)["sparse_grid"]} if sparse else {}),
    )


@pytest.mark.parametrize("name", ["latte_class", "sparsedit"])
@pytest.mark.parametrize(
    ("wrap", "entry"),
    [
        (lambda w, other: w, None),
        (lambda w, other: {"model": other, "ema": w, "opt": {"step": 3}, "args": argparse.Namespace(lr=1e-4)}, None),
        (lambda w, other: {"model": w, "ema": other}, "model"),
        (lambda w, other: {"state_dict": w, "epoch": 7}, None),
        (lambda w, other: {"model": {f"module.{key}": value for key, value in w.items()}}, None),
        (lambda w, other: {f"module._orig_mod.{key}": value for key, value in w.items()}, None),
        (lambda w, other: split(w), None),
    ],
    ids=["bare", "ema", "model", "state_dict", "module", "compiled", "split"],
)
def test_every_wrapping_gives_the_same_weights(name, wrap, entry, tmp_path):
    weights, _, config = public_weights(name)
    other = {key: value + 1 for key, value in weights.items()}
    torch.save(wrap(weights, other), tmp_path / "checkpoint.pth")
    found = from_public(read_checkpoint(tmp_path / "checkpoint.pth", entry), **options(config))
    assert same(found.weights, from_public(weights, **options(config)).weights)


calls = []


class Harmless:
    """An object whose pickle calls a function when it is read."""

    def __reduce__(self):
        return calls.append, ("called",)


def test_code_in_a_pickle_is_not_run(tmp_path):
    weights, _, _ = public_weights("dit")
    torch.save({**weights, "extra": Harmless()}, tmp_path / "checkpoint.pt")
    with pytest.raises(
        ValueError, match=r"checkpoint.pt is damaged, or holds more than tensors and plain data: Unsupported global"
    ):
        read_checkpoint(tmp_path / "checkpoint.pt")
    assert not calls


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("size", [0, 7, 3000])
def test_damaged_files_are_named(suffix, size, tmp_path):
    weights, _, _ = public_weights("dit")
    path = tmp_path / f"checkpoint{suffix}"
    torch.save(weights, path) if suffix == ".pt" else save_file(weights, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"checkpoint{suffix} is damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "entry", "reason"),
    [
        ([1, 2], None, "is a dictionary, found list"),
        ({"step": 3, "args": "x"}, None, "or stands under ema, model, module, state_dict; found args, step"),
        ({}, None, "found nothing"),
        ({"model": {"a": torch.zeros(1)}}, "ema", "no state dict under 'ema'; there is model"),
    ],
)
def test_files_without_a_state_dict(content, entry, reason, tmp_path):
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=reason):
        read_checkpoint(tmp_path / "checkpoint.pt", entry)


def test_other_kinds_of_files(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"ends in .pt, .pth or .safetensors, not in '.onnx'"):
        read_checkpoint(tmp_path / "model.onnx")
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing.pt"):
        read_checkpoint(tmp_path / "nothing.pt")


def test_latents_that_are_not_square_need_their_size():
    spec = ModelSpec("4D", 24, 2, (2, 4, 12))
    weights = small_state(spec, "latte")
    with pytest.raises(ValueError, match=r"pos_embed has 12 tokens, which is no square: give input_size"):
        from_public(weights, num_heads=2)
    assert from_public(weights, num_heads=2, input_size=(2, 4, 12)).spec == spec
    with pytest.raises(ValueError, match="pos_embed is not the sin-cos table"):
        from_public(weights, num_heads=2, input_size=(2, 12, 4))
    without = {name: value for name, value in weights.items() if name not in ("pos_embed", "temp_embed")}
    with pytest.raises(ValueError, match="no pos_embed"):
        from_public(without, num_heads=2)
    assert from_public(without, num_heads=2, input_size=(2, 4, 12)).spec == spec


@pytest.mark.parametrize("preset", ["Latte-XL/2", "DiT-XL/2", "DiT-S/8", "SparseDiT-XL/2", "SparseDiT-B/4"])
def test_presets_complete_the_spec(preset):
    spec = PRESETS[preset]
    family = "latte" if spec.is_video else "sparsedit" if spec.is_sparse else "dit"
    if family == "sparsedit":
        spec = replace(spec, transition_positions=False)
    shapes = expected_shapes(spec)
    names = public_names(spec, family, shapes)
    weights = {names[name]: torch.empty(shape, device="meta") for name, shape in shapes.items()} | position_tables(spec, family)
    assert infer_spec(weights, preset=preset) == spec
    size = "S" if "XL" in preset else "XL"
    wrong = re.sub(r"-\w+/", f"-{size}/", preset)
    with pytest.raises(ValueError, match=rf"preset {wrong} does not fit the checkpoint: hidden_size is .*{preset}"):
        infer_spec(weights, preset=wrong)
    if preset == "Latte-XL/2":
        with pytest.raises(ValueError, match="layers is 'PPM.* there and 'D+' here"):
            infer_spec(weights, preset="SparseLatte-XL/2")
        with pytest.raises(ValueError, match="num_heads is 16 there and 8 here"):
            infer_spec(weights, preset=preset, num_heads=8)
    if not spec.is_sparse:
        with pytest.raises(ValueError, match=f"give num_heads or a preset .*{preset}"):
            infer_spec(weights)


@pytest.mark.parametrize("family", ["latte", "dit"])
@pytest.mark.parametrize("no_class", [True, False])
def test_a_label_table_with_and_without_no_class(family, no_class):
    """Trained for guidance a model has a row more than classes; without it the last row is a class, and returns as one."""
    spec = ModelSpec("4D", 24, 2, (2 if family == "latte" else 1, 8, 8), num_classes=5, no_class=no_class)
    weights = small_state(spec, family)
    converted = from_public(weights, num_heads=2, num_classes=5)
    assert converted.spec == spec and len(converted.weights[LABELS]) == spec.labels == 5 + no_class
    assert same(to_public(converted.weights, converted.spec, family), weights)
    assert ModelSpec.from_dict(spec.to_dict()) == spec


def test_what_the_last_label_means_is_asked_where_nothing_tells():
    weights = small_state(ModelSpec("4D", 24, 2, (1, 8, 8), num_classes=5), "dit")
    with pytest.raises(ValueError, match=r"has 6 rows, .*: give num_classes .*, 5 if .* trained for guidance, else 6"):
        from_public(weights, num_heads=2)
    for classes in (4, 7, 0):
        with pytest.raises(ValueError, match=f"has 6 rows; a model of {classes} classes has {classes}, or one more"):
            from_public(weights, num_heads=2, num_classes=classes)
    unconditional = small_state(ModelSpec("4D", 24, 2, (1, 8, 8)), "dit")
    assert from_public(unconditional, num_heads=2).spec.labels == 0
    with pytest.raises(ValueError, match="has no rows; a model of 5 classes"):
        from_public(unconditional, num_heads=2, num_classes=5)


@pytest.mark.parametrize(("rows", "no_class"), [(1001, True), (1000, False)])
def test_a_preset_says_how_many_classes_its_model_has(rows, no_class):
    spec = replace(PRESETS["DiT-S/8"], no_class=no_class)
    weights = {name: torch.empty(shape, device="meta") for name, shape in expected_shapes(spec).items()}
    weights |= position_tables(spec, "dit")
    assert weights[LABELS].shape[0] == rows and infer_spec(weights, preset="DiT-S/8") == spec
    with pytest.raises(ValueError, match="has 102 rows"):
        infer_spec({**weights, LABELS: torch.empty(102, spec.hidden_size, device="meta")}, preset="DiT-S/8")


@pytest.mark.parametrize("name", ["sparsedit", "dit_to_sparsedit"])
def test_module_order_follows_from_the_layout(name):
    config = load_reference(name)[1]
    layout = parse_layout(layout_of(config.get("sparse", config)))
    assert sparsedit_modules(layout) == config["module_order"]


@pytest.mark.parametrize(
    ("layout", "normal", "module"),
    [
        ("2P 4(1M3S1R1D) 2D", 2, 1),
        ("2(2M1S1R2D)", 0, 2),
        ("1P 1M1S1R1D 1M1S1R3D", 2, 1),
        ("1M3S1R1D 2D", 2, 1),
        ("1M3S1R3D", 0, 3),
        ("2P 3D", 3, 0),
    ],
)
def test_dense_layers_belong_to_the_module_up_to_its_count(layout, normal, module):
    parsed = parse_layout(layout)
    names = sparsedit_modules(parsed)
    assert len(names) == len(set(names)) == len(parsed)
    assert sum(name.startswith("normal_blocks.") for name in names) == normal
    assert sum(name.startswith("dumbbell_blocks.0.normal_blocks.") for name in names) == module
    sparse = {"sparse_grid": (1, 2, 2)} if parsed.is_sparse else {}
    spec = ModelSpec(layout, 24, 2, (1, 8, 8), num_classes=3, transition_positions=False, **sparse)
    weights = small_state(spec, "sparsedit")
    converted = from_public(weights, num_heads=2, num_classes=3, **sparse)
    assert converted.spec.parsed_layout.kinds == parsed.kinds
    assert same(to_public(converted.weights, converted.spec, "sparsedit"), weights)


def test_modules_without_dense_layers():
    spec = ModelSpec(
        "1P 2(1M1S1R) 1D", 24, 2, (1, 8, 8), sparse_grid=(1, 2, 2), transition_positions=False, allow_no_dense=True
    )
    weights = small_state(spec, "sparsedit")
    assert "normal_blocks.0.attn.qkv.weight" in weights
    converted = from_public(weights, num_heads=2, sparse_grid=(1, 2, 2))
    assert converted.spec == spec and same(to_public(converted.weights, spec, "sparsedit"), weights)
