"""Folders of diffusers become ours and compute the same, and return to the bit, so that diffusers loads them."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import DiTTransformer2DModel, LatteTransformer3DModel, PixArtTransformer2DModel
from models.convert.diffusers_models import MASKS, T, dit, features, latte, noise, ours, pixart, run_latte, run_pixart
from models.text_models import MASK
from parity import relative_error
from safetensors.torch import load_file, save_file

from sparsevid.diffusion.null_text import NullText
from sparsevid.diffusion.wrappers import with_guidance
from sparsevid.models.convert.conversion import expected_shapes
from sparsevid.models.convert.dense_to_sparse import dense_to_sparse
from sparsevid.models.convert.diffusers_config import config_of, spec_of
from sparsevid.models.convert.diffusers_folder import WEIGHTS, find_diffusers, from_diffusers, to_diffusers, write_diffusers
from sparsevid.models.convert.diffusers_names import diffusers_names
from sparsevid.models.presets import PRESETS
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.spec import ModelSpec

FAMILIES = {
    "pixart": (pixart, PixArtTransformer2DModel),
    "latte": (latte, LatteTransformer3DModel),
    "dit": (dit, DiTTransformer2DModel),
}


def config(model: torch.nn.Module) -> dict:
    """What config.json of its folder holds."""
    return {**model.config, "_class_name": type(model).__name__}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("sample_size", [8, 32, 64, 128])
def test_pixart_equals_diffusers(sample_size, mask, tmp_path):
    """By the conventions of 256, 512 and 1024 px, at sizes of whole and odd grids, prompts of different lengths in a batch."""
    theirs = pixart(sample_size)
    model = ours(theirs, tmp_path)
    assert model.spec.micro_conditions == (sample_size == 128)
    for sides in ((sample_size, sample_size) if sample_size < 64 else (8, 8), (6, 10), (14, 2)):
        x, text = noise(*sides), features()
        out = model(x[:, :, None], T, text=text, text_mask=mask)[:, :, 0]
        assert relative_error(out, run_pixart(theirs, x, text, mask)) <= 1e-5
    if model.spec.micro_conditions:
        sizes = torch.tensor([[1024.0, 512.0, 1.7], [3.0, 700.0, 0.25]])
        out = model(x[:, :, None], T, text=text, text_mask=mask, sizes=sizes)[:, :, 0]
        assert relative_error(out, run_pixart(theirs, x, text, mask, sizes)) <= 1e-5


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("sample_size", [16, 128])
def test_latte_equals_diffusers(sample_size, mask, tmp_path):
    """Without a mask is the public pipeline's way. A single frame has no position in time, and its temporal layers run."""
    theirs = latte(sample_size)
    model = ours(theirs, tmp_path)
    assert model.spec.layout == "4D" and model.spec.is_video
    for frames, sides in ((4, (8, 8)), (4, (6, 10)), (1, (14, 2))):
        x, text = noise(frames, *sides), features()
        assert relative_error(model(x, T, text=text, text_mask=mask), run_latte(theirs, x, text, mask)) <= 1e-5


def test_stills_of_latte_pass_no_temporal_layer(tmp_path):
    theirs = latte()
    model, x, text = ours(theirs, tmp_path), noise(5, 8, 8), features()
    still = theirs(x[:, :, 4:], timestep=T, encoder_hidden_states=text, enable_temporal_attentions=False).sample
    assert relative_error(model(x, T, text=text, images=1)[:, :, 4:], still) <= 1e-5


@pytest.mark.parametrize("norm_eps", [1e-5, 1e-6])
def test_dit_equals_diffusers_and_by_option_the_original(norm_eps, tmp_path):
    theirs, labels = dit(norm_eps=norm_eps), torch.tensor([1, 5])
    model = ours(theirs, tmp_path)
    for side in (16, 6, 20):
        x = noise(side, side)
        out = model(x[:, :, None], T, labels)[:, :, 0]
        assert relative_error(out, theirs(x, timestep=T, class_labels=labels).sample) <= 1e-5
    original = ours(theirs, tmp_path, original_dit=True)
    assert original.spec == ModelSpec("3D", 24, 2, (1, 16, 16), num_classes=5)
    assert relative_error(original(x[:, :, None], T, labels)[:, :, 0], out) > 1e-3
    with pytest.raises(ValueError, match="of PixArtTransformer2DModel, and no DiT"):
        spec_of(config(pixart()), original_dit=True)


@pytest.mark.parametrize("heard", ["own", "prompt"])
def test_guided_output_of_pixart_in_both_null_conventions(heard, tmp_path):
    """diffusers' pipelines give the half without a prompt its own mask; the original gives it the prompt's."""
    theirs = pixart(32)
    model, x, text, null = ours(theirs, tmp_path), noise(8, 8), features(), features(seed=5)[:1]
    null_mask = torch.arange(null.shape[1])[None] < 1
    masks = torch.cat([null_mask.expand(2, -1) if heard == "own" else MASK, MASK])
    halves = [
        run_pixart(theirs, x, each, mask) for each, mask in zip((null.expand(2, -1, -1), text), masks.chunk(2), strict=True)
    ]
    for channels in (3, 4):
        guide = with_guidance(model, 4.5, channels=channels, null_text=NullText(null, null_mask, heard))
        out = guide(x[:, :, None], T, text=text, text_mask=MASK)[:, :, 0]
        expected = halves[1].clone()
        expected[:, :channels] = halves[0][:, :channels] + 4.5 * (halves[1] - halves[0])[:, :channels]
        assert relative_error(out, expected) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_is_the_same_to_the_bit_and_diffusers_loads_it(family, dtype, tmp_path):
    build, loader = FAMILIES[family]
    theirs = build().to(dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    converted = from_diffusers(tmp_path / "theirs")
    assert converted.report.carried == len(converted.weights) and not converted.report.rows()
    assert write_diffusers(converted.weights, converted.spec, tmp_path / "again") == ()
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("theirs", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first)
    loaded, told = loader.from_pretrained(tmp_path / "again", torch_dtype=dtype, output_loading_info=True)
    assert not any(told.values())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in theirs.state_dict().items())
    assert spec_of(config(loaded)) == converted.spec == from_diffusers(tmp_path / "again").spec
    unlike = {name for name, value in theirs.config.items() if name[0] != "_" and loaded.config[name] != value}
    assert unlike <= {"use_additional_conditions"}  # what None stands for is written


@pytest.mark.parametrize("family", FAMILIES)
def test_several_files_with_an_index(family, tmp_path):
    theirs = FAMILIES[family][0]()
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = (from_diffusers(tmp_path / name) for name in ("one", "many"))
    assert one.spec == many.spec and all(torch.equal(value, many.weights[name]) for name, value in one.weights.items())
    next(iter((tmp_path / "many").glob("*.safetensors"))).unlink()
    with pytest.raises(FileNotFoundError, match="names diffusion_pytorch_model-0000.*, which is not there"):
        from_diffusers(tmp_path / "many")


def test_the_variant_fp16_is_read_where_a_folder_has_no_other(tmp_path):
    theirs = pixart().half()
    theirs.save_pretrained(tmp_path / "one", variant="fp16")
    theirs.save_pretrained(tmp_path / "many", variant="fp16", max_shard_size="40KB")
    assert not (tmp_path / "one" / WEIGHTS).exists() and len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = (from_diffusers(tmp_path / name) for name in ("one", "many"))
    assert all(torch.equal(value, many.weights[name]) for name, value in one.weights.items())
    pixart(norm_eps=1e-5).save_pretrained(tmp_path / "one")  # beside it the usual one, which goes first
    assert all(value.dtype == torch.float32 for value in from_diffusers(tmp_path / "one").weights.values())


def test_pickled_weights_are_not_opened_and_what_converts_them_is_said(tmp_path):
    pixart().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(FileNotFoundError, match=r"has diffusion_pytorch_model\.bin and no \.safetensors.*import PixArtTransf"):
        from_diffusers(tmp_path)


def test_presets_are_the_published_configs(tmp_path):
    for side in (256, 512, 1024):
        new = {"_class_name": "PixArtTransformer2DModel", "sample_size": side // 8, "caption_channels": 4096}
        assert spec_of(new) == PRESETS[f"PixArt-XL/2-{side}"]
        old = {**new, "_class_name": "Transformer2DModel", "norm_type": "ada_norm_single", "use_linear_projection": False}
        assert spec_of({**old, "num_vector_embeds": None, "_diffusers_version": "0.25"}) == PRESETS[f"PixArt-XL/2-{side}"]
    one = PRESETS["Latte-1"]
    assert spec_of(config_of(one)) == one and config_of(one)["sample_size"] == 64 and config_of(one)["num_layers"] == 28
    assert spec_of({"_class_name": "DiTTransformer2DModel", "out_channels": 8}, original_dit=True) == PRESETS["DiT-XL/2"]
    shapes = expected_shapes(PRESETS["DiT-XL/2"])
    with torch.device("meta"):
        theirs = DiTTransformer2DModel(out_channels=8).state_dict()
    names = diffusers_names(shapes, "DiTTransformer2DModel", 28)
    assert {name for each in names.values() for name in each.names} == theirs.keys()


@pytest.mark.parametrize("build", [pixart, latte])
def test_sparse_from_dense_keeps_what_listens(build, tmp_path):
    model = ours(build(num_layers=8) if build is pixart else build(num_layers=4), tmp_path)
    grid = (2, 3, 3) if model.spec.is_video else (1, 3, 3)
    spec = replace(model.spec, layout="2P 1(1M2S1R2D)", sparse_grid=grid, residual_upsampling=True, merge_text="sparse")
    weights, report = dense_to_sparse(model.state_dict(), model.spec, spec)
    sparse = DiffusionTransformer(spec).eval()
    sparse.load_state_dict(weights)
    dense = model.state_dict()
    carried = [name for name in weights if "cross_attn" in name or "table" in name or "y_embedder" in name or "t_block" in name]
    assert len(carried) > 20 and all(torch.equal(weights[name], dense[name]) for name in carried)
    assert {change.name.split(".")[2] for change in report.initialised} == {"merged_layer1", "merged_layer2"}
    frames = 4 if spec.is_video else 1
    x, text = noise(frames, 16, 16), features()
    assert sparse(x, T, text=text, text_mask=MASK).isfinite().all()
    with pytest.raises(ValueError, match="position_base is .* in the dense"):
        dense_to_sparse(dense, model.spec, replace(spec, position_base=3))


def test_a_null_caption_is_kept_and_has_no_place_in_diffusers(tmp_path):
    spec = replace(ours(pixart(), tmp_path).spec, null_caption=True, text_tokens=7)
    weights = DiffusionTransformer(spec).state_dict()
    theirs, _, (dropped,) = to_diffusers(weights, spec)
    assert dropped.name == "y_embedder.y_embedding" and theirs.keys() == pixart().state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "is of UNet2DConditionModel; accepted are PixArt"),
        ({"_class_name": "Transformer2DModel", "norm_type": "layer_norm"}, "with norm_type 'layer_norm'"),
        ({"num_registers": 4}, "keys that are not known: num_registers"),
        ({"activation_fn": "geglu"}, "activation_fn = 'geglu'; accepted is 'gelu-approximate'"),
        ({"attention_bias": False}, "attention_bias = False"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine = True"),
        ({"attention_type": "gated"}, "attention_type = 'gated'; accepted is 'default'"),
        ({"cross_attention_dim": 16}, "cross_attention_dim = 16; accepted is 24"),
        ({"caption_channels": None}, "caption_channels = None; accepted are whole numbers"),
        ({"out_channels": 5}, "out_channels = 5; accepted are those of the latents, 4"),
        ({"patch_size": None}, "patch_size = None"),
    ],
)
def test_configs_that_ours_cannot_express_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        spec_of({**config(pixart()), **changes})


def test_folders_that_do_not_fit_are_refused(tmp_path):
    theirs = dit()
    with torch.no_grad():
        theirs.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.bias.add_(1)
    theirs.save_pretrained(tmp_path / "dit")
    with pytest.raises(ValueError, match=r"transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias differs from"):
        from_diffusers(tmp_path / "dit")
    pixart().save_pretrained(tmp_path / "pixart")
    weights = load_file(tmp_path / "pixart" / WEIGHTS)
    weights["more"] = weights.pop("proj_out.bias")
    save_file(weights, tmp_path / "pixart" / WEIGHTS)
    with pytest.raises(ValueError, match=r"1 missing: proj_out.bias; 1 unexpected: more"):
        from_diffusers(tmp_path / "pixart")
    (tmp_path / "pixart" / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=f"{WEIGHTS} is damaged"):
        from_diffusers(tmp_path / "pixart")
    (tmp_path / "pixart" / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"has neither {WEIGHTS} nor"):
        from_diffusers(tmp_path / "pixart")
    with pytest.raises(ValueError, match="video_length = 1"):
        spec_of(config(latte(video_length=1)))
    (tmp_path / "config.json").write_text(json.dumps({"spec": {}}))
    assert find_diffusers(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="no config.json of a transformer of diffusers"):
        from_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (PRESETS["SparsePixArt-XL/2-256"], "diffusers has dense models alone: layout 28D"),
        (replace(PRESETS["PixArt-XL/2-256"], mlp_ratio=2.0), "MLP of 4·D channels, found mlp_ratio 2.0"),
        (replace(PRESETS["Latte-1"], layout="55D"), "pairs of layers"),
        (PRESETS["Latte-XL/2"], "diffusers has no class for this model"),
        (replace(PRESETS["DiT-XL/2"], no_class=False), "no class for this model"),
        (replace(PRESETS["DiT-XL/2"], input_size=(1, 32, 16)), "square latents, found 32×16"),
    ],
)
def test_models_that_diffusers_has_no_class_for_are_refused(spec, reason):
    with pytest.raises(ValueError, match=reason):
        config_of(spec)
