"""The modulation of all layers in one product is that of each, whatever happens to the model before or after."""

import copy
import pickle

import pytest
import torch
from fake_gpu import fake_gpu
from parity import randomise, relative_error
from torch import Tensor

from sparsevid.diffusion.samplers import Told, call_at
from sparsevid.models.modulation import Modulation
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.savings import parse_saving, saved
from sparsevid.sparsity.spec import ModelSpec

SPARSE = ModelSpec("1P 2(1M2S1R1D) 1D", 24, 2, (4, 8, 8), sparse_grid=(2, 2, 2), num_classes=3)
T, LABELS = torch.tensor([3, 700]), torch.tensor([0, 3])
X = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
OTHER = randomise(DiffusionTransformer(SPARSE), seed=1).state_dict()


@torch.no_grad()
def shifted(model: DiffusionTransformer) -> None:
    """As an optimizer or an average does: in place."""
    for parameter in model.parameters():
        parameter.add_(0.1)


CHANGES = {
    "nothing": lambda model: model,
    "loaded": lambda model: model.load_state_dict(OTHER) and model,
    "loaded by assignment": lambda model: model.load_state_dict(copy.deepcopy(OTHER), assign=True) and model,
    "changed in place": lambda model: shifted(model) or model,
    "another type and back": lambda model: model.double().float(),
    "copied": copy.deepcopy,
    "copied and loaded": lambda model: (again := copy.deepcopy(model)).load_state_dict(OTHER) and again,
    "copied and changed": lambda model: shifted(again := copy.deepcopy(model)) or again,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "parameters in another order": lambda model: model.requires_grad_(False).train().eval(),
}


def calls_of_each(model: DiffusionTransformer) -> list[str]:
    """From now on, the layers whose own modulation runs."""
    seen = []
    for name, module in model.named_modules():
        if isinstance(module, Modulation):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    return seen


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_one_product_is_that_of_each_layer(change):
    plain = change(randomise(DiffusionTransformer(SPARSE)))
    fused = change(randomise(DiffusionTransformer(SPARSE)).fuse_modulation())
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in fused.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert all(torch.equal(*pair) for pair in zip(fused.state_dict().values(), plain.state_dict().values(), strict=True))
    for options in ({}, {"images": 0}, {"grid": (4, 3, 3)}):
        assert relative_error(fused(X, T, LABELS, **options), plain(X, T, LABELS, **options)) <= 1e-5
    for saving in ("steps:every=2", "static:every=2"):
        saving_fused, saving_plain = (saved(model, parse_saving(saving)) for model in (fused, plain))
        for x in (X, X + 0.1):  # the second call leaves something out
            found, expected = (call_at(model, x, T, Told(0.7), labels=LABELS) for model in (saving_fused, saving_plain))
            assert relative_error(found, expected) <= 1e-5


@torch.no_grad()
def test_no_layer_computes_its_own_and_weights_are_there_once():
    model = randomise(DiffusionTransformer(SPARSE))
    own = calls_of_each(model)
    model(X, T, LABELS)
    assert len(own) == SPARSE.depth + 1
    for change in (lambda: model.fuse_modulation(), lambda: model.double().float(), lambda: model.load_state_dict(OTHER)):
        change()
        own.clear()
        model(X, T, LABELS)
        assert own == []
        fused = model.fused_modulation.weight.untyped_storage().data_ptr()
        linears = [module[1].weight for module in model.modules() if isinstance(module, Modulation)]
        assert {weight.untyped_storage().data_ptr() for weight in linears} == {fused}


def test_gradients_reach_every_parameter():
    models = [randomise(DiffusionTransformer(SPARSE)) for _ in range(2)]
    models[1].fuse_modulation()
    gradients: list[list[Tensor]] = []
    for model in models:
        model(X, T, LABELS).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_what_is_saved_is_the_model_alone(tmp_path):
    sizes = []
    for fuse in (False, True):
        model = randomise(DiffusionTransformer(SPARSE))
        (model.fuse_modulation() if fuse else model).save_pretrained(tmp_path / str(fuse))
        sizes.append((tmp_path / str(fuse) / "model.safetensors").stat().st_size)
    assert sizes[0] == sizes[1]
    again = DiffusionTransformer.from_pretrained(tmp_path / "True").eval()
    with torch.no_grad():
        assert torch.equal(again(X, T, LABELS), randomise(DiffusionTransformer(SPARSE))(X, T, LABELS))


@pytest.mark.slow
@torch.no_grad()
def test_one_graph():
    torch.compiler.reset()
    model = randomise(DiffusionTransformer(SPARSE)).fuse_modulation()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    assert relative_error(compiled(X, T, LABELS), model(X, T, LABELS)) <= 1e-5
    torch.compiler.reset()


def test_on_a_gpu_it_is_one_product_and_moves_nothing():
    with fake_gpu() as traffic, torch.inference_mode():
        model = DiffusionTransformer(SPARSE).fuse_modulation().to("cuda", torch.bfloat16)
        inputs = X.to("cuda", torch.bfloat16), T.to("cuda"), LABELS.to("cuda")
        model(*inputs)
        traffic.clear()
        own = calls_of_each(model)
        model(*inputs)
        assert traffic.events == [] and own == []
